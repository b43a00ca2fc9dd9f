"""Fidelity figures: likelihoods, errors, ranks and calibration against plain formulas."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from ixjax.dialogue.chat import View
from ixjax.dialogue.scenarios import sandbox
from ixjax.dialogue.types import Dialogue, Outcome, OutcomeReading, Turn, UserCondition
from ixjax.evaluation import EvaluationConfig, fidelity, utterance_nll
from ixjax.evaluation.fidelity import (
    calibration_bins,
    calibration_error,
    expected_engagements,
    halved,
    spearman,
)
from ixjax.generation import ModelSpeaker, SamplingConfig
from ixjax.models import ModelConfig, Transformer, init_model
from ixjax.parallel import make_mesh
from tests.dialogue.chat_families import ToyScenario, template_of
from tests.search.doubles import Double, Side

KEYS = {
    "simulator", "dialogues", "utterance_nll", "outcome_mae", "outcome_mae_baseline",
    "outcome_spearman", "outcome_spearman_half", "calibration_error", "calibration",
    "outcome_mae_half", "calibration_error_half",
    "unreadable_rate",
}  # fmt: skip


class ReaderSide(Side):
    def outcome(self):
        yield from ()
        assert self.dialogue.outcome is None, "the answer was shown"
        text = next(turn.text for turn in reversed(self.dialogue.turns) if turn.role == "user")
        value = math.nan if text == "?" else float(text)
        return OutcomeReading(value, value)


class Reader(Double):
    """A user whose read-out is the number in the last user turn; "?" is unreadable."""

    participant = ReaderSide


def human(name: str, *said: str, recorded: float | None) -> Dialogue:
    turns = tuple(Turn("user" if i % 2 == 0 else "policy", text) for i, text in enumerate(said))
    outcome = None if recorded is None else Outcome(recorded, recorded)
    return Dialogue(name, UserCondition(name, {"situation": "an exam"}), turns, outcome)


def measure(user, dialogues, *, train=(0.5,), **settings):
    return fidelity(
        user,
        dialogues,
        name="simulator",
        config=EvaluationConfig(**settings),
        train_outcomes=[Outcome(x, x) for x in train],
    )


def test_outcome_figures_by_hand():
    dialogues = [
        human("a", "0.1", "ok", "0.2", recorded=0.0),
        human("b", "0.1", "ok", "0.6", "bye", recorded=0.5),
        human("c", "0.3", "ok", "0.9", recorded=1.0),
        human("d", "0.9", "ok", "0.9", recorded=None),
    ]
    found = measure(Reader(), dialogues, train=(0.2, 0.6))
    assert set(found) == KEYS
    assert (found["simulator"], found["dialogues"]) == ("simulator", 3)
    assert found["outcome_mae"] == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    assert found["outcome_mae_baseline"] == pytest.approx((0.4 + 0.1 + 0.6) / 3)
    assert found["outcome_spearman"] == pytest.approx(1.0)
    # After the first of two user turns: 0.1, 0.1, 0.3 against 0, 0.5, 1.
    half = scipy.stats.spearmanr([0.1, 0.1, 0.3], [0, 0.5, 1]).statistic
    assert found["outcome_spearman_half"] == pytest.approx(half)
    assert found["outcome_mae_half"] == pytest.approx((0.1 + 0.4 + 0.7) / 3)
    assert found["calibration_error"] == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    assert [(b["count"], b["recorded"]) for b in found["calibration"]] == [(1, 0), (1, 0.5), (1, 1)]
    assert found["utterance_nll"] is None  # a scripted user has no likelihood
    assert found["unreadable_rate"] == 0
    json.dumps(found, allow_nan=False)


def test_unreadable_outcomes_are_left_out_and_counted():
    dialogues = [
        human("a", "0.2", recorded=0.0),
        human("b", "?", recorded=0.5),
        human("c", "0.8", recorded=1.0),
        human("d", "?", recorded=1.0),
    ]
    found = measure(Reader(), dialogues)
    assert found["outcome_mae"] == pytest.approx(0.2)
    assert found["outcome_mae_baseline"] == pytest.approx(0.5)  # over the same two dialogues
    assert found["unreadable_rate"] == 0.5
    assert sum(b["count"] for b in found["calibration"]) == 2


def test_constants_have_no_correlation_and_nothing_has_no_error():
    same = measure(Reader(), [human(n, "0.5", recorded=x) for n, x in (("a", 0.0), ("b", 1.0))])
    assert same["outcome_spearman"] is None
    assert same["outcome_mae"] == 0.5
    none = measure(Reader(), [human("a", "0.5", recorded=None)])
    assert none["dialogues"] == 0
    assert none["outcome_mae"] is None
    assert none["outcome_mae_baseline"] is None
    assert none["unreadable_rate"] is None
    assert none["calibration"] == []
    assert (
        measure(Reader(), [human("a", "0.5", recorded=0.5)], train=())["outcome_mae_baseline"]
        is None
    )


def test_a_dialogue_without_a_user_turn_is_left_out():
    mute = Dialogue("m", UserCondition("m", {}), (Turn("policy", "hello?"),), Outcome(0.0, 0.0))
    assert measure(Reader(), [mute, human("a", "0.5", recorded=0.5)])["dialogues"] == 1


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_the_batch_size_changes_nothing(batch):
    dialogues = [human(str(i), str(i / 10), recorded=0.5) for i in range(5)]
    found = expected_engagements(Reader(), dialogues, batch=batch)
    np.testing.assert_array_equal(found, np.arange(5) / 10)


def test_half_ends_after_the_user_turn_in_the_middle():
    def kept(*said):
        return [turn.text for turn in halved(human("a", *said, recorded=1.0)).turns]

    assert kept("1") == ["1"]
    assert kept("1", "a") == ["1"]
    assert kept("1", "a", "2") == ["1"]
    assert kept("1", "a", "2", "b", "3") == ["1", "a", "2"]
    assert kept("1", "a", "2", "b", "3", "c", "4") == ["1", "a", "2"]


def test_rank_correlation_is_scipy_s():
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, right = rng.integers(0, 6, size=(2, 15)) / 5  # many ties
        expected = scipy.stats.spearmanr(left, right).statistic
        assert spearman(left, right) == pytest.approx(expected)
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))
    assert math.isnan(spearman(np.ones(1), np.ones(1)))


def test_calibration_by_hand():
    predicted = np.array([0.0, 0.05, 0.95, 1.0])
    bins = calibration_bins(predicted, np.array([0.0, 0.5, 1.0, 0.0]))
    assert [(b["low"], b["high"], b["count"]) for b in bins] == [(0.0, 0.1, 2), (0.9, 1.0, 2)]
    assert [b["predicted"] for b in bins] == pytest.approx([0.025, 0.975])
    assert [b["recorded"] for b in bins] == [0.25, 0.5]
    assert calibration_error(bins) == pytest.approx((0.225 + 0.475) / 2)


def test_a_calibrated_user_has_a_small_calibration_error():
    rng = np.random.default_rng(0)
    predicted = rng.uniform(size=20_000)
    recorded = (rng.uniform(size=20_000) < predicted).astype(float)
    assert calibration_error(calibration_bins(predicted, recorded)) < 0.02
    assert calibration_error(calibration_bins(predicted, 1 - recorded)) > 0.4


def test_the_true_user_is_faithful_to_its_own_dialogues():
    corpus = sandbox.generate_corpus(40, seed=5)
    found = measure(
        sandbox.TrueUser(0), corpus, train=[d.outcome.engagement for d in corpus], batch=16
    )
    assert found["outcome_mae"] == pytest.approx(0, abs=1e-9)
    assert found["outcome_spearman"] == pytest.approx(1)
    assert found["calibration_error"] == pytest.approx(0, abs=1e-9)
    assert found["outcome_mae_baseline"] > 0.1
    assert found["outcome_spearman_half"] < 1


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        vocab_size=len(template_of("own").tokenizer),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=24,
        max_length=192,
    )
    return Transformer(config, rngs=nnx.Rngs(0))


HUMANS = [
    human("a", "I failed", "oh no", "yes", recorded=0.5),
    human("b", "hello there", "hi", "it is bad", "I see", "bye", recorded=1.0),
    human("c", "hm", "and?", recorded=None),
]


@pytest.mark.slow
def test_utterance_nll_is_the_teacher_forced_mean(model):
    """Packed and padded, on one device and on all, against plain forward passes of each alone."""
    view = View(ToyScenario(policy_opens=False), "user", template_of("own"))
    losses = []
    for dialogue in HUMANS:
        rendered = view.training(dialogue, max_tokens=192, outcome=False)
        logprobs = jax.nn.log_softmax(model(jnp.array([rendered.tokens])))[0]
        losses += [
            -float(logprobs[i - 1, token])
            for i, (token, scored) in enumerate(zip(rendered.tokens, rendered.scored, strict=True))
            if scored
        ]
    assert utterance_nll(model, view, HUMANS) == pytest.approx(np.mean(losses), rel=1e-5)
    spread = init_model(model.config, seed=0, mesh=make_mesh())
    nnx.update(spread, jax.tree.map(jax.device_put, nnx.state(model), shardings(spread)))
    assert utterance_nll(spread, view, HUMANS) == pytest.approx(np.mean(losses), rel=1e-5)
    assert math.isnan(utterance_nll(model, view, []))


def shardings(model):
    return jax.tree.map(lambda leaf: leaf.sharding, nnx.state(model))


@pytest.mark.slow
def test_a_model_is_measured_in_words_and_outcomes(model):
    view = View(ToyScenario(policy_opens=False), "user", template_of("own"))
    user = ModelSpeaker(model, view, SamplingConfig(max_new_tokens=8), seed=0)
    one, two = (measure(user, HUMANS, batch=batch) for batch in (1, 2))
    assert one["utterance_nll"] == pytest.approx(utterance_nll(model, view, HUMANS), rel=1e-6)
    assert one["dialogues"] == 2
    assert 0 <= one["outcome_mae"] <= 1
    assert one["outcome_mae"] == pytest.approx(two["outcome_mae"], abs=1e-6)
