"""The engine's passes over a batch of rows: `extend`, `decode` and `score`.

Every pass takes the weights as an argument, so two models of one shape share compiled code. A pass
returns keys and values of the new tokens only; `ixjax.generation.cache.write` stores them.

`extend` and `score` call one compiled block for each layer: compile time and code do not grow with
depth, and no weights are sliced or copied. `decode` is one program that loops over tokens.

Axes: L layers, R rows, K KV heads, D head size, V vocabulary, C candidates, n new tokens.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ixjax.generation.cache import TURN, Batch, Layer, Past
from ixjax.generation.forward import (
    Program,
    Source,
    Weights,
    apply_block,
    below,
    embed,
    logits_of,
    positions_from,
    read_before,
    read_block,
)
from ixjax.generation.sampling import SamplingState, identity_keys, sample, uniforms
from ixjax.generation.stops import FOUND, advance
from ixjax.models import Rotary


def extend(
    program: Program,
    weights: Weights,
    batch: Batch,
    tokens: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
) -> list[Layer]:
    """Read `counts[r]` of `tokens[r]` `[R, n]` in each row; return keys and values by layer."""
    x, kept, local = embed(program, weights.outer, tokens), [], program.config.is_local
    for i, layer in enumerate(weights.layers[:-1]):
        given = (program, layer, weights.rotary, batch.of(i), x, counts, adapters)
        x, new = _extend_block(*given, local=local[i])
        kept.append(new)
    last = (program, weights.layers[-1], weights.rotary, batch.lengths, x, counts, adapters)
    return [*kept, _last_keys(*last, local=local[-1])]


@functools.partial(jax.jit, static_argnames=("program", "local"))
def _extend_block(
    program: Program,
    weights: dict[str, jax.Array],
    rotary: Rotary,
    past: Past,
    x: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
    *,
    local: bool,
) -> tuple[jax.Array, Layer]:
    sources = read_before(past)
    return read_block(program, local, weights, rotary, x, past.lengths, counts, adapters, sources)


@functools.partial(jax.jit, static_argnames=("program", "local"))
def _last_keys(
    program: Program,
    weights: dict[str, jax.Array],
    rotary: Rotary,
    lengths: jax.Array,
    x: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
    *,
    local: bool,
) -> Layer:
    """Return the last block's keys and values, for which XLA computes no attention."""
    return read_block(program, local, weights, rotary, x, lengths, counts, adapters, [])[1]


class Sampled(NamedTuple):
    """The tokens that `decode` sampled.

    tokens: `[R, steps]`.
    logprobs: `[R, steps]` of each under the full softmax.
    counts: `[R]` tokens sampled, which is also the number of tokens read.
    ended: `[R]` bool, whether the last token ended the turn.
    """

    tokens: jax.Array
    logprobs: jax.Array
    counts: jax.Array
    ended: jax.Array


@functools.partial(jax.jit, static_argnames=("program", "steps"), donate_argnames="buffer")
def decode(
    program: Program,
    weights: Weights,
    batch: Batch,
    buffer: list[Layer],
    fills: jax.Array,
    adapters: jax.Array,
    state: SamplingState,
    *,
    steps: int,
) -> tuple[list[Layer], Sampled]:
    """Sample up to `steps` tokens per row, until few rows run (`state.stay`).

    Each step reads a row's last token and samples the next one. The turn buffer holds the tokens of
    a row's turn from the first column on, so attention sums in one order and a pause changes no
    bit.

    Args:
        program: the decoder.
        weights: its weights.
        batch: the tokens that the rows have read before their turns.
        buffer: see `cache.turn_buffer`; consumed.
        fills: `[R]` columns of the turn buffer in use; `fills + state.limits` is at most `TURN`.
        adapters: `[R]`.
        state: how to sample.
        steps: see above.

    Returns:
        The turn buffer and the sampled tokens.
    """
    rows, config = len(fills), program.config
    seeds = jax.vmap(jax.random.key)(state.seeds)
    keys = identity_keys(seeds, state.identities, state.parts)
    by_token = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    uniform = uniforms(by_token(keys, positions_from(state.offsets, steps)))
    turn_positions = positions_from(batch.lengths, TURN)
    penalised = jnp.any(state.rows.repetition_penalty != 1)

    def mark(seen, token):
        return seen.at[jnp.arange(rows), token].set(True)

    def unfinished(loop):
        running = jnp.sum(loop["running"])
        return (loop["step"] < steps) & (running > jnp.where(loop["step"] > 0, state.stay, 0))

    def step(loop):
        t, running = loop["step"], loop["running"]
        column = jnp.minimum(fills + t, TURN - 1)  # a row at its limit reads no more
        positions = (batch.lengths + column)[:, None]
        own = Source(None, below(column + 1, TURN), turn_positions)
        into_column = jnp.where(running, column, TURN)
        x, buffer = embed(program, weights.outer, loop["token"][:, None]), []
        for i, (layer, held) in enumerate(zip(weights.layers, loop["buffer"], strict=True)):
            # Write before reading: otherwise XLA copies the buffer in every step.
            x, kept = apply_block(
                program,
                config.is_local[i],
                layer,
                weights.rotary,
                x,
                positions,
                adapters,
                [*read_before(batch.of(i)), own],
                functools.partial(_put, held, column=into_column),
            )
            buffer.append(kept)
        logits = logits_of(program, weights.outer, x[:, 0])
        drawn_by = jax.lax.dynamic_index_in_dim(uniform, t, axis=1, keepdims=False)
        token, logprob = sample(logits, drawn_by, state.rows, loop["seen"])
        stop = advance(state.stop_tables, state.stop_sets, loop["stop"], token)
        ends = jnp.any(token[:, None] == state.end_ids, axis=-1) | (stop == FOUND)
        counts = loop["counts"] + running
        into = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t)
        return {
            "step": t + 1,
            "running": running & ~ends & (counts < state.limits),
            "token": token,
            "tokens": into(loop["tokens"], token[:, None], axis=1),
            "logprobs": into(loop["logprobs"], logprob[:, None], axis=1),
            "counts": counts,
            "ended": loop["ended"] | (running & ends),
            "stop": jnp.where(running, stop, loop["stop"]),
            "seen": jax.lax.cond(penalised, mark, lambda seen, _: seen, loop["seen"], token),
            "buffer": buffer,
        }

    loop = jax.lax.while_loop(
        unfinished,
        step,
        {
            "step": jnp.int32(0),
            "running": jnp.asarray(state.limits) > 0,
            "token": jnp.asarray(state.tokens),
            "tokens": jnp.zeros((rows, steps), jnp.int32),
            "logprobs": jnp.zeros((rows, steps), jnp.float32),
            "counts": jnp.zeros(rows, jnp.int32),
            "ended": jnp.zeros(rows, bool),
            "stop": jnp.asarray(state.stop_states),
            "seen": state.seen,
            "buffer": buffer,
        },
    )
    return loop["buffer"], Sampled(*(loop[name] for name in Sampled._fields))


