"""Results of a rating: win rates with intervals, and agreement of the raters."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ixjax.evaluation.agreement import cohen_kappa, fleiss_kappa, wilson_interval
from ixjax.evaluation.rating import CHOICES, Choice, Ratings
from ixjax.io import InputError


def score(
    ratings: Sequence[Ratings], sides: Mapping[str, tuple[str, str]], methods: tuple[str, str]
) -> dict[str, Any]:
    """Return win rates with intervals, and the agreement of the raters.

    The item is the unit: its score is the mean over its raters of 1 if the second method is
    preferred, 1/2 for a tie, else 0. The interval is Wilson's over items. Kappas have three
    categories: the two methods and a tie.

    Args:
        ratings: at least one, of raters with different names.
        sides: the methods of A and B by item id.
        methods: the two that were compared.

    Returns:
        A JSON object: `win_rate` of the second method with `low` and `high`; `votes` by choice;
        `first_shown`, the mean over items of the share of A among decided votes, with its interval
        (1/2 without a position bias); `by_rater`; `cohen` for each two raters; `fleiss` over the
        items that all have rated. Undefined values are null.
    """
    names = [r.rater.casefold() for r in ratings]
    for rating, name in zip(ratings, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"two files are of the rater {rating.rater!r}; expected one each")
    chosen = {r.rater: {i: _method(c, sides[i]) for i, c in r.choices.items()} for r in ratings}
    votes = [choice for by_item in chosen.values() for choice in by_item.values()]
    decided = [{i: float(c == "A") for i, c in r.choices.items() if c != "tie"} for r in ratings]
    return {
        "methods": list(methods),
        "raters": len(ratings),
        "items": len({item for by_item in chosen.values() for item in by_item}),
        "votes": {name: votes.count(name) for name in (*methods, "tie")},
        **_win_rate(list(chosen.values()), methods[1]),
        "first_shown": _by_item(decided, "share"),
        "by_rater": [
            {"rater": name, "items": len(by_item), **_win_rate([by_item], methods[1])}
            for name, by_item in chosen.items()
        ],
        "cohen": [
            _pairwise(one, other, chosen) for one, other in itertools.combinations(chosen, 2)
        ],
        "fleiss": _fleiss(list(chosen.values()), (*methods, "tie")),
    }


def _method(choice: Choice, sides: tuple[str, str]) -> str:
    return "tie" if choice == "tie" else sides[CHOICES.index(choice)]


def _win_rate(by_rater: Sequence[Mapping[str, str]], method: str) -> dict[str, Any]:
    scores = [
        {item: 0.5 if choice == "tie" else float(choice == method) for item, choice in one.items()}
        for one in by_rater
    ]
    return _by_item(scores, "win_rate")


def _by_item(by_rater: Sequence[Mapping[str, float]], name: str) -> dict[str, Any]:
    """Return the mean over items of each item's mean over raters, as `name`, with its interval."""
    found: dict[str, list[float]] = {}
    for scores in by_rater:
        for item, value in scores.items():
            found.setdefault(item, []).append(value)
    mean = statistics.fmean(map(statistics.fmean, found.values())) if found else math.nan
    low, high = wilson_interval(mean, len(found))
    return _known({name: mean, "low": low, "high": high})


def _pairwise(one: str, other: str, chosen: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    common = [item for item in chosen[one] if item in chosen[other]]
    left, right = ([chosen[name][item] for item in common] for name in (one, other))
    kappa = cohen_kappa(left, right)
    return {"raters": [one, other], "items": len(common), **_known({"kappa": kappa})}


def _fleiss(by_rater: Sequence[Mapping[str, str]], categories: Sequence[str]) -> dict[str, Any]:
    common = [item for item in by_rater[0] if all(item in choices for choices in by_rater)]
    if len(by_rater) < 2:
        return {"items": len(common), "kappa": None}
    chosen = [[choices[item] for choices in by_rater] for item in common]
    counts = np.array([[row.count(name) for name in categories] for row in chosen])
    return {"items": len(common), **_known({"kappa": fleiss_kappa(counts)})}


def _known(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
