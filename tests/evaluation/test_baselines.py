"""Baselines of outcomes: a ridge regression equals one that is solved as a system of equations."""

from __future__ import annotations

import numpy as np
import pytest

from ixjax.dialogue.types import Dialogue, Outcome, Turn, UserCondition
from ixjax.evaluation import EvaluationConfig, outcome_baselines
from ixjax.evaluation.baselines import (
    BASELINES,
    STRENGTHS,
    condition_features,
    predict_outcomes,
    ridge,
    word_features,
)
from ixjax.evaluation.fidelity import halved


def drawn(count: int, features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, features))
    x -= x.mean(axis=0)
    return x, x[:, 0] * 0.3 + rng.normal(size=count) * 0.2 + 0.7


@pytest.mark.parametrize(("count", "features"), [(30, 4), (12, 40)])
def test_ridge_is_the_solution_of_least_error_when_each_dialogue_is_left_out(count, features):
    x, y = drawn(count, features, seed=features)
    test = np.random.default_rng(1).normal(size=(5, features))

    def solve(keep: np.ndarray, strength: float, at: np.ndarray) -> np.ndarray:
        design = np.hstack([np.ones((keep.sum(), 1)), x[keep]])
        penalty = strength * np.diag([0.0] + [1.0] * features)
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ y[keep])
        return np.hstack([np.ones((len(at), 1)), at]) @ weights

    everyone, errors = np.ones(count, bool), []
    for strength in STRENGTHS * features / count:
        without = [everyone & (np.arange(count) != i) for i in range(count)]
        left_out = [solve(keep, strength, x[~keep])[0] for keep in without]
        errors.append(np.mean((np.array(left_out) - y) ** 2))
    best = STRENGTHS[int(np.argmin(errors))] * features / count
    np.testing.assert_allclose(ridge(x, y, test), solve(everyone, best, test), atol=1e-8)


def dialogue(number: int, words: str, engagement: float | None, mood: int = 1) -> Dialogue:
    condition = UserCondition(f"d{number}", {"mood": mood, "topic": "work", "story": "a b c d e"})
    turns = (Turn("user", "hi"), Turn("policy", "hello"), Turn("user", words))
    outcome = None if engagement is None else Outcome(0.0, engagement)
    return Dialogue(f"d{number}", condition, turns, outcome)


def test_features_tell_sides_categories_and_texts_apart():
    found = word_features(dialogue(0, "No, no!", 0.5, mood=3))
    assert found["mood"] == 3.0
    assert {"mood: 3", "topic: work", "story: e", "policy says hello"} <= found.keys()
    assert found["user says no"] == pytest.approx(np.log(3))
    assert "policy says no" not in found
    assert condition_features(dialogue(0, "x", None, mood=3)).keys() < found.keys()


def test_words_predict_where_they_tell_and_half_a_dialogue_does_not():
    said = [("thanks", 0.9), ("no", 0.1)] * 20
    train = [dialogue(i, words, value) for i, (words, value) in enumerate(said)]
    test = [dialogue(i, words, value) for i, (words, value) in enumerate(said[:6])]
    config = EvaluationConfig(fidelity_dialogues=6)
    by_name = {r["baseline"]: r for r in outcome_baselines(train, test, config=config)}
    assert list(by_name) == list(BASELINES)
    assert by_name["mean"]["outcome_mae"] == pytest.approx(0.4)
    assert by_name["mean"]["outcome_spearman"] is None
    assert by_name["words"]["outcome_mae"] < 0.05
    assert by_name["words"]["outcome_spearman"] == pytest.approx(1.0)
    assert by_name["words"]["outcome_mae_half"] == pytest.approx(0.4)  # both say only "hi" there
    assert {r["dialogues"] for r in by_name.values()} == {6}


def test_without_outcomes_there_are_no_baselines():
    with_outcome, without = [dialogue(0, "x", 0.5)], [dialogue(1, "x", None)]
    config = EvaluationConfig()
    assert outcome_baselines(without, with_outcome, config=config) == []
    assert outcome_baselines(with_outcome, without, config=config) == []
    with pytest.raises(ValueError, match="no training dialogue has an outcome"):
        predict_outcomes(BASELINES["mean"], without, with_outcome, halved)
