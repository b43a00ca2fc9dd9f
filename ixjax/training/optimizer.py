"""AdamW or SGD with warm-up, decay and clipping, from one small configuration.

The learning rate is not part of the optimiser: it is a table with an entry per step, and each step
takes its entry as an argument. A compiled step thus serves trainings of any length and rate, and
the reported rate is the one that was used.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ixjax.training.ranges import NOT_NEGATIVE, PART, POSITIVE, SHARE, check_ranges


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning rate."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or plain gradient descent, which has no state."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the rate rises to its peak."""
    final_fraction: float = 0.1
    """The rate at the last step, as a share of the peak (cosine and linear)."""
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
        check_ranges(
            self,
            learning_rate=POSITIVE,
            warmup_fraction=PART,
            final_fraction=SHARE,
            weight_decay=NOT_NEGATIVE,
            beta1=PART,
            beta2=PART,
            clip_norm=POSITIVE,
        )

    def to_optax(self) -> optax.GradientTransformation:
        """Return the transformation, without the factor of minus the learning rate."""
        moments = (self.beta1, self.beta2) if self.kind == "adamw" else None
        return _transformation(moments, self.weight_decay, self.clip_norm)

    def learning_rates(self, steps: int) -> np.ndarray:
        """Return the rate of each step, `[steps]` float32; 0 at most at the end (`final_fraction`).

        References:
            Loshchilov and Hutter 2017, `SGDR <https://arxiv.org/abs/1608.03983>`_, eq. 5.
        """
        warmup = max(1, round(self.warmup_fraction * steps))
        peak, after = self.learning_rate, max(steps - warmup, 1)
        last = self.final_fraction
        fall = {
            "cosine": optax.cosine_decay_schedule(peak, after, alpha=last),
            "linear": optax.linear_schedule(peak, peak * last, after),
            "constant": optax.constant_schedule(peak),
        }[self.schedule]
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])
        # From 1: the warm-up's rate at count 0 is 0, and that step would change nothing.
        return np.asarray(jax.vmap(schedule)(jnp.arange(1, steps + 1)), np.float32)


@functools.lru_cache
def _transformation(
    moments: tuple[float, float] | None, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Return the same object for equal settings: it is part of the key of a compiled step."""
    adam = () if moments is None else (optax.scale_by_adam(b1=moments[0], b2=moments[1]),)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        *adam,
        optax.add_decayed_weights(weight_decay, mask=_is_decayed),
    )


def _is_decayed(params: Any) -> Any:
    """Return True for matrices, False for norm weights and biases (one axis besides layers)."""

    def is_matrix(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim - (path[0].key == "layers") >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)
