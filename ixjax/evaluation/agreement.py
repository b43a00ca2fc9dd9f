"""Confidence intervals of shares, and agreement of raters beyond chance.

A result without ratings is nan, and so is a kappa whose chance agreement is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent trials.

    A trial may score between 0 and 1 (a tie, the mean of several raters). It then has a smaller
    variance than a coin of the same mean, so the interval is conservative.

    Args:
        share: mean score of the trials, in [0, 1].
        count: number of trials.

    Returns:
        Low and high end; both nan without a trial.

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not count:
        return math.nan, math.nan
    spread = Z_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the agreement of two raters beyond chance: 1 is perfect, 0 is chance.

    Args:
        first: a category for each item.
        second: those of the other rater, for the same items.

    References:
        Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} ratings; expected one per item from both")
    if not first:
        return math.nan
    left, right = np.array(first), np.array(second)
    chance = sum((left == name).mean() * (right == name).mean() for name in {*first, *second})
    return _beyond_chance(float((left == right).mean()), float(chance))


def fleiss_kappa(counts: np.ndarray) -> float:
    """Return the agreement of several raters beyond chance.

    Args:
        counts: `[N, C]` number of raters that put item n into category c; all items have the same
            number of ratings, two or more.

    References:
        Fleiss 1971, "Measuring nominal scale agreement among many raters", equations 3 to 7.
    """
    counts = np.asarray(counts, np.float64)
    if not len(counts):
        return math.nan
    raters = counts[0].sum()
    if raters < 2 or (counts.sum(axis=1) != raters).any():
        found = sorted({int(n) for n in counts.sum(axis=1)})
        raise ValueError(f"items have {found} ratings; expected one number for all, 2 or more")
    agreeing = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    shares = counts.sum(axis=0) / counts.sum()
    return _beyond_chance(float(agreeing.mean()), float((shares**2).sum()))


def _beyond_chance(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan
