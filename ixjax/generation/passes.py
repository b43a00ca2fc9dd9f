"""The engine's compiled functions: forward passes over a batch of rows.

Every pass takes the weights as an argument, so two models of one shape share compiled code. A pass
returns keys and values of the new tokens only; `ixjax.generation.cache.write` stores them.

Axes: L layers, R rows, K KV heads, D head size, V vocabulary, C candidates, n new tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ixjax.generation.attention import Implementation, attend
from ixjax.generation.cache import TURN, Batch, Layer, in_place, stacked
from ixjax.generation.sampling import SamplingState, identity_keys, sample, uniforms
from ixjax.generation.stops import FOUND, advance
from ixjax.models import (
    ModelConfig,
    Rotary,
    Transformer,
    abstract_params,
    in_window,
    rotary_angles,
    select,
    unstack,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A model without its weights: the static argument of every pass.

    config: of the decoder.
    graph: its NNX graph.
    attention: the kernel.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    attention: Implementation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's parameters, and tables that depend on the model alone.

    params: of the decoder; without those of its layers if `layers` has them.
    layers: the parameters of each layer, for passes that do not scan over layers: a slice of
        stacked weights would be copied in every pass. If the model is also held elsewhere, its
        layers are in memory twice.
    rotary: angles of all positions, `[T, D/2]`: XLA's CPU backend would recompute the sines in
        each layer, for each head.
    """

    params: nnx.State
    layers: list[nnx.State] | None
    rotary: Rotary

    @classmethod
    def of(cls, model: Transformer, *, unstacked: bool, positions: int) -> Weights:
        """Return a model's weights in the form that passes take, for `positions` positions."""
        params, layers = nnx.state(model), None
        if unstacked:
            _, params = nnx.split_state(params, _of_layers, ...)
            layers = unstack(nnx.state(model.layers), model.config.num_layers)
        rotary = rotary_angles(model.config, jnp.arange(positions)[None])
        return cls(params, layers, jax.tree.map(lambda x: x[0, 0], rotary))


def _of_layers(path: tuple, _: object) -> bool:
    return path[0] == "layers"


def _model(program: Program, weights: Weights) -> Transformer:
    """Return the decoder; if layers are unstacked, it has their shapes without values."""
    if weights.layers is None:
        return nnx.merge(program.graph, weights.params)
    layers, _ = nnx.split_state(abstract_params(program.config), _of_layers, ...)
    return nnx.merge(program.graph, weights.params, layers)


class Source(NamedTuple):
    """Keys and values of all layers that new tokens attend to: a `Piece` per layer.

    stored: a `Layer` for each of the model's layers, in a list or stacked; with a table, the pool.
    visible: `[R, 1 or n, m]` bool, to each row's n new tokens.
    positions: `[R or 1, m]` of the keys in their rows.
    table: see `cache.Batch`.
    """

    stored: Any
    visible: jax.Array  # [R, 1 or n, m]
    positions: jax.Array  # [R, m]
    table: jax.Array | None = None


def _read(
    program: Program,
    weights: Weights,
    tokens: jax.Array,
    first: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
    sources: list[Source],
) -> tuple[jax.Array, Any]:
    """Run new tokens `[R, n]` that attend to earlier tokens and to themselves.

    Args:
        program: the decoder.
        weights: its weights.
        tokens: `[R, n]`, of which row r has `counts[r]`.
        first: `[R]` position of each row's first new token.
        counts: `[R]` new tokens of each row.
        adapters: `[R]` the adapter of each row.
        sources: keys and values of earlier tokens, in order.

    Returns:
        Hidden states `[R, n, hidden]`; the `Layer` of the new tokens for each of the model's
        layers, in a list or stacked.
    """
    positions = _positions(first, tokens.shape[1])
    new = Source(None, _causal(counts, tokens.shape[1]), positions)
    return _run(program, weights, tokens, positions, adapters, [*sources, new], lambda _, new: new)


def _run(
    program: Program,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    adapters: jax.Array,
    sources: list[Source],
    written: Callable[[Any, Layer], Layer],
) -> tuple[jax.Array, Any]:
    """Run tokens `[R, n]` at positions `[R, n]`.

    The last source holds the new tokens. For each layer, `written(stored, new)` takes its stored
    `Layer` and that of the new tokens, and returns the `Layer` to attend to and to keep.
    """
    config, depth = program.config, program.config.num_layers
    near = [source.visible & in_window(config, positions, source.positions) for source in sources]
    layers, stored = weights.layers, [source.stored for source in sources]
    for i, source in enumerate(sources):
        if source.table is not None:  # the pool is indexed by the layer's number
            stored[i] = jnp.arange(depth) if layers is None else list(range(depth))

    def attention(stored, local, q, k, v):
        masks = [select(local, a, source.visible) for a, source in zip(near, sources, strict=True)]
        kept = written(stored[-1], Layer(k.swapaxes(2, 3), v))
        layers: list[Any] = [*stored[:-1], kept]
        held = [
            layer if source.table is None else in_place(source.stored, layer, source.table)
            for layer, source in zip(layers, sources, strict=True)
        ]
        found = [(layer.keys, layer.values, mask) for layer, mask in zip(held, masks, strict=True)]
        return attend(program.attention, q, found, softcap=config.attention_softcap), kept

    if layers is not None:
        stored = [[held and held[i] for held in stored] for i in range(depth)]
    rotary = jax.tree.map(lambda table: table[positions][:, None], weights.rotary)
    return _model(program, weights).run(
        tokens, positions, attention, stored, layers=layers, adapters=adapters, rotary=rotary
    )


