"""A decoder-only transformer in Flax NNX: Llama, with the features of other families as fields.

One table, `weight_specs`, describes every weight: shape, logical axes, initialiser. Parameters,
their shardings and the abstract tree that a checkpoint is restored into derive from it.
Blocks are stacked along a leading axis and scanned, so that compile time does not grow with depth.
`block` takes an `attend` function, which supplies its keys. Teacher forcing (here) and the
generation engine (`ixjax.generation.forward`) share all other code.

Axes: B sequences, T positions, V vocabulary, L layers, H/K query/KV heads, D head size.
References: Touvron et al. 2023 (Llama 2); Su et al. 2021 (RoPE); Ainslie et al. 2023 (GQA).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ixjax.models.attention import Local, attend_causally, in_window, select, soften
from ixjax.models.config import LoraConfig, ModelConfig
from ixjax.models.rotary import Angles, rotary_angles, rotate
from ixjax.parallel import constrain

# (q [B, H, T, D] scaled, k [B, K, T, D], v [B, K, T, D]) to (out [B, H, T, D], values to keep).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

HIDDEN_AXES = ("rows", None, None)  # of hidden states [B, T, hidden]
# Values of a block that are kept for its gradient: all, products with weights, or its input.
Remat = Literal["none", "dots", "full"]
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
FULL_UNROLL_LAYERS = 8  # up to this depth unrolling compiles quickly and avoids slices of weights


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """One weight: its shape, a logical name for each axis, and its initialiser."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    scale: float | None
    """Standard deviation of the normal initialiser; None: all ones; 0: all zeros."""

    def draw(self, key: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Draw the initial value; consumes `key`."""
        if self.scale is None:
            return jnp.ones(self.shape, dtype)
        return (self.scale * jax.random.normal(key, self.shape, jnp.float32)).astype(dtype)


def weight_specs(config: ModelConfig) -> dict[str, WeightSpec]:
    """Return every weight by its attribute path; the first axis of block weights is the layer."""
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
    """Return `[L, adapters, in, rank]` and `[L, adapters, rank, out]`; new adapters add zero."""
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
    """A weight of an adapter, trained while the base is frozen."""


class Blocks(nnx.Module):
    """All decoder blocks, each weight stacked to `[L, ...]`."""


class Transformer(nnx.Module):
    """A decoder: token ids in, float32 logits out.

    Args:
        config: shape of the network.
        rngs: draws the initial weights; None: every parameter is a `jax.ShapeDtypeStruct`, to be
            restored.
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
        shared_to: jax.Array | None = None,
        adapters: jax.Array | None = None,
    ) -> jax.Array:
        """Run a teacher-forced forward pass.

        Args:
            tokens: `[B, T]` int token ids.
            positions: `[B, T]` position of each token in its sequence; default 0..T-1.
            segment_ids: `[B, T]` int; a token sees earlier tokens of its own segment, and of
                segments shared with it. 0 marks padding. Default: one segment a row.
            shared_to: `[B, T]` int, the last segment that sees a token; all segments from its own
                to that one see it, so that several responses share one prompt. Default: its own
                segment.
            adapters: `[B]` int, the adapter of each row; -1: the base alone. Default: the first.

        Returns:
            `[B, T, V]` float32 logits of the next token.
        """
        hidden = self.hidden(tokens, positions, segment_ids, shared_to=shared_to, adapters=adapters)
        return self.logits(hidden)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        shared_to: jax.Array | None = None,
        adapters: jax.Array | None = None,
        remat: Remat = "none",
    ) -> jax.Array:
        """Return the output of the last norm, `[B, T, hidden_size]`; arguments as `__call__`."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {tokens.shape}; expected [B, T]")
        batch, length = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        if segment_ids is None and shared_to is not None:
            raise ValueError("shared_to is given without segment_ids; expected both")
        shared_to = segment_ids if shared_to is None else shared_to
        config = self.config

        def visible(local: Local, start: int, stop: int) -> jax.Array:
            seen = (jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None])[None]
            if segment_ids is not None and shared_to is not None:
                ids, own = segment_ids[:, None, :stop], segment_ids[:, start:stop, None]
                seen = seen & (ids > 0) & (ids <= own) & (own <= shared_to[:, None, :stop])
            near = seen & in_window(config, positions[:, start:stop], positions[:, :stop])
            return select(local, near, seen)

        rotary = rotary_angles(config, positions)
        chosen = chosen_adapters(config.lora, adapters, batch)
        # Static if all layers are alike, so that only one of the two masks is computed.
        alike = len(set(config.is_local)) == 1

        def body(x, layer):
            weights, local = layer
            local = config.is_local[0] if alike else local

            def attend(q, k, v):
                mask = functools.partial(visible, local)
                return attend_causally(q, k, v, mask, softcap=config.attention_softcap), None

            return block(config, weights, x, rotary.of(local), chosen, attend)

        unroll = config.num_layers <= FULL_UNROLL_LAYERS
        if remat != "none":
            # `prevent_cse`: XLA would merge an unrolled block with its recomputation.
            body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=unroll)
        local = None if alike else jnp.array(config.is_local)
        layers = (layer_weights(self), local)
        x, _ = jax.lax.scan(body, self.embed(tokens), layers, unroll=unroll)
        return self.normed(x)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Return the input of the first block, `[B, T, hidden_size]`, for `[B, T]` token ids."""
        config = self.config
        with jax.named_scope("embed"):
            x = self.embedding[...][tokens].astype(config.compute_dtype)
            if config.scale_embeddings:
                x = x * jnp.asarray(math.sqrt(config.hidden_size), x.dtype)
            return constrain(x, HIDDEN_AXES)

    def normed(self, x: jax.Array) -> jax.Array:
        """Apply the last norm to the output of the last block."""
        return rms_norm(x, self.norm[...], self.config.norm_eps, self.config.norm_offset)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Apply the LM head: `[..., hidden_size]` to float32 `[..., V]`."""
        with jax.named_scope("head"):
            weight = self.embedding[...].T if self.config.tie_embeddings else self.head[...]
            logits = linear(hidden, weight, out_dtype=jnp.float32)
            return soften(logits, self.config.logits_softcap)


def layer_weights(model: Transformer) -> dict[str, jax.Array]:
    """Return the weights of all blocks by name, stacked to `[L, ...]`."""
    return nnx.to_pure_dict(nnx.state(model.layers))


def block(
    config: ModelConfig,
    weights: Mapping[str, jax.Array],
    x: jax.Array,
    angles: Angles,
    chosen: jax.Array | None,
    attend: Attend,
) -> tuple[jax.Array, Any]:
    """Apply one decoder block.

    Args:
        config: of the decoder.
        weights: of this block.
        x: `[B, T, hidden_size]`.
        angles: of the positions in this layer (`Rotary.of`).
        chosen: see `chosen_adapters`.
        attend: its attention.

    Returns:
        `[B, T, hidden_size]`, and the values that `attend` kept.
    """
    batch, length, _ = x.shape
    dtype = x.dtype

    def project(y: jax.Array, name: str) -> jax.Array:
        out = linear(y, weights[name])
        if config.attention_bias and name in ("query", "key", "value"):
            out = out + _along_last(weights[f"{name}_bias"].astype(dtype), out.ndim)
        if chosen is not None and config.lora is not None and name in config.lora.targets:
            out = out + low_rank(y, weights[f"{name}_lora_a"], weights[f"{name}_lora_b"], chosen)
        return out

    def norm(y: jax.Array, name: str) -> jax.Array:
        return rms_norm(y, weights[name], config.norm_eps, config.norm_offset)

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
        out, kept = attend(rotate(q, angles, scale=scale), rotate(k, angles), v)
        out = project(out.swapaxes(1, 2).reshape(batch, length, -1), "output")
        x = x + (norm(out, "attention_post_norm") if config.post_norms else out)
    with jax.named_scope("mlp"):
        y = norm(x, "mlp_norm")
        activate = ACTIVATIONS[config.activation]
        out = project(activate(project(y, "gate")) * project(y, "up"), "down")
        x = x + (norm(out, "mlp_post_norm") if config.post_norms else out)
    return constrain(x, HIDDEN_AXES), kept


def chosen_adapters(
    lora: LoraConfig | None, adapters: jax.Array | None, batch: int
) -> jax.Array | None:
    """Return `[B, 1, adapters * rank]`: alpha / rank in columns of each row's adapter, else 0."""
    if lora is None:
        return None
    adapters = jnp.zeros(batch, jnp.int32) if adapters is None else adapters
    chosen = jax.nn.one_hot(adapters, lora.adapters) * (lora.alpha / lora.rank)
    return jnp.repeat(chosen, lora.rank, axis=-1)[:, None, :]


