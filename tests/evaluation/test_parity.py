"""Parity: engine and trainer agree, and where they do not, the token is named."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, Rendered, View
from ixjax.evaluation import TOLERANCES, parity
from ixjax.generation import Engine, SamplingConfig
from ixjax.io import InputError
from ixjax.models import LoraConfig, add_lora
from ixjax.testing import byte_tokenizer, tiny_model
from ixjax.training import example_logprobs

CONDITION = UserCondition("c", {"need": "advice", "distress": 4, "patience": 3})
OPENED = Dialogue("first", CONDITION, (Turn("user", "hi ."),))
DIALOGUES = [
    OPENED.said("policy", "okay .").said("user", "thanks ."),
    dataclasses.replace(
        OPENED.said("policy", "what do you need ?").said("user", "advice .").said("policy", "so ."),
        id="second",
    ),
]
SAMPLING = SamplingConfig(max_new_tokens=9)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_tokenizer(byte_tokenizer())


@pytest.fixture(scope="module")
def model(template):
    return tiny_model(template.vocab_size, max_length=192)


def view(template, role="policy") -> View:
    return View(scenario=get_scenario("sandbox"), role=role, template=template)


@pytest.mark.parametrize("role", ["policy", "user"])
def test_engine_and_trainer_agree_within_rounding(model, template, role):
    found = parity(model, view(template, role), DIALOGUES, sampling=SAMPLING, seed=0)
    assert found.dialogues == 2
    assert 2 <= found.tokens <= 18
    assert 0 <= found.mean["decoded"] <= found.largest["decoded"] < 1e-5
    assert 0 <= found.mean["scored"] <= found.largest["scored"] < 1e-4  # differences of sums
    assert found.worst.size == max(found.largest.values())


@pytest.mark.slow
def test_adapters_are_compared_too(model, template):
    adapted = add_lora(model, LoraConfig(rank=2, alpha=4.0, targets=("query",)), seed=0)
    weight = adapted.layers.query_lora_b
    weight[...] = np.random.default_rng(0).normal(0, 0.5, weight[...].shape).astype(np.float32)
    found = parity(adapted, view(template), DIALOGUES, sampling=SAMPLING, seed=0)
    assert max(found.largest.values()) < 1e-4


@pytest.mark.parametrize("way", ["decoded", "scored"])
def test_a_token_that_the_engine_gets_wrong_is_named(model, template, monkeypatch, way):
    decode, score = Engine.decode, Engine.score

    def decodes_wrongly(self, requests):
        decoded = decode(self, requests)
        decoded[1].logprobs[2] += 0.25
        return decoded

    def scores_wrongly(self, *arguments):
        scores = score(self, *arguments).copy()
        scores[1, 2:] += 0.25  # the beginnings that hold the third token
        return scores

    if way == "decoded":
        monkeypatch.setattr(Engine, "decode", decodes_wrongly)
    else:
        monkeypatch.setattr(Engine, "score", scores_wrongly)
    found = parity(model, view(template), DIALOGUES, sampling=SAMPLING, seed=0)
    worst = found.worst
    assert (worst.dialogue, worst.token, worst.way) == ("second", 2, way)
    assert worst.size == pytest.approx(0.25, abs=1e-3)
    assert worst.engine - worst.trainer == pytest.approx(0.25, abs=1e-3)


def test_nan_is_the_largest_difference(model, template, monkeypatch):
    decode = Engine.decode

    def nan(self, requests):
        decoded = decode(self, requests)
        for request in decoded:
            request.logprobs = [float("nan")] * len(request.tokens)
        return decoded

    monkeypatch.setattr(Engine, "decode", nan)
    found = parity(model, view(template), DIALOGUES, sampling=SAMPLING, seed=0)
    assert found.largest["decoded"] == found.worst.size == np.inf


def test_16_bit_is_compared_within_its_own_tolerance(template):
    config = tiny_model(template.vocab_size).config
    assert {config.compute_dtype, "bfloat16", "float16"} == set(TOLERANCES)


def test_a_side_without_a_turn_is_said(model, template):
    with pytest.raises(InputError, match="the policy has no turn in any of 1 dialogues"):
        parity(model, view(template), [OPENED], sampling=SAMPLING, seed=0)


def test_log_probabilities_of_packed_examples_are_those_of_each_alone(model):
    """Two with the same tokens, scored in other places, are told apart."""
    examples = [
        Rendered((1, 20, 30, 40), (False, False, True, True), 0),
        Rendered((1, 20, 30, 40), (False, True, False, True), 0),
        Rendered((1, 50), (True, True), 0),  # nothing predicts the first token
    ]
    found = example_logprobs(model, examples)
    for example, logprobs in zip(examples, found, strict=True):
        tokens = np.array([example.tokens])
        alone = np.asarray(jax.nn.log_softmax(model(tokens)[0]))
        places = [i for i in range(1, len(example.tokens)) if example.scored[i]]
        expected = [alone[i - 1, example.tokens[i]] for i in places]
        np.testing.assert_allclose(logprobs, expected, atol=1e-5)
