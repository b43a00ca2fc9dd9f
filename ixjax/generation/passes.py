"""The engine's compiled functions: forward passes over a batch of rows copied out of a cache.

Every function takes the weights as an argument, so two models of one shape share their compiled
code, and knows nothing of the cache that its rows came from. What it returns of keys and values is
new tokens' alone; `ixjax.generation.cache.append` writes them behind their rows.

Axes: L layers, R rows, K KV heads, D head size, V vocabulary, C candidates.
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
from ixjax.generation.cache import SIDE, Batch, Layer
from ixjax.generation.sampling import RowSampling, identity_keys, sample, uniforms
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
    """What is known of a model while its passes are compiled: a static argument.

    config: of the decoder.
    graph: the same as NNX has it.
    attention: which implementation.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    attention: Implementation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's parameters, and what else a pass needs that depends on the model alone.

    params: of the decoder; without those of its layers where these were taken apart.
    layers: the layers' one by one, where passes don't scan over them. Slices of stacked weights
        would be copied at every pass. Taken apart once they are not, but a model that someone else
        holds, too, has its layers there twice.
    rotary: angles of all positions, `[T, D/2]`: XLA's CPU backend would compute the sines of a pass
        anew in each layer, for each head.
    """

    params: nnx.State
    layers: list[nnx.State] | None
    rotary: Rotary

    @classmethod
    def of(cls, model: Transformer, *, apart: bool, positions: int) -> Weights:
        """The weights of a model as the passes take them, for so many positions."""
        params, layers = nnx.state(model), None
        if apart:
            _, params = nnx.split_state(params, _of_layers, ...)
            layers = unstack(nnx.state(model.layers), model.config.num_layers)
        rotary = rotary_angles(model.config, jnp.arange(positions)[None])
        return cls(params, layers, jax.tree.map(lambda x: x[0, 0], rotary))


def _of_layers(path: tuple, _: object) -> bool:
    return path[0] == "layers"


def _model(program: Program, weights: Weights) -> Transformer:
    """The decoder. Of layers that were taken apart it knows the shapes alone."""
    if weights.layers is None:
        return nnx.merge(program.graph, weights.params)
    layers, _ = nnx.split_state(abstract_params(program.config), _of_layers, ...)
    return nnx.merge(program.graph, weights.params, layers)


class Piece(NamedTuple):
    """Keys and values, and who may see them.

    stored: a `Layer` for each of the model's layers, in a list or stacked.
    visible: `[R, 1 or n, m]` bool, by each row's n new tokens.
    positions: `[R or 1, m]` of the tokens in their rows.
    """

    stored: Any
    visible: jax.Array  # [R, 1 or n, m]
    positions: jax.Array  # [R, m]


def _read(
    program: Program,
    weights: Weights,
    tokens: jax.Array,
    first: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
    pieces: list[Piece],
) -> tuple[jax.Array, Any]:
    """Run new tokens `[R, n]` on top of pieces that were read before.

    Args:
        program: the decoder.
        weights: its weights.
        tokens: `[R, n]`, of which row r has `counts[r]`.
        first: `[R]` position of each row's first new token.
        counts: `[R]`.
        adapters: `[R]` the adapter of each row.
        pieces: what stands before the new tokens, from the left to the right.

    Returns:
        Hidden states `[R, n, hidden]`; the `Layer` of the new tokens for each of the model's
        layers, in a list or stacked.
    """
    positions = _behind(first, tokens.shape[1])
    new = Piece(None, _causal(counts, tokens.shape[1]), positions)
    return _run(program, weights, tokens, positions, adapters, [*pieces, new], lambda _, new: new)


def _run(
    program: Program,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    adapters: jax.Array,
    pieces: list[Piece],
    written: Callable[[Any, Layer], Layer],
) -> tuple[jax.Array, Any]:
    """Run tokens `[R, n]` at positions `[R, n]`, which see pieces and then themselves.

    The last piece is where the new tokens are: `written` is given what is stored there of a layer
    and the `Layer` of the new tokens, and gives what is read of both and kept in its place.
    """
    config = program.config
    near = [piece.visible & in_window(config, positions, piece.positions) for piece in pieces]

    def attention(stored, local, q, k, v):
        masks = [select(local, a, piece.visible) for a, piece in zip(near, pieces, strict=True)]
        kept = written(stored[-1], Layer(k.swapaxes(2, 3), v))
        read = [
            (layer.keys, layer.values, mask)
            for layer, mask in zip([*stored[:-1], kept], masks, strict=True)
        ]
        return attend(program.attention, q, read, softcap=config.attention_softcap), kept

    layers, stored = weights.layers, [piece.stored for piece in pieces]
    if layers is not None:
        stored = [[piece and piece[i] for piece in stored] for i in range(len(layers))]
    rotary = jax.tree.map(lambda table: table[positions][:, None], weights.rotary)
    return _model(program, weights).run(
        tokens, positions, attention, stored, layers=layers, adapters=adapters, rotary=rotary
    )


def _past(batch: Batch, lengths: jax.Array | None = None) -> list[Piece]:
    """What a batch holds, up to `lengths`, as pieces: one, or none where it holds nothing."""
    if batch.past is None:
        return []
    span, lengths = jnp.arange(batch.span)[None], batch.lengths if lengths is None else lengths
    return [Piece(batch.past, _below(lengths, batch.span), span)]


def _behind(first: jax.Array, count: int) -> jax.Array:
    """`[R, count]` positions from `first` `[R]` on."""
    return first[:, None] + jnp.arange(count)[None, :]


def _below(counts: jax.Array, size: int) -> jax.Array:
    """`[R, 1, size]` bool: the first `counts[r]` columns of each row."""
    return (jnp.arange(size)[None, :] < counts[:, None])[:, None, :]


def _causal(counts: jax.Array, size: int) -> jax.Array:
    """`[R, size, size]` bool: earlier new tokens and itself, padding excluded."""
    order = jnp.tril(jnp.ones((size, size), bool))[None]
    return order & _below(counts, size)


def _stacked(new: Any) -> Layer:
    """Layers in a list, or stacked already, as one `Layer` of `[L, ...]`."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *new) if isinstance(new, list) else new


