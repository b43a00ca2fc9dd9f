"""Attention over keys in several arrays, and over whole sequences with a causal mask.

Axes: B sequences, T positions, H/K query/KV heads, D head size, n keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ixjax.models.config import ModelConfig

# Whether a layer sees only its window: a bool if layers are unrolled, traced if they are scanned.
Local = bool | jax.Array

MASKED = -1e30  # finite, so that without a visible key the result is the mean of values, not NaN
# Least queries of one part of a sequence, and most parts of a sequence; every part is compiled.
QUERIES, PARTS = 128, 8


def select(local: Local, near: jax.Array, everything: jax.Array) -> jax.Array:
    """Return `near` for a local layer, `everything` for another."""
    if isinstance(local, bool):
        return near if local else everything
    return jnp.where(local, near, everything)


def in_window(config: ModelConfig, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Return `[B, T, n]` bool: whether a local layer at `[B, T]` sees the keys at `[B, n]`."""
    if config.sliding_window is None:
        return jnp.ones((1, 1, 1), bool)
    return queries[:, :, None] - keys[:, None, :] < config.sliding_window


def soften(scores: jax.Array, cap: float | None) -> jax.Array:
    """Bound scores to +-cap by a tanh (Gemma team 2024, "Gemma 2"); None returns them unchanged."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def attend_pieces(
    q: jax.Array,
    pieces: list[tuple[jax.Array, jax.Array, jax.Array]],
    *,
    softcap: float | None = None,
) -> jax.Array:
    """Attend to keys in several arrays, as if they were concatenated.

    A KV cache, a buffer of recently decoded tokens and the present tokens are thus read without
    copying them into one array.

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
    # Queries that share a KV head form one matrix: [B, K, Q, D] with Q = (H/K) * T.
    grouped = q.reshape(batch, num_kv_heads, -1, head_dim)
    scores = []
    for keys, _, visible in pieces:
        count, size = (keys.shape[2], keys.shape[4]) if keys.ndim == 5 else (1, keys.shape[3])
        # Each block is a separate product, like a head, so that it is read contiguously.
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
    # The softmax does not depend on the shift, so no gradient flows through the maximum.
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
        # Summed block by block, so that blocks of zeros change no bit of the sum.
        total = total + w.sum(-1).sum(2)[..., None]
    # The division comes last: it costs [.., D] operations instead of [.., n].
    return jnp.asarray(out / total).astype(q.dtype).reshape(batch, num_heads, length, head_dim)


def attend_causally(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: Callable[[int, int], jax.Array],
    *,
    softcap: float | None = None,
) -> jax.Array:
    """Attend within whole sequences; no token sees a later one.

    Queries are split into parts, each of which attends to the keys up to its end: most scores above
    the diagonal are never computed.

    Args:
        q: `[B, H, T, D]` queries, scaled.
        k: `[B, K, T, D]`.
        v: `[B, K, T, D]`.
        visible: maps (start, stop) to `[B or 1, stop - start, stop]` bool: whether queries `start`
            to `stop` see each of the first `stop` keys.
        softcap: see `ModelConfig.attention_softcap`.

    Returns:
        `[B, H, T, D]` in q's dtype.
    """
    length = q.shape[2]
    size = max(QUERIES, math.ceil(length / PARTS))
    parts = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        piece = (k[:, :, :stop].swapaxes(2, 3), v[:, :, :stop], visible(start, stop))
        parts.append(attend_pieces(q[:, :, start:stop], [piece], softcap=softcap))
    return jnp.concatenate(parts, axis=2)
