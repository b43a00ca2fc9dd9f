"""A decoder-only transformer in Flax NNX: Llama, and what other families add to it as fields.

One table, `weight_specs`, describes every weight: shape, logical axes, initialiser. Parameters,
their shardings and the abstract tree that a checkpoint is restored into all derive from it.
Blocks are stacked along a leading axis and scanned, so that compile time does not grow with depth.
A block does not know where its keys come from: it is handed an `attend` function. Teacher forcing
(here) and the generation engine (`ixjax.generation.passes`) share every line but that function.

Axes: B sequences, T positions, V vocabulary, L layers, H/K query/KV heads, D head size.
References: Touvron et al. 2023 (Llama 2); Su et al. 2021 (RoPE); Ainslie et al. 2023 (GQA).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ixjax.models.config import LoraConfig, ModelConfig
from ixjax.parallel import constrain

# Whether a layer sees its window alone: known where layers are unrolled, traced where scanned.
Local = bool | jax.Array
# (layer_cache, local, q [B, H, T, D] scaled, k [B, K, T, D], v [B, K, T, D]) to
# (out [B, H, T, D], whatever of it is to be kept).
Attend = Callable[[Any, Local, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

HIDDEN_AXES = ("rows", None, None)  # of hidden states [B, T, hidden]
MASKED = -1e30  # finite, so that without any visible key the values' mean comes out and not NaN
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
    norm_scale = 0.0 if c.norm_offset else None

    def stacked(shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float | None):
        return WeightSpec((layers, *shape), ("layers", *axes), scale)

    specs = {
        "embedding": WeightSpec((c.vocab_size, hidden), ("vocab", "embed"), 0.02),
        "norm": WeightSpec((hidden,), (None,), norm_scale),
        "layers.attention_norm": stacked((hidden,), (None,), norm_scale),
        "layers.query": stacked((hidden, q), ("embed", "heads"), 0.02),
        "layers.key": stacked((hidden, kv), ("embed", "kv_heads"), 0.02),
        "layers.value": stacked((hidden, kv), ("embed", "kv_heads"), 0.02),
        "layers.output": stacked((q, hidden), ("heads", "embed"), out_scale),
        "layers.mlp_norm": stacked((hidden,), (None,), norm_scale),
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
    if c.qk_norm:
        specs |= {
            "layers.query_norm": stacked((c.head_dim,), (None,), norm_scale),
            "layers.key_norm": stacked((c.head_dim,), (None,), norm_scale),
        }
    if c.post_norms:
        specs |= {
            "layers.attention_post_norm": stacked((hidden,), (None,), norm_scale),
            "layers.mlp_post_norm": stacked((hidden,), (None,), norm_scale),
        }
    if not c.tie_embeddings:
        specs["head"] = WeightSpec((hidden, c.vocab_size), ("embed", "vocab"), 0.02)
    if c.lora is not None:
        specs |= _lora_specs(c.lora, specs)
    return specs


def _lora_specs(lora: LoraConfig, specs: Mapping[str, WeightSpec]) -> dict[str, WeightSpec]:
    """`[L, adapters, in, rank]` and `[L, adapters, rank, out]`; an adapter begins as nothing."""
    adapters: dict[str, WeightSpec] = {}
    for target in lora.targets:
        base = specs[f"layers.{target}"]
        (layers, width, out), (_, width_axis, out_axis) = base.shape, base.axes
        adapters[f"layers.{target}_lora_a"] = WeightSpec(
            (layers, lora.adapters, width, lora.rank),
            ("layers", None, width_axis, None),
            1 / math.sqrt(3 * width),
        )
        adapters[f"layers.{target}_lora_b"] = WeightSpec(
            (layers, lora.adapters, lora.rank, out), ("layers", None, None, out_axis), 0.0
        )
    return adapters


class LoraParam(nnx.Param):
    """A weight of an adapter: what is trained where the base is frozen."""


class Blocks(nnx.Module):
    """All decoder blocks, each weight stacked to `[L, ...]`."""


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
            kind = LoraParam if "_lora_" in name else nnx.Param
            setattr(owner, name, kind(value))

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        adapters: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher-forced forward pass.

        Args:
            tokens: `[B, T]` int token ids.
            positions: `[B, T]` position of each token in its own sequence; default 0..T-1.
            segment_ids: `[B, T]` int; a token sees earlier tokens of its own segment alone.
                0 marks padding. Default: one segment a row.
            adapters: `[B]` int, the adapter of each row; -1: the base alone. Default: the first.

        Returns:
            `[B, T, V]` float32 logits of the next token.
        """
        return self.logits(self.hidden(tokens, positions, segment_ids, adapters=adapters))

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        adapters: jax.Array | None = None,
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
        near = visible & in_window(self.config, positions, positions)

        def attend(_, local, q, k, v):
            pieces = [(k.swapaxes(2, 3), v, select(local, near, visible))]
            return attend_pieces(q, pieces, softcap=self.config.attention_softcap), None

        return self.run(tokens, positions, attend, adapters=adapters)[0]

    def run(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Attend,
        cache: Any = None,
        *,
        layers: Sequence[nnx.State] | None = None,
        adapters: jax.Array | None = None,
        rotary: Rotary | None = None,
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
            adapters: `[B]`; see `__call__`.
            rotary: angles of the positions, where they are at hand; default computed.

        Returns:
            Hidden states `[B, T, hidden_size]` and what `attend` kept, stacked to `[L, ...]`; with
            `layers` a list of L.
        """
        config = self.config
        graph, params = nnx.split(self.layers)
        chosen = _chosen_adapters(config.lora, adapters, tokens.shape[0])
        rotary = rotary_angles(config, positions) if rotary is None else rotary
        with jax.named_scope("embed"):
            x = self.embedding[...][tokens].astype(config.compute_dtype)
            if config.scale_embeddings:
                x = x * jnp.asarray(math.sqrt(config.hidden_size), x.dtype)
            x = constrain(x, HIDDEN_AXES)

        # Known while tracing where all layers are alike, so that nothing is computed twice.
        alike = len(set(config.is_local)) == 1

        def body(x, layer):
            weights, layer_cache, local = layer
            local = config.is_local[0] if alike else local
            angles = jax.tree.map(functools.partial(select, local), rotary.local, rotary.all)
            here = functools.partial(attend, layer_cache, local)
            x, kept = block(config, nnx.merge(graph, weights), x, angles, chosen, here)
            return constrain(x, HIDDEN_AXES), kept

        if layers is None:
            unroll = config.num_layers <= FULL_UNROLL_LAYERS
            local = None if alike else jnp.array(config.is_local)
            x, kept = jax.lax.scan(body, x, (params, cache, local), unroll=unroll)
        else:
            kept = []
            for layer in zip(layers, cache, config.is_local, strict=True):
                x, kept_here = body(x, layer)
                kept.append(kept_here)
        return rms_norm(x, self.norm[...], config.norm_eps, config.norm_offset), kept

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The LM head: `[..., hidden_size]` to float32 `[..., V]`."""
        with jax.named_scope("head"):
            weight = self.embedding[...].T if self.config.tie_embeddings else self.head[...]
            logits = linear(hidden, weight, out_dtype=jnp.float32)
            return soften(logits, self.config.logits_softcap)


def block(
    config: ModelConfig,
    w: Blocks,
    x: jax.Array,
    rotary: Angles,
    chosen: jax.Array | None,
    attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
) -> tuple[jax.Array, Any]:
    """One decoder block: `[B, T, hidden]` in and out, and what `attend` kept."""
    batch, length, _ = x.shape
    dtype = x.dtype

    def project(y: jax.Array, name: str) -> jax.Array:
        out = linear(y, getattr(w, name)[...])
        if config.attention_bias and name in ("query", "key", "value"):
            out = out + _along_last(getattr(w, f"{name}_bias")[...].astype(dtype), out.ndim)
        if chosen is not None and config.lora is not None and name in config.lora.targets:
            out = out + low_rank(
                y, getattr(w, f"{name}_lora_a")[...], getattr(w, f"{name}_lora_b")[...], chosen
            )
        return out

    def norm(y: jax.Array, name: str) -> jax.Array:
        return rms_norm(y, getattr(w, name)[...], config.norm_eps, config.norm_offset)

    def heads(y: jax.Array, count: int) -> jax.Array:
        return y.reshape(batch, length, count, config.head_dim).swapaxes(1, 2)

    with jax.named_scope("attention"):
        y = norm(x, "attention_norm")
        q = heads(project(y, "query"), config.num_heads)
        k = heads(project(y, "key"), config.num_kv_heads)
        v = heads(project(y, "value"), config.num_kv_heads)
        if config.qk_norm:
            q, k = norm(q, "query_norm"), norm(k, "key_norm")
        scale = 1.0 / math.sqrt(config.query_pre_attn_scalar or config.head_dim)
        out, kept = attend(rotate(q, rotary, scale=scale), rotate(k, rotary), v)
        out = project(out.swapaxes(1, 2).reshape(batch, length, -1), "output")
        x = x + (norm(out, "attention_post_norm") if config.post_norms else out)
    with jax.named_scope("mlp"):
        y = norm(x, "mlp_norm")
        activate = ACTIVATIONS[config.activation]
        out = project(activate(project(y, "gate")) * project(y, "up"), "down")
        x = x + (norm(out, "mlp_post_norm") if config.post_norms else out)
    return x, kept


def _chosen_adapters(
    lora: LoraConfig | None, adapters: jax.Array | None, batch: int
) -> jax.Array | None:
    """`[B, 1, adapters * rank]`: alpha / rank in the columns of each row's adapter, else 0."""
    if lora is None:
        return None
    adapters = jnp.zeros(batch, jnp.int32) if adapters is None else adapters
    chosen = jax.nn.one_hot(adapters, lora.adapters) * (lora.alpha / lora.rank)
    return jnp.repeat(chosen, lora.rank, axis=-1)[:, None, :]


def low_rank(y: jax.Array, a: jax.Array, b: jax.Array, chosen: jax.Array) -> jax.Array:
    """What each row's adapter adds to a projection of `[B, T, in]`.

    All adapters lie side by side in one product, in which `chosen` leaves each row its own: as
    exact as choosing the matrices by row, and they are not copied once a row.

    Args:
        y: `[B, T, in]`.
        a: `[adapters, in, rank]`.
        b: `[adapters, rank, out]`.
        chosen: `[B, 1, adapters * rank]`.
    """
    beside = jnp.swapaxes(a, 0, 1).reshape(y.shape[-1], -1)
    narrow = linear(y, beside) * chosen.astype(y.dtype)
    return linear(narrow, b.reshape(-1, b.shape[-1]))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def select(local: Local, near: jax.Array, everything: jax.Array) -> jax.Array:
    """What a local layer is given, or what another is."""
    if isinstance(local, bool):
        return near if local else everything
    return jnp.where(local, near, everything)


def in_window(config: ModelConfig, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """`[B, T, n]` bool: keys at positions `[B, n]` that local layers see from `[B, T]`."""
    if config.sliding_window is None:
        return jnp.ones((1, 1, 1), bool)
    return queries[:, :, None] - keys[:, None, :] < config.sliding_window


def soften(scores: jax.Array, cap: float | None) -> jax.Array:
    """Scores held within +-cap by a tanh (Gemma team 2024, "Gemma 2"); None leaves them."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


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


def attend_pieces(
    q: jax.Array,
    pieces: list[tuple[jax.Array, jax.Array, jax.Array]],
    *,
    softcap: float | None = None,
) -> jax.Array:
    """Attention over keys that lie in several arrays, as if they were concatenated.

    A KV cache, a side buffer of what was just decoded and the present tokens can then be read
    where they are: no piece is copied.

    Args:
        q: `[B, H, T, D]` queries, scaled.
        pieces: (keys `[B, K, D, n]`, or in J blocks of m, `[B, K, J, D, m]`; values
            `[B, K, n, D]`; visible `[B or 1, T or 1, n]` bool).
        softcap: see `ModelConfig.attention_softcap`.

    Returns:
        `[B, H, T, D]` in q's dtype; the softmax is computed in float32.
    """
    batch, num_heads, length, head_dim = q.shape
    num_kv_heads = pieces[0][0].shape[1]
    # Queries that share a KV head sit in one matrix: [B, K, Q, D] with Q = (H/K) * T.
    grouped = q.reshape(batch, num_kv_heads, -1, head_dim)
    scores = []
    for keys, _, visible in pieces:
        count, size = (keys.shape[2], keys.shape[4]) if keys.ndim == 5 else (1, keys.shape[3])
        # Each block is a product of its own, as heads are: it is read from end to end.
        s = jnp.einsum(
            "bkqd,bkdn->bkqn",
            jnp.repeat(grouped, count, axis=1),
            keys.reshape(batch, num_kv_heads * count, head_dim, size),
            preferred_element_type=jnp.float32,
        )
        s = soften(s, softcap).reshape(batch, num_kv_heads, count, -1, length, size)
        seen = visible.reshape(visible.shape[0], 1, visible.shape[1], count, size)
        scores.append(jnp.where(seen.swapaxes(2, 3)[:, :, :, None], s, MASKED))
    top = functools.reduce(jnp.maximum, [s.max((2, 5), keepdims=True) for s in scores])
    # The softmax does not depend on the shift: no gradient need go through the maximum.
    weights = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in scores]
    total, out = 0.0, 0.0
    for weight, (_, values, _) in zip(weights, pieces, strict=True):
        count, size = weight.shape[2], weight.shape[5]
        w = weight.reshape(batch, num_kv_heads, count, -1, size)
        v = values.reshape(batch, num_kv_heads, count, size, head_dim)
        o = jnp.einsum(
            "bkjqn,bkjnd->bkqd", w.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        out = out + o
        # Block by block, so that blocks of zeros change no bit; of the product they don't.
        total = total + w.sum(-1).sum(2)[..., None]
    # Divided last: [.., D] numbers instead of [.., n].
    return jnp.asarray(out / total).astype(q.dtype).reshape(batch, num_heads, length, head_dim)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """Root-mean-square norm over the last axis, in float32 (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * _along_last(weight.astype(jnp.float32) + offset, x.ndim)).astype(x.dtype)


def _along_last(weight: jax.Array, ndim: int) -> jax.Array:
    return weight.reshape((1,) * (ndim - 1) + weight.shape)


Angles = tuple[jax.Array, jax.Array]  # cosines and sines, each [B, 1, T, D/2]


class Rotary(NamedTuple):
    """Angles of every position, for layers that see all and for local ones."""

    all: Angles
    local: Angles


def rotary_angles(config: ModelConfig, positions: jax.Array) -> Rotary:
    """Cosines and sines of `[B, T]` positions, in float32 (bfloat16 rounds 257)."""

    def frequencies(theta: float) -> jax.Array:
        half = config.head_dim // 2
        return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)

    def angles(frequencies: jax.Array) -> Angles:
        radians = positions.astype(jnp.float32)[:, None, :, None] * _along_last(frequencies, 4)
        return jnp.cos(radians), jnp.sin(radians)

    scaled = frequencies(config.rope_theta) / config.rope_factor
    if config.rope_scaling is not None:
        scaled = scale_frequencies(scaled, config.rope_scaling)
    everywhere = angles(scaled)
    if config.local_rope_theta is None:
        return Rotary(everywhere, everywhere)
    return Rotary(everywhere, angles(frequencies(config.local_rope_theta)))


def scale_frequencies(
    frequencies: jax.Array, scaling: tuple[float, float, float, int]
) -> jax.Array:
    """Llama 3.1's rotary scaling: long wavelengths are stretched by `factor`, short ones kept."""
    factor, low_freq_factor, high_freq_factor, original = scaling
    turns = original * frequencies / (2 * math.pi)
    keep = jnp.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / factor)


def rotate(x: jax.Array, angles: Angles, *, scale: float = 1.0) -> jax.Array:
    """Rotary embedding of `[B, heads, T, D]`, halves paired as in Hugging Face's Llama.

    The result is scaled before it is rounded to x's dtype.
    """
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32) * scale, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