def low_rank(y: jax.Array, a: jax.Array, b: jax.Array, chosen: jax.Array) -> jax.Array:
    """Return the output of each row's adapter for a projection of `[B, T, in]`.

    One product covers all adapters, and `chosen` masks the columns of the others: the result equals
    that of gathering matrices by row, without a copy of the matrices for each row.

    Args:
        y: `[B, T, in]`.
        a: `[adapters, in, rank]`.
        b: `[adapters, rank, out]`.
        chosen: `[B, 1, adapters * rank]`.
    """
    all_a = jnp.swapaxes(a, 0, 1).reshape(y.shape[-1], -1)
    narrow = linear(y, all_a) * chosen.astype(y.dtype)
    return linear(narrow, b.reshape(-1, b.shape[-1]))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def linear(x: jax.Array, weight: jax.Array, *, out_dtype: DTypeLike | None = None) -> jax.Array:
    """Return `[..., in] @ [in, out]`, multiplied in x's dtype, in `out_dtype` (default x's).

    Leading axes are merged for the product: XLA's CPU backend computes the weight gradient of a
    three-dimensional product 2.3 times slower.
    """
    flat = x.reshape(-1, x.shape[-1])
    product = jnp.matmul(flat, weight.astype(x.dtype), preferred_element_type=out_dtype)
    return product.reshape(*x.shape[:-1], weight.shape[-1])


def rms_norm(x: jax.Array, weight: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """Apply the root-mean-square norm over the last axis, in float32 (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * _along_last(weight.astype(jnp.float32) + offset, x.ndim)).astype(x.dtype)


def _along_last(weight: jax.Array, ndim: int) -> jax.Array:
    return weight.reshape((1,) * (ndim - 1) + weight.shape)