def _head(program: Program, weights: Weights, hidden: jax.Array) -> jax.Array:
    """Logits; of a single row by the kernel that more rows have, whose last bits are others."""
    if hidden.shape[:-1] == (1,):
        return _model(program, weights).logits(jnp.concatenate([hidden, hidden]))[:1]
    return _model(program, weights).logits(hidden)


def _last(hidden: jax.Array, counts: jax.Array) -> jax.Array:
    """`[R, hidden]` the state of each row's last new token."""
    return jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames="program")
def extend(
    program: Program,
    weights: Weights,
    batch: Batch,
    tokens: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
) -> tuple[Layer, jax.Array]:
    """Read `counts[r]` of `tokens[r]` `[R, n]` behind each row: what is new, and the logits."""
    hidden, new = _read(program, weights, tokens, batch.lengths, counts, adapters, _past(batch))
    logits = _head(program, weights, _last(hidden, counts))
    return _stacked(new), jnp.where((counts > 0)[:, None], logits, batch.logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """How `decode` draws in each row.

    seeds: `[R]` uint32 of the run.
    identities: `[R, k]` uint32, what each row is.
    offsets: `[R]` int32, index in its turn of the first token that is drawn now.
    limits: `[R]` int32, tokens drawn at most; 0 for a row that draws none.
    end_ids: `[R, E]` int32 tokens that end the row's turn, filled up with -1.
    rows: the settings of each row.
    seen: `[R, V]` bool, tokens that the row holds; read where a repetition penalty is not 1.
    stop_tables: `[A, Q, V]` see `ixjax.generation.stops`.
    stop_sets: `[R]` int32 which of them.
    stop_states: `[R]` int32 where each row's turn stands in it.
    stay: `[]` int32; decoding pauses once no more rows than this still run.
    """

    seeds: jax.Array  # [R]
    identities: jax.Array  # [R, k]
    offsets: jax.Array  # [R]
    limits: jax.Array  # [R]
    end_ids: jax.Array  # [R, E]
    rows: RowSampling
    seen: jax.Array  # [R, V]
    stop_tables: jax.Array  # [A, Q, V]
    stop_sets: jax.Array  # [R]
    stop_states: jax.Array  # [R]
    stay: jax.Array  # []


class Sampled(NamedTuple):
    """What `decode` drew.

    tokens: `[R, steps]`.
    logprobs: `[R, steps]` of each under the full softmax.
    counts: `[R]` tokens drawn.
    kept: `[R]` of them read into the row: all but the one that ended its turn.
    """

    tokens: jax.Array
    logprobs: jax.Array
    counts: jax.Array
    kept: jax.Array


@functools.partial(jax.jit, static_argnames=("program", "steps"), donate_argnames="side")
def decode(
    program: Program,
    weights: Weights,
    batch: Batch,
    side: Any,
    starts: jax.Array,
    fills: jax.Array,
    adapters: jax.Array,
    draws: Draws,
    *,
    steps: int,
) -> tuple[Any, jax.Array, Sampled]:
    """Sample up to `steps` tokens per row, until few rows run (`draws.stay`).

    A row's turn stands in the side buffer, from its first column on, wherever decoding paused: so
    what is attended to is added up in one order, and pauses change no bit.

    Args:
        program: the decoder.
        weights: its weights.
        batch: what the rows have read; behind `starts[r]` tokens the side buffer has the rest.
        side: see `cache.side_buffer`; consumed.
        starts: `[R]`.
        fills: `[R]` columns of the side buffer that hold something.
        adapters: `[R]`.
        draws: a row that fills its part of the side buffer draws no more.
        steps: see above.

    Returns:
        The side buffer; the logits `[R, V]` behind each row's last token; what was sampled.
    """
    rows, past = len(starts), _past(batch, starts)
    limits = jnp.minimum(draws.limits, SIDE - fills)
    keys = identity_keys(jax.vmap(jax.random.key)(draws.seeds), draws.identities)
    by_token = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    uniform = uniforms(by_token(keys, _behind(draws.offsets, steps)))
    side_positions = _behind(starts, SIDE)
    penalised = jnp.any(draws.rows.repetition_penalty != 1)

    def mark(seen, token):
        return seen.at[jnp.arange(rows), token].set(True)

    def unfinished(state):
        running = jnp.sum(state["running"])
        return (state["step"] < steps) & (running > jnp.where(state["step"] > 0, draws.stay, 0))

    def step(state):
        t, running = state["step"], state["running"]
        drawn_by = jax.lax.dynamic_index_in_dim(uniform, t, axis=1, keepdims=False)
        token, logprob = sample(state["logits"], drawn_by, draws.rows, state["seen"])
        stop = advance(draws.stop_tables, draws.stop_sets, state["stop"], token)
        ends = jnp.any(token[:, None] == draws.end_ids, axis=-1) | (stop == FOUND)
        read = running & ~ends
        counts = state["counts"] + running
        column = jnp.minimum(fills + t, SIDE - 1)  # of a row that is full: it draws no more
        turn = Piece(state["side"], _below(column + 1, SIDE), side_positions)
        # Written, then read: a loop that reads what it writes over later copies it every time.
        hidden, side = _run(
            program,
            weights,
            token[:, None],
            (starts + column)[:, None],
            adapters,
            [*past, turn],
            functools.partial(_put, column=jnp.where(read, column, SIDE)),
        )
        logits = _head(program, weights, hidden[:, 0])
        into = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t)
        return {
            "step": t + 1,
            "running": read & (counts < limits),
            # A row that does not run any more keeps its logits, to be decoded on.
            "logits": jnp.where(read[:, None], logits, state["logits"]),
            "tokens": into(state["tokens"], token[:, None], axis=1),
            "logprobs": into(state["logprobs"], logprob[:, None], axis=1),
            "counts": counts,
            "kept": state["kept"] + read,
            "stop": jnp.where(running, stop, state["stop"]),
            "seen": jax.lax.cond(penalised, mark, lambda seen, _: seen, state["seen"], token),
            "side": side,
        }

    state = jax.lax.while_loop(
        unfinished,
        step,
        {
            "step": jnp.int32(0),
            "running": limits > 0,
            "logits": batch.logits,
            "tokens": jnp.zeros((rows, steps), jnp.int32),
            "logprobs": jnp.zeros((rows, steps), jnp.float32),
            "counts": jnp.zeros(rows, jnp.int32),
            "kept": jnp.zeros(rows, jnp.int32),
            "stop": jnp.asarray(draws.stop_states),
            "seen": draws.seen,
            "side": side,
        },
    )
    sampled = Sampled(*(state[name] for name in Sampled._fields))
    return state["side"], state["logits"], sampled


