"""The DPO family in float64 NumPy, one pair at a time, as the papers write it.

`log_sigma` is computed from the definition log(1 / (1 + e^-x)), in the branch that cannot
overflow. Nothing is shared with the package.
"""

from __future__ import annotations

import math


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def dpo(
    policy_w: float,
    policy_l: float,
    reference_w: float,
    reference_l: float,
    *,
    beta: float,
    variant: str,
    epsilon: float = 0.0,
) -> float:
    """The loss of one pair: w is preferred to l; epsilon of the labels are wrong."""
    h = (policy_w - reference_w) - (policy_l - reference_l)
    clean, flipped = -log_sigma(beta * h), -log_sigma(-beta * h)
    match variant:
        case "sigmoid":  # Rafailov et al. 2023, eq. 7; with epsilon: Mitchell 2023, eq. 3
            return (1 - epsilon) * clean + epsilon * flipped
        case "robust":  # Chowdhury et al. 2024, eq. 12
            return ((1 - epsilon) * clean - epsilon * flipped) / (1 - 2 * epsilon)
        case "ipo":  # Azar et al. 2023, eq. 17, tau = beta
            return (h - 1 / (2 * beta)) ** 2
        case "hinge":  # Zhao et al. 2023, eq. 2, delta = 1
            return max(0.0, 1 - beta * h)
    raise AssertionError(variant)


def dpo_gradient(
    policy_w: float,
    policy_l: float,
    reference_w: float,
    reference_l: float,
    *,
    beta: float,
) -> tuple[float, float]:
    """Derivatives of the sigmoid loss by the two policy terms (Rafailov et al. 2023, eq. 8)."""
    h = (policy_w - reference_w) - (policy_l - reference_l)
    slope = beta * math.exp(log_sigma(-beta * h))
    return -slope, slope
