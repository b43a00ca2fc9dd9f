"""Metrics of one method with one user, paired with a reference method on the same conditions.

The condition is the unit: samples of one condition are averaged first, and the bootstrap (Efron
and Tibshirani 1993, percentile interval) resamples conditions. Gains are paired: the difference is
taken within a condition and sample, where both methods met the same user draws, so the difficulty
of a condition cancels.

A dialogue with an unreadable outcome has no engagement. It is excluded from means, counted in
`unreadable_rate`, and never taken as 0; a gain needs two readable outcomes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.evaluation.play import EvaluationConfig, Played

Key = tuple[str, int]  # condition id, sample

TIE = 1e-6
"""Engagements this close are a tie: rounding of equal dialogues depends on their batches."""

WORD = re.compile(r"\w+|[^\w\s]")
"""A word or a punctuation mark, for distinct-n."""


def cell_metrics(
    played: Sequence[Played],
    baseline: Sequence[Played],
    scenario: Scenario,
    *,
    method: str,
    user: str,
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    """Return one cell of evaluation.json: the metrics of a method with a user.

    Args:
        played: the method's dialogues, at least one.
        baseline: those of the reference method (SFT) with the same user; may be `played`, which
            gives a gain of 0 and a win rate of 1/2.
        scenario: defines a full success.
        method: its name, for the table.
        user: its name, for the table.
        config: uses `bootstrap`.
        seed: of the resampling; cells of one run share it, and so their resamples.

    Returns:
        A JSON object. `low` and `high` bound the 95 % interval of `engagement`, `gain_low` and
        `gain_high` that of `gain`. Undefined values are None, such as those of engagement if no
        outcome is readable. `turns` counts policy turns, `response_tokens` is per policy turn,
        `relative_gain` is `gain` over the reference's engagement.

    Raises:
        ValueError: no dialogue, or two of one condition and sample.
    """
    if not played:
        raise ValueError(f"{method} with {user}: there is no dialogue to measure")
    mine, theirs = _readable(played), _readable(baseline)
    engagement = condition_means({key: p.engagement for key, p in mine.items()})
    low, high = bootstrap_interval(engagement, resamples=config.bootstrap, seed=seed)
    released = {key: _release(p, scenario) for key, p in mine.items()}
    values = {key: p.value for key, p in mine.items()}
    responses = [response for p in played for response in p.responses]
    tokens = [count for p in played for count in p.response_tokens]
    figures = {
        "engagement": _mean(engagement),
        "low": low,
        "high": high,
        "release_rate": _mean(condition_means(released)),
        "mean_value": _mean(condition_means(values)),
        "win_rate": win_rate(mine, theirs),
        "turns": _mean([p.turns for p in played]),
        "distinct_1": distinct(responses, 1),
        "distinct_2": distinct(responses, 2),
        "response_tokens": _mean(tokens),
        "unreadable_rate": 1 - len(mine) / len(played),
        **_gain(mine, theirs, resamples=config.bootstrap, seed=seed),
    }
    finite = {name: float(x) if math.isfinite(x) else None for name, x in figures.items()}
    return {"method": method, "user": user, "dialogues": len(played), **finite}


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % bootstrap percentile interval of the mean.

    Args:
        values: `[C]`, one per condition, without nan.
        resamples: draws of C conditions with replacement.
        seed: of the draws.

    Returns:
        Low and high end; both nan for fewer than two conditions, which have no spread.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def condition_means(values: Mapping[Key, float]) -> np.ndarray:
    """Return `[C]` mean over the samples of each condition, conditions in order of appearance."""
    grouped: dict[str, list[float]] = {}
    for (condition, _), value in values.items():
        grouped.setdefault(condition, []).append(value)
    return np.array([np.mean(group) for group in grouped.values()], np.float64)


def win_rate(mine: Mapping[Key, Played], theirs: Mapping[Key, Played]) -> float:
    """Return the share of dialogues that beat the reference's; a tie counts 1/2; nan if none."""
    wins = {}
    for key in _common(mine, theirs):
        difference = mine[key].engagement - theirs[key].engagement
        wins[key] = 0.5 if abs(difference) <= TIE else float(difference > 0)
    return _mean(condition_means(wins))


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct n-grams over all n-grams of the texts, case ignored; nan if none.

    It falls with the amount of text, so compare equal numbers of conditions.

    References:
        Li et al. 2016, "A diversity-promoting objective function", section 5.
    """
    grams = []
    for text in texts:
        tokens = WORD.findall(text.lower())
        grams += list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else math.nan


def _readable(played: Sequence[Played]) -> dict[Key, Played]:
    """Return the dialogues with an engagement, by condition and sample."""
    keys = [(p.condition, p.sample) for p in played]
    if len(set(keys)) < len(keys):
        raise ValueError("two dialogues have the same condition and sample; expected one of each")
    return {key: p for key, p in zip(keys, played, strict=True) if not math.isnan(p.engagement)}


def _common(mine: Mapping[Key, Played], theirs: Mapping[Key, Played]) -> list[Key]:
    return [key for key in mine if key in theirs]


def _release(played: Played, scenario: Scenario) -> float:
    """Return the probability of a full success; without one, whether the value is a full success.

    An expected value must not be tested for success: half a chance of a dollar is 50 cents, which
    would count as a donation. So a read-out with probabilities states this one.
    """
    if played.released is not None:
        return played.released
    return float(scenario.released(played.dialogue.condition, played.value))


def _gain(
    mine: Mapping[Key, Played], theirs: Mapping[Key, Played], *, resamples: int, seed: int
) -> dict[str, float]:
    """Return the paired gain over the reference, over pairs of readable outcomes."""
    keys = _common(mine, theirs)
    gains = condition_means({key: mine[key].engagement - theirs[key].engagement for key in keys})
    low, high = bootstrap_interval(gains, resamples=resamples, seed=seed)
    gain = _mean(gains)
    reference = _mean(condition_means({key: theirs[key].engagement for key in keys}))
    relative = gain / reference if reference > 0 else math.nan
    return {"gain": gain, "gain_low": low, "gain_high": high, "relative_gain": relative}


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean; nan if there are no values (numpy would warn)."""
    return float(np.mean(values)) if len(values) else math.nan
