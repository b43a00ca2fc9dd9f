"""Small models for tests, filled by NumPy: drawing weights with JAX compiles for seconds."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ixjax.models import ModelConfig, Transformer, abstract_params


def random_model(config: ModelConfig, *, seed: int = 0, scale: float = 0.3) -> Transformer:
    """Every weight normal (norms around 1); `scale` is large enough for peaked predictions."""
    rng = np.random.default_rng(seed)

    def fill(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        described = variable.get_value()
        centre = 1.0 if "norm" in str(path[-1]) else 0.0
        value = centre + scale * rng.standard_normal(described.shape)
        return variable.replace(jnp.asarray(value, described.dtype))

    params = nnx.map_state(fill, abstract_params(config))
    return nnx.merge(nnx.graphdef(Transformer(config)), params)
