"""A decoder-only transformer of the Llama kind, in Flax NNX.

One table, `weight_specs`, describes every weight: shape, logical axes, initialiser. Parameters,
their shardings and the abstract tree that a checkpoint is restored into all derive from it.
Blocks are stacked along a leading axis and scanned, so that compile time does not grow with depth.
A block does not know where its keys come from: it is handed an `attend` function. Teacher forcing
(here) and the generation engine (`ixjax.generation.cache`) share every line but that function.

Axes: B sequences, T positions, V vocabulary, L layers, H/K query/KV heads, D head size.
References: Touvron et al. 2023 (Llama 2); Su et al. 2021 (RoPE); Ainslie et al. 2023 (GQA).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ixjax.models.config import ModelConfig

# attend(layer_cache, q [B, H, T, D], k [B, K, T, D], v [B, K, T, D]) -> (out [B, H, T, D], kept)
Attend = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

MASKED = -1e30  # finite, so that a row without any visible key gives zeros' mean and not NaN
FULL_UNROLL_LAYERS = 8  # up to here unrolling costs little to compile and saves cache slicing


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """One weight: its shape, a logical name for each axis, and how it is drawn."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    scale: float | None
    """Standard deviation of the normal initialiser; None: all ones; 0: all zeros."""

    def draw(self, key: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Initial value; consumes `key`."""
        if self.scale is None:
            return jnp.ones(self.shape, dtype)
        return (self.scale * jax.random.normal(key, self.shape, jnp.float32)).astype(dtype)


def weight_specs(config: ModelConfig) -> dict[str, WeightSpec]:
    """Every weight of the decoder by its attribute path; block weights lead with the layer axis."""
    c = config
    layers, hidden, mlp = c.num_layers, c.hidden_size, c.intermediate_size
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    # Projections back into the residual stream shrink with depth (Radford et al. 2019).
    out_scale = 0.02 / math.sqrt(2 * layers)

    def stacked(shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float | None):
        return WeightSpec((layers, *shape), ("layers", *axes), scale)

    specs = {
        "embedding": WeightSpec((c.vocab_size, hidden), ("vocab", "embed"), 0.02),
        "norm": WeightSpec((hidden,), (None,), None),
        "layers.attention_norm": stacked((hidden,), (None,), None),
        "layers.query": stacked((hidden, q), ("embed", "heads"), 0.02),
        "layers.key": stacked((hidden, kv), ("embed", "kv_heads"), 0.02),
        "layers.value": stacked((hidden, kv), ("embed", "kv_heads"), 0.02),
        "layers.output": stacked((q, hidden), ("heads", "embed"), out_scale),
        "layers.mlp_norm": stacked((hidden,), (None,), None),
        "layers.gate": stacked((hidden, mlp), ("embed", "mlp"), 0.02),
        "layers.up": stacked((hidden, mlp), ("embed", "mlp"), 0.02),
        "layers.down": stacked((mlp, hidden), ("mlp", "embed"), out_scale),
    }
    if c.attention_bias:
        specs |= {
            "layers.query_bias": stacked((q,), ("heads",), 0.0),
            "layers.key_bias": stacked((kv,), ("kv_heads",), 0.0),
            "layers.value_bias": stacked((kv,), ("kv_heads",), 0.0),
        }
    if not c.tie_embeddings:
        specs["head"] = WeightSpec((hidden, c.vocab_size), ("embed", "vocab"), 0.02)
    return specs


class Blocks(nnx.Module):
    """All decoder blocks, each weight stacked to `[L, ...]`."""

    attention_norm: nnx.Param
    mlp_norm: nnx.Param
    gate: nnx.Param
    up: nnx.Param
    down: nnx.Param


class Transformer(nnx.Module):
    """A decoder: token ids in, float32 logits out.

    Args:
        config: its shape.
        rngs: draws the initial weights; None leaves every parameter an abstract
            `jax.ShapeDtypeStruct`, for whoever restores values into it.
    """

    embedding: nnx.Param
    norm: nnx.Param
    head: nnx.Param  # absent with tied embeddings

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs | None = None):
        self.config = config
        self.layers = Blocks()
        dtype = jnp.dtype(config.param_dtype)
        for path, spec in weight_specs(config).items():
            owner, name = (self.layers, path.split(".")[1]) if "." in path else (self, path)
            value = (
                jax.ShapeDtypeStruct(spec.shape, dtype)
                if rngs is None
                else spec.draw(rngs.params(), dtype)
            )
            setattr(owner, name, nnx.Param(value))

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher-forced forward pass.

        Args:
            tokens: `[B, T]` int token ids.
            positions: `[B, T]` position of each token in its own sequence; default 0..T-1.
            segment_ids: `[B, T]` int; a token sees earlier tokens of its own segment alone.
                0 marks padding. Default: one segment a row.

        Returns:
            `[B, T, V]` float32 logits of the next token.
        """
        return self.logits(self.hidden(tokens, positions, segment_ids))

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """As `__call__`, up to the last norm: `[B, T, hidden_size]`."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {tokens.shape}; expected [B, T]")
        batch, length = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        visible = jnp.tril(jnp.ones((length, length), bool))[None, :, :]
        if segment_ids is not None:
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
            visible = visible & same & (segment_ids > 0)[:, None, :]

        def attend(_, q, k, v):
            return attend_pieces(q, [(k, v, visible)]), None

        return self.run(tokens, positions, attend)[0]

    def run(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Attend,
        cache: Any = None,
        *,
        layers: Sequence[nnx.State] | None = None,
    ) -> tuple[jax.Array, Any]:
        """Embed, pass through all blocks, norm.

        Args:
            tokens: `[B, T]` token ids.
            positions: `[B, T]` rotary positions.
            attend: attention of one block; see `Attend`.
            cache: pytree with leading axis `L`, each block's slice goes to `attend`; with
                `layers` a sequence of L pytrees.
            layers: each block's weights, where they were taken apart (`unstack`) before a loop
                over tokens, in which slices of the stacked ones would be copied every time.

        Returns:
            Hidden states `[B, T, hidden_size]` and what `attend` kept, stacked to `[L, ...]`; with
            `layers` a list of L.
        """
        config = self.config
        graph, params = nnx.split(self.layers)
        rotary = rotary_angles(config, positions)
        with jax.named_scope("embed"):
            x = self.embedding[...][tokens].astype(config.compute_dtype)

        def body(x, layer):
            weights, layer_cache = layer
            return block(config, nnx.merge(graph, weights), x, rotary, attend, layer_cache)

        if layers is None:
            unroll = config.num_layers <= FULL_UNROLL_LAYERS
            x, kept = jax.lax.scan(body, x, (params, cache), unroll=unroll)
        else:
            kept = []
            for layer in zip(layers, cache, strict=True):
                x, kept_here = body(x, layer)
                kept.append(kept_here)
        return rms_norm(x, self.norm[...], config.norm_eps), kept

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The LM head: `[..., hidden_size]` to float32 `[..., V]`."""
        with jax.named_scope("head"):
            weight = self.embedding[...].T if self.config.tie_embeddings else self.head[...]
            return linear(hidden, weight, out_dtype=jnp.float32)


def block(
    config: ModelConfig, w: Blocks, x: jax.Array, rotary: Rotary, attend: Attend, layer_cache: Any
) -> tuple[jax.Array, Any]:
    """One decoder block: `[B, T, hidden]` in and out, and what `attend` kept."""
    batch, length, _ = x.shape
    dtype = x.dtype

    def project(y: jax.Array, name: str) -> jax.Array:
        out = linear(y, getattr(w, name)[...])
        if config.attention_bias and name != "output":
            out = out + _along_last(getattr(w, f"{name}_bias")[...].astype(dtype), out.ndim)
        return out

    def heads(y: jax.Array, count: int) -> jax.Array:
        return y.reshape(batch, length, count, config.head_dim).swapaxes(1, 2)

    with jax.named_scope("attention"):
        y = rms_norm(x, w.attention_norm[...], config.norm_eps)
        q = rotate(heads(project(y, "query"), config.num_heads), rotary)
        k = rotate(heads(project(y, "key"), config.num_kv_heads), rotary)
        v = heads(project(y, "value"), config.num_kv_heads)
        out, kept = attend(layer_cache, q, k, v)
        x = x + project(out.swapaxes(1, 2).reshape(batch, length, -1), "output")
    with jax.named_scope("mlp"):
        y = rms_norm(x, w.mlp_norm[...], config.norm_eps)
        gate = linear(y, w.gate[...])
        up = linear(y, w.up[...])
        x = x + linear(jax.nn.silu(gate) * up, w.down[...])
    return x, kept


def unstack(tree: Any, layers: int) -> list[Any]:
    """The `layers` slices of a pytree with that leading axis."""
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(layers)]


