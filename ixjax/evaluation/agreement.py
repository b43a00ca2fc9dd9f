"""How sure a share is, and how far raters agree beyond chance.

Undefined figures are nan: a kappa where chance alone would agree always, anything of no ratings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` independent trials.

    A trial may also score between 0 and 1 (a tie, the mean of several raters): it then varies less
    than a coin of the same mean does, and the interval is on the safe side.

    Args:
        share: mean score of the trials, in [0, 1].
        count: how many trials.

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
    """Agreement of two raters beyond chance; 1 is perfect, 0 what chance gives.

    Args:
        first: a category for each item.
        second: the other rater's, for the same items.

    References:
        Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} ratings; expected one an item from both")
    if not first:
        return math.nan
    left, right = np.array(first), np.array(second)
    chance = sum((left == name).mean() * (right == name).mean() for name in {*first, *second})
    return _beyond_chance(float((left == right).mean()), float(chance))


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement of several raters beyond chance.

    Args:
        counts: `[N, C]` how many raters put item n into category c; every item has as many
            ratings, two or more.

    References:
        Fleiss 1971, "Measuring nominal scale agreement among many raters", equations 3 to 7.
    """
    counts = np.asarray(counts, np.float64)
    if not len(counts):
        return math.nan
    raters = counts[0].sum()
    if raters < 2 or (counts.sum(axis=1) != raters).any():
        raise ValueError("every item must have as many ratings as the others, two or more")
    agreeing = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    shares = counts.sum(axis=0) / counts.sum()
    return _beyond_chance(float(agreeing.mean()), float((shares**2).sum()))


def _beyond_chance(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan
