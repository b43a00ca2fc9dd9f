"""Simulated raters of a known bias: the scores recover it, and tell what kind it is."""

from __future__ import annotations

import numpy as np
import pytest

from ixjax.evaluation.rating import Ratings
from ixjax.evaluation.rating_scores import score
from ixjax.io import InputError

METHODS = ("sft", "dpo")


def sides(count: int) -> dict[str, tuple[str, str]]:
    """Who is A and who is B: in turns."""
    return {f"item-{i}": METHODS if i % 2 else METHODS[::-1] for i in range(count)}


def rater(
    name: str, items: dict[str, tuple[str, str]], *, prefers: float, ties: float = 0.0, seed: int
) -> Ratings:
    """Says tie with one probability; otherwise takes `dpo` with another."""
    random = np.random.default_rng(seed)
    choices = {}
    for item, methods in items.items():
        wanted = "dpo" if random.random() < prefers else "sft"
        tie = random.random() < ties
        choices[item] = "tie" if tie else "AB"[methods.index(wanted)]
    return Ratings(name, choices)


@pytest.mark.parametrize(("prefers", "ties"), [(0.5, 0.0), (0.7, 0.0), (0.7, 0.3), (0.95, 0.1)])
def test_the_interval_holds_a_raters_bias_as_often_as_it_says(prefers, ties):
    """Of 400 raters an interval of 95 % misses 20 on average, and 28 or fewer in 97 % of draws.

    Both by the binomial of 400 trials; these draws are always the same.
    """
    items, truth = sides(50), ties / 2 + (1 - ties) * prefers
    found = [
        score([rater("ann", items, prefers=prefers, ties=ties, seed=seed)], items, METHODS)
        for seed in range(400)
    ]
    assert sum(not one["low"] <= truth <= one["high"] for one in found) <= 28
    assert np.mean([one["win_rate"] for one in found]) == pytest.approx(truth, abs=0.01)


def test_a_rater_who_goes_by_place_is_found_out():
    items = sides(40)
    found = score([Ratings("ann", dict.fromkeys(items, "A"))], items, METHODS)
    assert found["win_rate"] == 0.5
    assert found["first_shown"]["share"] == 1.0
    assert found["first_shown"]["low"] > 0.9


def test_several_raters_of_an_item_are_one_trial():
    """Three raters who copy each other are no surer than one."""
    items = sides(30)
    one = rater("a", items, prefers=0.7, seed=1)
    alone = score([one], items, METHODS)
    copies = [Ratings(name, one.choices) for name in "abc"]
    three = score(copies, items, METHODS)
    for name in ("win_rate", "low", "high", "first_shown"):
        assert three[name] == pytest.approx(alone[name])
    assert three["fleiss"] == {"items": 30, "kappa": pytest.approx(1.0)}
    assert [c["kappa"] for c in three["cohen"]] == pytest.approx([1.0] * 3)


def test_raters_who_decide_by_coin_do_not_agree():
    items = sides(2000)
    raters = [rater(name, items, prefers=0.5, ties=0.2, seed=i) for i, name in enumerate("ab")]
    found = score(raters, items, METHODS)
    assert found["fleiss"]["kappa"] == pytest.approx(0, abs=0.06)
    assert found["cohen"][0]["kappa"] == pytest.approx(0, abs=0.06)


def test_votes_by_hand():
    items = sides(3)  # 0 and 2: A is dpo; 1: A is sft
    ann = Ratings("ann", {"item-0": "A", "item-1": "A", "item-2": "tie"})
    ben = Ratings("ben", {"item-0": "A", "item-1": "B"})
    found = score([ann, ben], items, METHODS)
    assert found["votes"] == {"sft": 1, "dpo": 3, "tie": 1}
    assert found["win_rate"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert [r["items"] for r in found["by_rater"]] == [3, 2]
    assert [r["win_rate"] for r in found["by_rater"]] == pytest.approx([0.5, 1.0])
    # Of the two items that both rated they agree on one; by chance they would on half.
    assert found["cohen"] == [{"raters": ["ann", "ben"], "items": 2, "kappa": pytest.approx(0.0)}]
    # Item 0: both A; item 1: one of two; item 2: nobody decided.
    assert found["first_shown"]["share"] == pytest.approx((1 + 1 / 2) / 2)


def test_one_rater_has_nobody_to_agree_with():
    found = score([Ratings("ann", {"item-0": "A"})], sides(1), METHODS)
    assert (found["cohen"], found["fleiss"]) == ([], {"items": 1, "kappa": None})


def test_two_files_of_one_rater_are_refused():
    twice = [Ratings("ann", {"item-0": "A"}), Ratings("ann", {"item-0": "B"})]
    with pytest.raises(InputError, match="two files are of the rater 'ann'"):
        score(twice, sides(1), METHODS)