def _put(side: Layer, one: Layer, *, column: jax.Array) -> Layer:
    """A side buffer with one more token's keys and values at `column[r]`, if there is one."""
    rows = jnp.arange(len(column))
    return Layer(
        side.keys.at[rows, :, :, column].set(one.keys[..., 0], mode="drop"),
        side.values.at[rows, :, column].set(one.values[:, :, 0], mode="drop"),
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
    """`[R, C]` log-probabilities of `tails` `[C, R, n]` behind `prefix` `[R, m]`."""
    past = _past(batch)
    hidden, read = _read(program, weights, prefix, batch.lengths, prefix_counts, adapters, past)
    first_logits = _head(program, weights, _last(hidden, prefix_counts))  # [R, V]
    size = prefix.shape[1]
    pieces = [*past, Piece(read, _below(prefix_counts, size), _behind(batch.lengths, size))]

    def one(candidate):
        tokens, counts = candidate  # [R, n], [R]
        first = batch.lengths + prefix_counts
        hidden, _ = _read(program, weights, tokens, first, counts, adapters, pieces)
        # Token i is predicted by what stands before it: the prefix, then tokens 0..i-1.
        behind = _head(program, weights, hidden[:, :-1])
        logits = jnp.concatenate([first_logits[:, None], behind], axis=1)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        taken = jnp.take_along_axis(logprobs, tokens[:, :, None], axis=-1)[:, :, 0]
        given = jnp.arange(tokens.shape[1])[None] < counts[:, None]
        return jnp.sum(jnp.where(given, taken, 0.0), -1)

    return jax.lax.map(one, (tails, tail_counts)).T
