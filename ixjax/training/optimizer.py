"""AdamW with warm-up, cosine decay and clipping, from one small configuration.

The learning rate is no part of the optimiser: it is a table made once, and each step is handed
its entry. So a compiled step serves trainings of any length and rate, and the rate that is
reported is the one that was used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay."""

    learning_rate: float = 1e-3
    """Peak of the schedule."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the rate rises to its peak."""
    final_fraction: float = 0.1
    """The rate at the last step, as a share of the peak."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; norms and biases have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("warmup_fraction", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction is {self.final_fraction}; it must be in [0, 1]")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more")

    def to_optax(self) -> optax.GradientTransformation:
        """The transformation, still to be multiplied by minus the learning rate."""
        return _adamw(self.weight_decay, self.beta1, self.beta2, self.clip_norm)

    def learning_rates(self, steps: int) -> np.ndarray:
        """The rate of each step: `[steps]` float32; no step has rate 0 unless `final_fraction` is.

        References:
            Loshchilov and Hutter 2017, `SGDR <https://arxiv.org/abs/1608.03983>`_, eq. 5.
        """
        warmup = max(1, round(self.warmup_fraction * steps))
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(steps, warmup + 1),
            end_value=self.learning_rate * self.final_fraction,
        )
        # From 1: at count 0 the warm-up's rate is 0, and a step would be spent on nothing.
        return np.asarray(jax.vmap(schedule)(jnp.arange(1, steps + 1)), np.float32)


@functools.lru_cache
def _adamw(
    weight_decay: float, beta1: float, beta2: float, clip_norm: float
) -> optax.GradientTransformation:
    """Equal settings give the same object: it is part of the key of a compiled step."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=beta1, b2=beta2),
        optax.add_decayed_weights(weight_decay, mask=_is_decayed),
    )


def _is_decayed(params: Any) -> Any:
    """Matrices decay; norm weights and biases (one axis beside that of the layers) do not."""

    def is_matrix(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim - (path[0].key == "layers") >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)
