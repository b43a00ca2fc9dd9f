"""Log-probabilities of the scored tokens of a batch; the LM head is applied to these only.

`[B, T, V]` logits never exist: hidden states are gathered where the next token is scored, and the
head takes a slice of these positions at a time. The gradient recomputes the logits of each slice.

Axes: B rows, T positions, S scored positions, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ixjax.models import Remat, Transformer
from ixjax.training.batching import Rows
from ixjax.training.objectives import token_logprobs

MOST_LOGITS = 2**26  # at a time, of all rows: 256 MB in float32, over all devices


def scored_logprobs(model: Transformer, rows: Rows, *, remat: Remat = "none") -> jax.Array:
    """Return the log-probability of each scored token, given the tokens that it sees.

    Args:
        model: any decoder.
        rows: fields `[B, T]` and `[B, S]`.
        remat: what a block recomputes for its gradient.

    Returns:
        `[B, S]` float32; meaningless where `rows.weights` is 0.
    """
    hidden = model.hidden(
        rows.tokens, rows.positions, rows.segment_ids, shared_to=rows.shared_to, remat=remat
    )
    before = jnp.take_along_axis(hidden, rows.scored_at[:, :, None], axis=1)
    return head_logprobs(model, before, rows.targets)


def head_logprobs(
    model: Transformer, hidden: jax.Array, targets: jax.Array, *, most_logits: int = MOST_LOGITS
) -> jax.Array:
    """Return the log-probability of each target, given the hidden state that predicts it.

    Args:
        model: has the LM head.
        hidden: `[B, S, hidden_size]`.
        targets: `[B, S]` int.
        most_logits: largest number of logits at a time.

    Returns:
        `[B, S]` float32.
    """
    rows, scored, _ = hidden.shape
    # A slice has a few positions of every row, so that no row leaves its device.
    size = max(1, most_logits // (rows * model.config.vocab_size))
    if scored <= size:
        return token_logprobs(model.logits(hidden), targets)
    count = -(-scored // size)
    padding = ((0, 0), (0, count * size - scored))

    def sliced(x: jax.Array) -> jax.Array:
        return x.reshape(rows, count, size, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        return token_logprobs(model.logits(hidden), targets)

    _, found = jax.lax.scan(
        lambda carry, part: (carry, one(*part)),
        None,
        (sliced(jnp.pad(hidden, (*padding, (0, 0)))), sliced(jnp.pad(targets, padding))),
    )
    return found.swapaxes(0, 1).reshape(rows, -1)[:, :scored]
