"""Rotary position embedding (Su et al. 2021), with Llama 3's and Gemma's scalings."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ixjax.models.attention import Local, select
from ixjax.models.config import ModelConfig

Angles = tuple[jax.Array, jax.Array]  # cosines and sines, each [B, 1, T, D/2]


class Rotary(NamedTuple):
    """Angles of every position, for global and for local layers."""

    all: Angles
    local: Angles

    def of(self, local: Local) -> Angles:
        """Return the angles of a layer."""
        return jax.tree.map(functools.partial(select, local), self.local, self.all)


def rotary_angles(config: ModelConfig, positions: jax.Array) -> Rotary:
    """Return cosines and sines of `[B, T]` positions, in float32 (bfloat16 rounds 257)."""

    def frequencies(theta: float) -> jax.Array:
        half = config.head_dim // 2
        return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)

    def angles(frequencies: jax.Array) -> Angles:
        radians = positions.astype(jnp.float32)[:, None, :, None] * frequencies[None, None, None, :]
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
    """Scale frequencies as Llama 3.1: stretch long wavelengths by `factor`, keep short ones."""
    factor, low_freq_factor, high_freq_factor, original = scaling
    turns = original * frequencies / (2 * math.pi)
    keep = jnp.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / factor)


def rotate(x: jax.Array, angles: Angles, *, scale: float = 1.0) -> jax.Array:
    """Rotate `[B, heads, T, D]` by position, halves paired as in Hugging Face's Llama.

    The result is scaled before it is rounded to x's dtype.
    """
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32) * scale, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