def _put(buffer: Layer, one: Layer, *, column: jax.Array) -> Layer:
    """Return a turn buffer with one more token at `column[r]`; a column out of range is dropped."""
    rows = jnp.arange(len(column))
    return Layer(
        buffer.keys.at[rows, :, :, column].set(one.keys[..., 0], mode="drop"),
        buffer.values.at[rows, :, column].set(one.values[:, :, 0], mode="drop"),
    )


def score(
    program: Program,
    weights: Weights,
    batch: Batch,
    prefix: jax.Array,
    prefix_counts: jax.Array,
    tails: jax.Array,
    tail_counts: jax.Array,
    adapters: jax.Array,
) -> jax.Array:
    """Return `[R, C]` log-probabilities of `tails` `[C, R, n]` after `prefix` `[R, m]`."""
    x, y = embed(program, weights.outer, prefix), embed(program, weights.outer, tails)
    counts = (prefix_counts, tail_counts)
    for i, (layer, local) in enumerate(zip(weights.layers, program.config.is_local, strict=True)):
        given = (program, layer, weights.rotary, batch.of(i), x, y)
        x, y = _score_block(*given, *counts, adapters, local=local)
    return _logprobs(program, weights.outer, x, y, tails, *counts)


@functools.partial(jax.jit, static_argnames=("program", "local"))
def _score_block(
    program: Program,
    weights: dict[str, jax.Array],
    rotary: Rotary,
    past: Past,
    x: jax.Array,
    y: jax.Array,
    prefix_counts: jax.Array,
    tail_counts: jax.Array,
    adapters: jax.Array,
    *,
    local: bool,
) -> tuple[jax.Array, jax.Array]:
    """Apply one block to prefixes `[R, m, hidden]`, then to each candidate `[C, R, n, hidden]`."""
    read = functools.partial(read_block, program, local, weights, rotary)
    sources, size = read_before(past), x.shape[1]
    x, new = read(x, past.lengths, prefix_counts, adapters, sources)
    prefix = Source(new, below(prefix_counts, size), positions_from(past.lengths, size))
    first = past.lengths + prefix_counts

    def one(candidate):
        y, counts = candidate
        return read(y, first, counts, adapters, [*sources, prefix])[0]

    return x, jax.lax.map(one, (y, tail_counts))


@functools.partial(jax.jit, static_argnames="program")
def _logprobs(
    program: Program,
    outer: nnx.State,
    x: jax.Array,
    y: jax.Array,
    tails: jax.Array,
    prefix_counts: jax.Array,
    tail_counts: jax.Array,
) -> jax.Array:
    """Return the sums of the tails' log-probabilities from the outputs of the last block."""
    first_logits = logits_of(program, outer, _last(x, prefix_counts))  # [R, V]

    def one(candidate):
        y, tokens, counts = candidate
        # Token i is predicted from the prefix and tokens 0..i-1.
        later = logits_of(program, outer, y[:, :-1])
        logits = jnp.concatenate([first_logits[:, None], later], axis=1)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        taken = jnp.take_along_axis(logprobs, tokens[:, :, None], axis=-1)[:, :, 0]
        given = jnp.arange(tokens.shape[1])[None] < counts[:, None]
        return jnp.sum(jnp.where(given, taken, 0.0), -1)

    return jax.lax.map(one, (y, tails, tail_counts)).T


def _last(x: jax.Array, counts: jax.Array) -> jax.Array:
    """Return `[R, hidden]` the state of each row's last new token."""
    return jnp.take_along_axis(x, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
