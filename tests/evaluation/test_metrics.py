"""Figures against closed forms; intervals against the share of times that they hold the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ixjax.dialogue.types import Dialogue, Turn, UserCondition
from ixjax.evaluation import EvaluationConfig, Played, bootstrap_interval, cell_metrics
from ixjax.evaluation.metrics import distinct
from tests.search.doubles import MoodScenario

CONFIG = EvaluationConfig(bootstrap=500)
KEYS = [
    "method",
    "user",
    "dialogues",
    "engagement",
    "low",
    "high",
    "release_rate",
    "mean_value",
    "win_rate",
    "turns",
    "distinct_1",
    "distinct_2",
    "response_tokens",
    "unreadable_rate",
    "gain",
    "gain_low",
    "gain_high",
    "relative_gain",
]


def game(
    condition: str, engagement: float, *, sample=0, said=("fine",), value=None, released=None
) -> Played:
    turns = [Turn("user", "hello")]
    for text in said:
        turns += [Turn("policy", text), Turn("user", "hm")]
    return Played(
        condition=condition,
        sample=sample,
        dialogue=Dialogue(condition, UserCondition(condition, {}), tuple(turns)),
        engagement=engagement,
        value=4 * engagement if value is None else value,
        released=released,
        ended=False,
        response_tokens=tuple(len(text.split()) + 1 for text in said),
    )


def games(engagements, **settings) -> list[Played]:
    return [game(f"c{i}", float(x), **settings) for i, x in enumerate(engagements)]


def cell(played, baseline, *, seed=0, config=CONFIG):
    return cell_metrics(
        played, baseline, MoodScenario(), method="dpo", user="true", config=config, seed=seed
    )


def test_a_cell_by_hand():
    mine = [
        game("a", 1.0, said=("one two", "one two")),
        game("b", 0.5, said=("one three",)),
        game("c", 0.25, said=("x",)),
        game("d", math.nan, said=("one two three",)),
    ]
    theirs = [game("z", 0.0), *(game(name, 0.5) for name in "abc"), game("d", 1.0)]
    found = cell(mine, theirs)
    assert list(found) == KEYS
    assert (found["method"], found["user"], found["dialogues"]) == ("dpo", "true", 4)
    assert found["engagement"] == pytest.approx(1.75 / 3)
    assert found["low"] <= found["engagement"] <= found["high"]
    assert found["release_rate"] == pytest.approx(1 / 3)  # the scenario's: value 4
    assert found["mean_value"] == pytest.approx(7 / 3)
    assert found["win_rate"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["turns"] == pytest.approx(5 / 4)
    # one two one two | one three | x | one two three: words, then pairs within a response
    assert found["distinct_1"] == pytest.approx(4 / 10)
    assert found["distinct_2"] == pytest.approx(3 / 5)
    assert found["response_tokens"] == pytest.approx((3 + 3 + 3 + 2 + 4) / 5)
    assert found["unreadable_rate"] == 0.25
    assert found["gain"] == pytest.approx(0.25 / 3)
    assert found["relative_gain"] == pytest.approx(0.25 / 1.5)


def test_the_reference_gains_nothing_over_itself():
    played = games([0.1, 0.4, 0.9])
    found = cell(played, played)
    assert (found["gain"], found["gain_low"], found["gain_high"]) == (0, 0, 0)
    assert (found["relative_gain"], found["win_rate"]) == (0, 0.5)


def test_pairing_takes_out_what_is_hard_about_a_condition():
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.9, 100)
    found = cell(games(base + 0.05), games(base))
    assert found["gain"] == pytest.approx(0.05)
    assert found["gain_low"] == pytest.approx(0.05)  # the unpaired spread is 0.1
    assert found["high"] - found["low"] > 0.08
    shuffled = cell(games(base + 0.05)[::-1], games(base))
    assert shuffled["gain"] == pytest.approx(found["gain"])  # by name, not by place


def test_a_gain_needs_both_sides_readable():
    mine = games([0.9, math.nan, 0.5, 0.5])
    theirs = games([math.nan, 0.1, 0.25, 0.5])
    found = cell(mine, theirs)
    assert found["gain"] == pytest.approx(0.125)
    assert found["win_rate"] == pytest.approx(0.75)
    assert found["relative_gain"] == pytest.approx(0.25 / 0.75)
    assert found["engagement"] == pytest.approx(1.9 / 3)
    assert found["unreadable_rate"] == 0.25


def test_unreadable_is_never_zero():
    found = cell(games([math.nan] * 3), games([0.5] * 3))
    assert found["unreadable_rate"] == 1
    unknown = (
        "engagement",
        "low",
        "high",
        "release_rate",
        "mean_value",
        "win_rate",
        "gain",
        "gain_low",
        "gain_high",
        "relative_gain",
    )
    assert all(found[name] is None for name in unknown)
    assert found["turns"] == 1
    assert found["distinct_1"] == pytest.approx(1 / 3)
    json.dumps(found, allow_nan=False)


def test_without_a_readable_reference_there_is_no_gain():
    for baseline in ([], games([math.nan] * 2)):
        found = cell(games([0.5, 0.7]), baseline)
        assert found["engagement"] == pytest.approx(0.6)
        assert found["gain"] is None
        assert found["win_rate"] is None


def test_a_reference_at_zero_has_no_relative_gain():
    found = cell(games([0.5, 0.7]), games([0.0, 0.0]))
    assert found["gain"] == pytest.approx(0.6)
    assert found["relative_gain"] is None


def test_rounding_is_no_win():
    assert cell(games([0.5 + 1e-8]), games([0.5]))["win_rate"] == 0.5
    assert cell(games([0.5 + 1e-4]), games([0.5]))["win_rate"] == 1


def test_samples_are_averaged_within_their_condition():
    """Nine samples of one condition are not nine conditions: those are the unit of the spread."""
    mine = [game("a", 1.0, sample=i) for i in range(9)] + [game("b", 0.0)]
    found = cell(mine, [game("a", 0.5, sample=i) for i in range(9)] + [game("b", 0.5)])
    assert found["engagement"] == 0.5
    assert found["gain"] == 0
    assert found["win_rate"] == 0.5
    assert (found["low"], found["high"]) == (0, 1)  # two conditions: both, or twice the same


def test_release_prefers_the_read_out_s_probability():
    """Expecting 50 cents is not a donation: the probability is what counts, where it is known."""
    played = [game("a", 1.0, value=4, released=0.5), game("b", 1.0, value=4)]
    assert cell(played, played)["release_rate"] == 0.75


def test_nothing_played_and_played_twice_are_refused():
    with pytest.raises(ValueError, match="dpo with true: there is no dialogue"):
        cell([], [])
    with pytest.raises(ValueError, match="same condition and sample"):
        cell([game("a", 1.0), game("a", 0.5)], [])


@pytest.mark.parametrize(("texts", "n", "expected"), [
    (["a b c d"], 1, 1.0),
    (["a a a a"], 1, 0.25),
    (["a a a a"], 2, 1 / 3),
    (["A b", "a B"], 2, 0.5),  # case ignored
    (["a b", "c d"], 2, 1.0),  # b c is in no response
    (["Yes, yes."], 1, 3 / 4),  # yes , yes .
])  # fmt: skip
def test_distinct_by_hand(texts, n, expected):
    assert distinct(texts, n) == pytest.approx(expected)


def test_distinct_of_too_short_texts_is_unknown():
    assert math.isnan(distinct(["hi", "yo"], 2))


def test_the_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(7)
    truth, hits, trials = 0.3, 0, 400
    for trial in range(trials):
        values = rng.beta(0.6, 1.4, size=60)  # skewed, mean 0.3
        low, high = bootstrap_interval(values, resamples=400, seed=trial)
        hits += low <= truth <= high
    # Three standard errors of 400 trials are 3.3 points; the percentile interval is a little short.
    assert 0.91 <= hits / trials <= 0.98


def test_the_interval_is_that_of_the_normal_approximation_for_many_conditions():
    values = np.random.default_rng(1).uniform(size=2000)
    low, high = bootstrap_interval(values, resamples=2000, seed=0)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.002)
    assert high == pytest.approx(values.mean() + half, abs=0.002)


def test_the_interval_is_a_function_of_its_seed():
    values = np.random.default_rng(1).uniform(size=20)
    one, again, other = (bootstrap_interval(values, resamples=99, seed=s) for s in (3, 3, 4))
    assert one == again != other


def test_one_condition_has_no_interval():
    assert all(math.isnan(end) for end in bootstrap_interval([0.4], resamples=10, seed=0))
    found = cell(games([0.5]), games([0.25]))
    assert found["gain"] == 0.25
    assert found["gain_low"] is None