def linear(x: jax.Array, weight: jax.Array, *, out_dtype: DTypeLike | None = None) -> jax.Array:
    """`[..., in] @ [in, out]`, multiplied in x's dtype, given in `out_dtype` (default x's).

    Leading axes are merged for the product: XLA's CPU backend computes the weight gradient of a
    three-dimensional one 2.3 times slower.
    """
    flat = x.reshape(-1, x.shape[-1])
    product = jnp.matmul(flat, weight.astype(x.dtype), preferred_element_type=out_dtype)
    return product.reshape(*x.shape[:-1], weight.shape[-1])


def attend_pieces(q: jax.Array, pieces: list[tuple[jax.Array, jax.Array, jax.Array]]) -> jax.Array:
    """Attention over keys that lie in several arrays, as if they were concatenated.

    A KV cache, a side buffer of what was just decoded and the present tokens can then be read
    where they are: no piece is copied.

    Args:
        q: `[B, H, T, D]` queries.
        pieces: (keys `[B, K, n, D]`, values `[B, K, n, D]`, visible `[B or 1, T, n]` bool).

    Returns:
        `[B, H, T, D]` in q's dtype; the softmax is computed in float32.
    """
    batch, num_heads, length, head_dim = q.shape
    num_kv_heads = pieces[0][0].shape[1]
    # Queries that share a KV head sit in one matrix: [B, K, (H/K) * T, D].
    grouped = (q * (1.0 / math.sqrt(head_dim))).reshape(batch, num_kv_heads, -1, head_dim)
    scores = []
    for keys, _, visible in pieces:
        s = jnp.einsum("bkqd,bknd->bkqn", grouped, keys, preferred_element_type=jnp.float32)
        s = s.reshape(batch, num_kv_heads, -1, length, keys.shape[2])
        scores.append(jnp.where(visible[:, None, None], s, MASKED))
    top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    # The softmax does not depend on the shift: no gradient need go through the maximum.
    weights = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in scores]
    total, out = 0.0, 0.0
    for weight, (_, values, _) in zip(weights, pieces, strict=True):
        w = weight.reshape(batch, num_kv_heads, -1, values.shape[2])
        total = total + w.sum(-1, keepdims=True)
        w = w.astype(values.dtype)
        out = out + jnp.einsum("bkqn,bknd->bkqd", w, values, preferred_element_type=jnp.float32)
    # Divided last: [.., D] numbers instead of [.., n].
    return jnp.asarray(out / total).astype(q.dtype).reshape(batch, num_heads, length, head_dim)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32 (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * _along_last(weight.astype(jnp.float32), x.ndim)).astype(x.dtype)


def _along_last(weight: jax.Array, ndim: int) -> jax.Array:
    return weight.reshape((1,) * (ndim - 1) + weight.shape)


Rotary = tuple[jax.Array, jax.Array]


def rotary_angles(config: ModelConfig, positions: jax.Array) -> Rotary:
    """Cosines and sines `[B, 1, T, D/2]` of each position, in float32 (bfloat16 rounds 257)."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling is not None:
        frequencies = scale_frequencies(frequencies, config.rope_scaling)
    angles = positions.astype(jnp.float32)[:, None, :, None] * _along_last(frequencies, 4)
    return jnp.cos(angles), jnp.sin(angles)


def scale_frequencies(
    frequencies: jax.Array, scaling: tuple[float, float, float, int]
) -> jax.Array:
    """Llama 3.1's rotary scaling: long wavelengths are stretched by `factor`, short ones kept."""
    factor, low_freq_factor, high_freq_factor, original = scaling
    turns = original * frequencies / (2 * math.pi)
    keep = jnp.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / factor)


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotary embedding of `[B, heads, T, D]`, halves paired as in Hugging Face's Llama."""
    cos, sin = rotary
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
