"""Log-probabilities of the scored tokens of a batch, the LM head computed for these alone.

`[B, T, V]` logits never exist: hidden states are gathered where the next token is scored, and many
of them go through the head in pieces, of which the gradient computes the logits anew.

Axes: B rows, T positions, S scored positions, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ixjax.models import Remat, Transformer
from ixjax.training.batching import Rows
from ixjax.training.objectives import token_logprobs

MOST_LOGITS = 2**26  # of all rows at once: 256 MB in float32, over all devices


def scored_logprobs(model: Transformer, rows: Rows, *, remat: Remat = "none") -> jax.Array:
    """Log-probability of each scored token given all that it sees.

    Args:
        model: any decoder.
        rows: fields `[B, T]` and `[B, S]`.
        remat: what of a block is computed again for its gradient instead of kept.

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
    """Log-probability of each target, given the hidden state that predicts it.

    Args:
        model: its LM head is used.
        hidden: `[B, S, hidden_size]`.
        targets: `[B, S]` int.
        most_logits: that exist at once.

    Returns:
        `[B, S]` float32.
    """
    rows, scored, _ = hidden.shape
    # Pieces of a few positions of every row: rows stay on the devices that they are on.
    size = max(1, most_logits // (rows * model.config.vocab_size))
    if scored <= size:
        return token_logprobs(model.logits(hidden), targets)
    pieces = -(-scored // size)
    padding = ((0, 0), (0, pieces * size - scored))

    def in_pieces(x: jax.Array) -> jax.Array:
        return x.reshape(rows, pieces, size, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        return token_logprobs(model.logits(hidden), targets)

    _, found = jax.lax.scan(
        lambda carry, piece: (carry, one(*piece)),
        None,
        (in_pieces(jnp.pad(hidden, (*padding, (0, 0)))), in_pieces(jnp.pad(targets, padding))),
    )
    return found.swapaxes(0, 1).reshape(rows, -1)[:, :scored]
