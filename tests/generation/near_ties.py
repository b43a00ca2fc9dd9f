"""How near a draw was to another token: what rounding may change, and nothing else may."""

from __future__ import annotations

import jax
import numpy as np

from ixjax.generation.sampling import uniforms

NEAR = 1e-4  # a gap in probability that rounding may cross


def gap(logits: np.ndarray, key: jax.Array, temperature: float = 1.0) -> float:
    """How near another token was: in probability, or in how far the draw lay from its border.

    `logits[V]` and the key of one token of one row.
    """
    probabilities = np.exp(logits - logits.max(), dtype=np.float64)
    probabilities /= probabilities.sum()
    if temperature == 0:
        best, second = np.sort(probabilities)[:-3:-1]
        return float(best - second)
    draw = float(uniforms(key[None])[0, 0])
    return float(np.abs(np.cumsum(probabilities) - draw).min())