def _past(batch: Batch) -> list[Source]:
    """Return the tokens that a batch has read: one source, or none before the first token."""
    if batch.past is None:
        return []
    span = jnp.arange(batch.span)[None]
    return [Source(batch.past, _below(batch.lengths, batch.span), span, batch.table)]


def _positions(first: jax.Array, count: int) -> jax.Array:
    """Return `[R, count]` positions from `first` `[R]` on."""
    return first[:, None] + jnp.arange(count)[None, :]


def _below(counts: jax.Array, size: int) -> jax.Array:
    """Return `[R, 1, size]` bool: the first `counts[r]` columns of each row."""
    return (jnp.arange(size)[None, :] < counts[:, None])[:, None, :]


def _causal(counts: jax.Array, size: int) -> jax.Array:
    """Return `[R, size, size]` bool: each new token and those before it, without padding."""
    order = jnp.tril(jnp.ones((size, size), bool))[None]
    return order & _below(counts, size)


def _head(program: Program, weights: Weights, hidden: jax.Array) -> jax.Array:
    """Return logits; a single row is doubled: XLA's kernel for one row differs in the last bits."""
    if hidden.shape[:-1] == (1,):
        return _model(program, weights).logits(jnp.concatenate([hidden, hidden]))[:1]
    return _model(program, weights).logits(hidden)


def _last(hidden: jax.Array, counts: jax.Array) -> jax.Array:
    """Return `[R, hidden]` the state of each row's last new token."""
    return jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames="program")
def extend(
    program: Program,
    weights: Weights,
    batch: Batch,
    tokens: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
) -> Layer:
    """Read `counts[r]` of `tokens[r]` `[R, n]` in each row; return their keys and values."""
    return stacked(
        _read(program, weights, tokens, batch.lengths, counts, adapters, _past(batch))[1]
    )


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
    buffer: Any,
    fills: jax.Array,
    adapters: jax.Array,
    state: SamplingState,
    *,
    steps: int,
) -> tuple[Any, Sampled]:
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
    rows, past = len(fills), _past(batch)
    seeds = jax.vmap(jax.random.key)(state.seeds)
    keys = identity_keys(seeds, state.identities, state.parts)
    by_token = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    uniform = uniforms(by_token(keys, _positions(state.offsets, steps)))
    turn_positions = _positions(batch.lengths, TURN)
    penalised = jnp.any(state.rows.repetition_penalty != 1)

    def mark(seen, token):
        return seen.at[jnp.arange(rows), token].set(True)

    def unfinished(loop):
        running = jnp.sum(loop["running"])
        return (loop["step"] < steps) & (running > jnp.where(loop["step"] > 0, state.stay, 0))

    def step(loop):
        t, running = loop["step"], loop["running"]
        column = jnp.minimum(fills + t, TURN - 1)  # a row at its limit reads no more
        turn = Source(loop["buffer"], _below(column + 1, TURN), turn_positions)
        # Write before reading: otherwise XLA copies the buffer in every step.
        hidden, buffer = _run(
            program,
            weights,
            loop["token"][:, None],
            (batch.lengths + column)[:, None],
            adapters,
            [*past, turn],
            functools.partial(_put, column=jnp.where(running, column, TURN)),
        )
        logits = _head(program, weights, hidden[:, 0])
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


@functools.partial(jax.jit, static_argnames="program")
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
    past = _past(batch)
    hidden, read = _read(program, weights, prefix, batch.lengths, prefix_counts, adapters, past)
    first_logits = _head(program, weights, _last(hidden, prefix_counts))  # [R, V]
    size = prefix.shape[1]
    sources = [*past, Source(read, _below(prefix_counts, size), _positions(batch.lengths, size))]

    def one(candidate):
        tokens, counts = candidate  # [R, n], [R]
        first = batch.lengths + prefix_counts
        hidden, _ = _read(program, weights, tokens, first, counts, adapters, sources)
        # Token i is predicted from the prefix and tokens 0..i-1.
        later = _head(program, weights, hidden[:, :-1])
        logits = jnp.concatenate([first_logits[:, None], later], axis=1)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        taken = jnp.take_along_axis(logprobs, tokens[:, :, None], axis=-1)[:, :, 0]
        given = jnp.arange(tokens.shape[1])[None] < counts[:, None]
        return jnp.sum(jnp.where(given, taken, 0.0), -1)

    return jax.lax.map(one, (tails, tail_counts)).T
