"""One block, embedding and head over the rows of a pass: what passes are made of.

Axes: L layers, R rows, K KV heads, D head size, V vocabulary, n new tokens, m columns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ixjax.generation.attention import Implementation, attend
from ixjax.generation.cache import Layer, Past
from ixjax.models import (
    ModelConfig,
    Rotary,
    Transformer,
    block,
    chosen_adapters,
    in_window,
    layer_weights,
    model_of,
    path_name,
    rotary_angles,
    select,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A model without its weights: the static argument of every pass.

    config: of the decoder.
    attention: the kernel.
    """

    config: ModelConfig
    attention: Implementation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """A model's parameters, and tables that depend on the model alone.

    outer: embedding, last norm and head.
    layers: the weights of each block, by name; copies of the model's, which is not kept.
    rotary: angles of all positions, `[T, D/2]`: XLA's CPU backend would recompute the sines in
        each layer, for each head.
    """

    outer: nnx.State
    layers: list[dict[str, jax.Array]]
    rotary: Rotary

    @classmethod
    def of(cls, model: Transformer, *, positions: int) -> Weights:
        """Return a model's weights in the form that passes take, for `positions` positions."""
        _, outer = nnx.split_state(nnx.state(model), _of_layers, ...)
        layers = _unstack(layer_weights(model), layers=model.config.num_layers)
        rotary = rotary_angles(model.config, jnp.arange(positions)[None])
        return cls(outer, layers, jax.tree.map(lambda x: x[0, 0], rotary))

    def model(self, config: ModelConfig) -> Transformer:
        """Return the decoder, with a copy of its blocks."""
        outer = nnx.to_flat_state(self.outer)
        weights = {path_name(path): variable.get_value() for path, variable in outer}
        layers = {f"layers.{name}": stacked for name, stacked in _stack(self.layers).items()}
        return model_of(config, weights | layers)

    def with_adapter(self, index: int, weights: Mapping[str, jax.Array]) -> Weights:
        """Return the weights with another adapter at `index`; the present ones are consumed.

        Args:
            index: of the adapter.
            weights: of a model with one adapter, by path (`layers.query_lora_a`).
        """
        named = {name.removeprefix("layers."): weight[:, 0] for name, weight in weights.items()}
        present = [{name: layer[name] for name in named} for layer in self.layers]
        found = _put(present, named, index)
        layers = [layer | new for layer, new in zip(self.layers, found, strict=True)]
        return dataclasses.replace(self, layers=layers)


@functools.partial(jax.jit, donate_argnums=0)
def _put(
    layers: list[dict[str, jax.Array]], adapter: dict[str, jax.Array], index: jax.Array
) -> list[dict[str, jax.Array]]:
    return [
        {name: stacked.at[index].set(adapter[name][i]) for name, stacked in layer.items()}
        for i, layer in enumerate(layers)
    ]


@jax.jit
def _stack(layers: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)


@functools.partial(jax.jit, static_argnames="layers")
def _unstack(weights: dict[str, jax.Array], *, layers: int) -> list[dict[str, jax.Array]]:
    return [{name: stacked[i] for name, stacked in weights.items()} for i in range(layers)]


def _of_layers(path: tuple, _: object) -> bool:
    return path[0] == "layers"


def _model(program: Program, outer: nnx.State) -> Transformer:
    """Return the decoder; its blocks have shapes without values."""
    model = Transformer(program.config)
    nnx.update(model, outer)
    return model


class Source(NamedTuple):
    """Keys and values of one layer that new tokens attend to, in m columns.

    layer: None for the new tokens themselves.
    visible: `[R, 1 or n, m]` bool, to each row's n new tokens.
    positions: `[R or 1, m]` of the keys in their rows.
    """

    layer: Layer | None
    visible: jax.Array
    positions: jax.Array


def read_before(past: Past) -> list[Source]:
    """Return the tokens that rows have read: one source, or none before the first token."""
    if past.stored is None:
        return []
    span = jnp.arange(past.span)[None]
    return [Source(past.read(), below(past.lengths, past.span), span)]


def apply_block(
    program: Program,
    local: bool,
    weights: dict[str, jax.Array],
    rotary: Rotary,
    x: jax.Array,
    positions: jax.Array,
    adapters: jax.Array,
    sources: list[Source],
    written: Callable[[Layer], Layer] = lambda new: new,
) -> tuple[jax.Array, Layer]:
    """Apply one block to hidden states `[R, n, hidden]` at positions `[R, n]`.

    The last source is that of the new tokens: `written` takes their keys and values, and returns
    the `Layer` to attend to and to keep.
    """
    config = program.config

    def attention(q, k, v):
        kept = written(Layer(k.swapaxes(2, 3), v))
        pieces = []
        for layer, visible, keys_at in sources:
            near = visible & in_window(config, positions, keys_at)
            held = layer or kept
            pieces.append((held.keys, held.values, select(local, near, visible)))
        return attend(program.attention, q, pieces, softcap=config.attention_softcap), kept

    angles = jax.tree.map(lambda table: table[positions][:, None], rotary.of(local))
    chosen = chosen_adapters(config.lora, adapters, len(x))
    return block(config, weights, x, angles, chosen, attention)


def read_block(
    program: Program,
    local: bool,
    weights: dict[str, jax.Array],
    rotary: Rotary,
    x: jax.Array,
    first: jax.Array,
    counts: jax.Array,
    adapters: jax.Array,
    sources: list[Source],
) -> tuple[jax.Array, Layer]:
    """Apply one block to new tokens, which attend to earlier tokens and to themselves.

    Args:
        program: the decoder.
        local: whether the layer sees only its window.
        weights: of the block.
        rotary: see `Weights`.
        x: `[R, n, hidden]` hidden states, of which row r has `counts[r]`.
        first: `[R]` position of each row's first new token.
        counts: `[R]` new tokens of each row.
        adapters: `[R]` the adapter of each row.
        sources: keys and values of earlier tokens, in order.
    """
    positions = positions_from(first, x.shape[1])
    own = Source(None, _causal(counts, x.shape[1]), positions)
    return apply_block(program, local, weights, rotary, x, positions, adapters, [*sources, own])


def positions_from(first: jax.Array, count: int) -> jax.Array:
    """Return `[R, count]` positions from `first` `[R]` on."""
    return first[:, None] + jnp.arange(count)[None, :]


def below(counts: jax.Array, size: int) -> jax.Array:
    """Return `[R, 1, size]` bool: the first `counts[r]` columns of each row."""
    return (jnp.arange(size)[None, :] < counts[:, None])[:, None, :]


def _causal(counts: jax.Array, size: int) -> jax.Array:
    """Return `[R, size, size]` bool: each new token and those before it, without padding."""
    order = jnp.tril(jnp.ones((size, size), bool))[None]
    return order & below(counts, size)


@functools.partial(jax.jit, static_argnames="program")
def embed(program: Program, outer: nnx.State, tokens: jax.Array) -> jax.Array:
    """Return the input of the first block for `[..., n]` token ids."""
    x = _model(program, outer).embed(tokens.reshape(-1, tokens.shape[-1]))
    return x.reshape(*tokens.shape, -1)


def logits_of(program: Program, outer: nnx.State, x: jax.Array) -> jax.Array:
    """Return logits for the output of the last block.

    A single row is doubled: XLA's kernel for one row differs in the last bits.
    """
    model = _model(program, outer)
    if x.shape[:-1] == (1,):
        return model.logits(model.normed(jnp.concatenate([x, x])))[:1]
    return model.logits(model.normed(x))
