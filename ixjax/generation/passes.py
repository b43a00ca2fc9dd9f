"""The engine's compiled functions: one forward pass on top of what rows of a cache hold.

Every function takes the parameters as an argument, so two models of one shape share their compiled
code. `span` is how many columns of the cache attention reads.

Axes: L layers, S cache rows, K KV heads, T columns, D head size, V vocabulary, C candidates.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from ixjax.generation import cache as kv
from ixjax.generation.sampling import RowSampling, identity_keys, sample
from ixjax.models import (
    FULL_UNROLL_LAYERS,
    attend_pieces,
    in_window,
    select,
    unstack,
)


def _causal(counts: jax.Array, size: int) -> jax.Array:
    """`[S, size, size]` bool: earlier new tokens and itself, padding excluded."""
    order = jnp.tril(jnp.ones((size, size), bool))[None]
    return order & (jnp.arange(size)[None, :] < counts[:, None])[:, None, :]


class Piece(NamedTuple):
    """Keys and values that were read before, and who may see them.

    stored: (keys, values), each `[L, S, K, m, D]`.
    visible: `[S, 1, m]` bool.
    positions: `[S or 1, m]` of the tokens in their rows.
    """

    stored: Any
    visible: jax.Array  # [S, 1, m]
    positions: jax.Array  # [S, m]


def _read(model, tokens, first, counts, adapters, pieces, layers=None):
    """Run new tokens `[S, n]` on top of pieces of a cache.

    Args:
        model: the decoder.
        tokens: `[S, n]`, of which row s has `counts[s]`.
        first: `[S]` position of each row's first new token.
        counts: `[S]`.
        adapters: `[S]` the adapter of each row.
        pieces: a sequence of `Piece`.
        layers: see `Transformer.run`; keys and values are then lists of L pairs.

    Returns:
        Hidden states `[S, n, hidden]`; keys and values of the new tokens.
    """
    config = model.config
    positions = _behind(first, tokens.shape[1])
    causal = _causal(counts, tokens.shape[1])
    visible = [*(piece.visible for piece in pieces), causal]
    near = [
        seen & in_window(config, positions, keys)
        for seen, keys in zip(visible, [*(p.positions for p in pieces), positions], strict=True)
    ]

    def attend(layer, local, q, k, v):
        masks = [select(local, a, b) for a, b in zip(near, visible, strict=True)]
        read = [(*kv, mask) for kv, mask in zip([*layer, (k, v)], masks, strict=True)]
        return attend_pieces(q, read, softcap=config.attention_softcap), (k, v)

    stored = [piece.stored for piece in pieces]
    cache = stored if layers is None else list(zip(*stored, strict=True))
    return model.run(tokens, positions, attend, cache, layers=layers, adapters=adapters)


def _past(cache: kv.KVCache, span: int) -> list[Piece]:
    """The first `span` columns of a cache as pieces for `_read`: one, or none of an empty cache."""
    if not span:
        return []
    stored = (cache.keys[:, :, :, :span], cache.values[:, :, :, :span])
    return [Piece(stored, _below(cache.lengths, span), jnp.arange(span)[None])]


def _behind(first: jax.Array, count: int) -> jax.Array:
    """`[S, count]` positions from `first` `[S]` on."""
    return first[:, None] + jnp.arange(count)[None, :]


def _below(counts: jax.Array, size: int) -> jax.Array:
    """`[S, 1, size]` bool: the first `counts[s]` columns of each row."""
    return (jnp.arange(size)[None, :] < counts[:, None])[:, None, :]


@functools.partial(jax.jit, static_argnames=("graph", "span"), donate_argnames=("cache", "logits"))
def extend(graph, params, cache, logits, tokens, counts, adapters, *, span):
    """Read `counts[s]` of `tokens[s]` `[S, n]` into each row; its logits follow the last."""
    model = nnx.merge(graph, params)
    hidden, (keys, values) = _read(
        model, tokens, cache.lengths, counts, adapters, _past(cache, span)
    )
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = jnp.where((counts > 0)[:, None], model.logits(last), logits)
    return kv.write(cache, keys, values, counts), logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """How `decode` draws in each row.

    seed: typed key of the run.
    identities: `[S, k]` uint32, what each row is.
    offsets: `[S]` int32, index in its turn of the first token that is drawn now.
    limits: `[S]` int32, tokens drawn at most; 0 for a row that draws none.
    end_ids: `[S, E]` int32 tokens that end the row's turn, filled up with -1.
    rows: the settings of each row.
    seen: `[S, V]` bool, tokens that the row holds; read where a repetition penalty is not 1.
    """

    seed: jax.Array
    identities: ArrayLike  # [S, k]
    offsets: ArrayLike  # [S]
    limits: ArrayLike  # [S]
    end_ids: ArrayLike  # [S, E]
    rows: RowSampling
    seen: ArrayLike  # [S, V]


@functools.partial(
    jax.jit, static_argnames=("graph", "span", "steps"), donate_argnames=("cache", "logits")
)
def decode(graph, params, cache, logits, adapters, draws, *, span, steps):
    """Sample up to `steps` tokens per row, until none runs.

    Returns:
        The cache; the logits `[S, V]` behind each row that still runs; tokens, log-probabilities
        `[S, steps]`; counts of sampled and of kept (read) tokens `[S]`.
    """
    model = nnx.merge(graph, params)
    rows, depth = cache.rows, model.config.num_layers
    keys = identity_keys(draws.seed, draws.identities)
    # What the loop reads but does not change is sliced once, in front of it.
    few = depth <= FULL_UNROLL_LAYERS
    apart = functools.partial(unstack, layers=depth) if few else lambda tree: tree
    layers = unstack(nnx.state(model.layers), depth) if few else None
    past = [piece._replace(stored=apart(piece.stored)) for piece in _past(cache, span)]
    side_positions = _behind(cache.lengths, steps)
    empty = jnp.zeros((*cache.keys.shape[:3], steps, cache.keys.shape[4]), cache.keys.dtype)

    penalised = jnp.any(draws.rows.repetition_penalty != 1)

    def mark(seen, token):
        return seen.at[jnp.arange(rows), token].set(True)

    def unfinished(state):
        return (state["step"] < steps) & jnp.any(state["running"])

    def step(state):
        t, running = state["step"], state["running"]
        draw_keys = jax.vmap(jax.random.fold_in)(keys, draws.offsets + t)
        token, logprob = sample(state["logits"], draw_keys, draws.rows, state["seen"])
        ends = jnp.any(token[:, None] == draws.end_ids, axis=-1)
        read = running & ~ends
        counts = state["counts"] + running
        hidden, new = _read(
            model,
            token[:, None],
            cache.lengths + t,
            jnp.ones(rows, jnp.int32),
            adapters,
            [*past, Piece(state["new"], _below(jnp.full(rows, t), steps), side_positions)],
            layers,
        )
        into = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t)
        return {
            "step": t + 1,
            "running": read & (counts < draws.limits),
            # A row that is stopped by its limit keeps its logits, to be decoded on.
            "logits": jnp.where(read[:, None], model.logits(hidden[:, 0]), state["logits"]),
            "tokens": into(state["tokens"], token[:, None], axis=1),
            "logprobs": into(state["logprobs"], logprob[:, None], axis=1),
            "counts": counts,
            "kept": state["kept"] + read,
            "seen": jax.lax.cond(penalised, mark, lambda seen, _: seen, state["seen"], token),
            "new": jax.tree.map(lambda side, k: into(side, k, axis=-2), state["new"], new),
        }

    state = jax.lax.while_loop(
        unfinished,
        step,
        {
            "step": jnp.int32(0),
            "running": draws.limits > 0,
            "logits": logits,
            "tokens": jnp.zeros((rows, steps), jnp.int32),
            "logprobs": jnp.zeros((rows, steps), jnp.float32),
            "counts": jnp.zeros(rows, jnp.int32),
            "kept": jnp.zeros(rows, jnp.int32),
            "seen": draws.seen,
            "new": apart((empty, empty)),
        },
    )
    new = state["new"]
    new_keys, new_values = jax.tree.map(lambda *parts: jnp.stack(parts), *new) if few else new
    cache = kv.write(cache, new_keys, new_values, state["kept"])
    sampled = (state["tokens"], state["logprobs"], state["counts"], state["kept"])
    return cache, state["logits"], sampled


@functools.partial(jax.jit, static_argnames=("graph", "span"))
def score(graph, params, cache, prefix, prefix_counts, tails, tail_counts, adapters, *, span):
    """`[S, C]` log-probabilities of `tails` `[C, S, n]` behind `prefix` `[S, m]`."""
    model = nnx.merge(graph, params)
    past = _past(cache, span)
    hidden, read = _read(model, prefix, cache.lengths, prefix_counts, adapters, past)
    last = jnp.take_along_axis(hidden, (prefix_counts - 1)[:, None, None], axis=1)[:, 0]
    first_logits = model.logits(last)  # [S, V]
    size = prefix.shape[1]
    pieces = [*past, Piece(read, _below(prefix_counts, size), _behind(cache.lengths, size))]

    def one(candidate):
        tokens, counts = candidate  # [S, n], [S]
        hidden, _ = _read(model, tokens, cache.lengths + prefix_counts, counts, adapters, pieces)
        # Token i is predicted by what stands before it: the prefix, then tokens 0..i-1.
        logits = jnp.concatenate([first_logits[:, None], model.logits(hidden[:, :-1])], axis=1)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        taken = jnp.take_along_axis(logprobs, tokens[:, :, None], axis=-1)[:, :, 0]
        given = jnp.arange(tokens.shape[1])[None] < counts[:, None]
        return jnp.sum(jnp.where(given, taken, 0.0), -1)

    return jax.lax.map(one, (tails, tail_counts)).T


@functools.partial(jax.jit, static_argnames=("graph", "span"), donate_argnames=("cache", "logits"))
def extend_rows(graph, params, cache, logits, rows, number, tokens, counts, adapters, *, span):
    """As `extend`, of rows `rows[i]` `[R]` alone, for each i below `number`."""
    model = nnx.merge(graph, params)
    lengths = cache.lengths[rows]
    taken = tuple(kv.take_rows(x, rows, span=span) for x in (cache.keys, cache.values))
    past = [Piece(taken, _below(lengths, span), jnp.arange(span)[None])] if span else []
    hidden, (keys, values) = _read(model, tokens, lengths, counts, adapters, past)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    # Rows behind `number` are padding: out of range, so dropped.
    target = jnp.where(jnp.arange(rows.shape[0]) < number, rows, cache.rows)
    logits = logits.at[target].set(model.logits(last), mode="drop")
    return kv.write_rows(cache, rows, keys, values, counts, number), logits


@functools.partial(jax.jit, static_argnames="span")
def fork(cache, logits, rows, *, span):
    """See `ixjax.generation.cache.fork`."""
    return kv.fork(cache, rows, span=span), logits[rows]


@functools.partial(jax.jit, static_argnames="span", donate_argnames=("cache", "logits"))
def copy_rows(cache, logits, rows, source, source_logits, source_rows, number, *, span):
    """See `ixjax.generation.cache.copy_rows`."""
    target = jnp.where(jnp.arange(rows.shape[0]) < number, rows, cache.rows)
    logits = logits.at[target].set(source_logits[source_rows], mode="drop")
    return kv.copy_rows(cache, rows, source, source_rows, number, span=span), logits
