"""Speakers: incremental contexts equal whole ones, read-outs equal hand-made scores."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.generation import ModelSpeaker, SamplingConfig
from ixjax.generation.turns import SILENCE
from ixjax.io import InputError
from ixjax.testing import byte_tokenizer, tiny_model

CONDITION = UserCondition("c", {"need": "advice", "distress": 4, "patience": 3})
OPENED = Dialogue("d", CONDITION, (Turn("user", "hi ."),))
ANSWERED = OPENED.said("policy", "okay .")


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_tokenizer(byte_tokenizer())


@pytest.fixture(scope="module")
def model(template):
    return tiny_model(template.vocab_size, max_length=192)


def speaker(model, template, role, **settings) -> ModelSpeaker:
    view = View(scenario=get_scenario("sandbox"), role=role, template=template)
    sampling = SamplingConfig(max_new_tokens=8)
    return ModelSpeaker(model, view, sampling, seed=0, **settings)


def teacher_forced(model, tokens) -> np.ndarray:
    """Log-probabilities of every next token, by one plain pass."""
    return np.asarray(jax.nn.log_softmax(model(np.asarray([tokens]))[0]))


def identities(rows: int) -> np.ndarray:
    return np.arange(rows, dtype=np.uint32)[:, None]


def test_listening_to_a_turn_equals_reading_the_dialogue_whole(model, template):
    policy = speaker(model, template, "policy")
    grown = policy.listen(policy.start([ANSWERED]), ["that does not help ."])
    whole = policy.start([ANSWERED.said("user", "that does not help .")])
    np.testing.assert_allclose(grown.contexts.logits, whole.contexts.logits, atol=1e-4)
    assert grown.contexts.lengths == whole.contexts.lengths


def test_what_was_spoken_is_in_the_context_that_hears_the_answer(model, template):
    policy = speaker(model, template, "policy")
    state, said = policy.speak(policy.start([OPENED]), identities(1), np.ones(1, bool))
    assert state.dialogues[0].turns[-1] == Turn("policy", said[0].text)
    heard = policy.listen(state, ["thank you ."])
    # The sampled tokens are in the cache as they were sampled, not as the text tokenised anew.
    start = policy.view.context(OPENED, max_tokens=192).tokens
    sampled = state.contexts.tokens[0][len(start) :]
    assert policy.view.parse(sampled).text == said[0].text
    assert len(sampled) == said[0].num_tokens
    continuation = policy.view.continuation(state.dialogues[0], "thank you .")
    assert heard.contexts.tokens[0] == (*start, *sampled, *continuation)
    expected = teacher_forced(model, heard.contexts.tokens[0])[-1]
    np.testing.assert_allclose(jax.nn.log_softmax(heard.contexts.logits[0]), expected, atol=1e-4)


def test_a_turn_without_a_word_is_read_as_the_other_side_hears_it(model, template, monkeypatch):
    policy = speaker(model, template, "policy")
    state = policy.start([OPENED, OPENED])
    decode = policy.engine.decode

    def silent_first(contexts, turns):
        contexts, decoded = decode(contexts, dataclasses.replace(turns, limits=np.array([0, 8])))
        tokens = [[template.end_ids[0]], decoded.tokens[1]]
        return contexts, dataclasses.replace(decoded, tokens=tokens)

    monkeypatch.setattr(policy.engine, "decode", silent_first)
    state, said = policy.speak(state, identities(2), np.ones(2, bool))
    assert said[0].text == SILENCE
    anew = policy.start([OPENED.said("policy", SILENCE)])
    assert state.contexts.tokens[0] == anew.contexts.tokens[0]
    heard, read = policy.listen(state, ["thank you .", None]), policy.listen(anew, ["thank you ."])
    np.testing.assert_allclose(heard.contexts.logits[0], read.contexts.logits[0], atol=1e-4)


def test_a_full_context_loses_its_oldest_turns_and_goes_on(model, template):
    policy = speaker(model, template, "policy")
    state = policy.start([ANSWERED])
    for turn in range(8):
        if turn:
            state, _ = policy.speak(state, identities(1) + turn, np.ones(1, bool))
        state = policy.listen(state, ["i feel bad today and i can not stop thinking about it ."])
        assert state.contexts.lengths[0] <= policy.model.config.max_length - 8
    assert policy.dropped_turns > 0
    assert np.isfinite(state.contexts.logits).all()


def test_inactive_rows_stay_as_they_are(model, template):
    policy = speaker(model, template, "policy")
    state, said = policy.speak(
        policy.start([OPENED, OPENED]), identities(2), np.array([True, False])
    )
    assert said[1] is None
    assert state.dialogues[1] == OPENED
    heard = policy.listen(state, [None, None])
    assert heard.dialogues == state.dialogues


def test_what_a_row_says_depends_on_its_identity_not_on_its_place(model, template):
    policy = speaker(model, template, "policy")
    active = np.ones(3, bool)
    _, one = policy.speak(policy.start([OPENED] * 3), identities(3), active)
    _, other = policy.speak(policy.start([OPENED] * 3), identities(3)[::-1], active)
    assert [said.text for said in one] == [said.text for said in other[::-1]]


def test_fork_and_store_carry_dialogues_with_their_contexts(model, template):
    policy = speaker(model, template, "policy")
    longer = ANSWERED.said("user", "well , i want to know what to do .")
    state = policy.start([OPENED, longer])
    pool = policy.store(policy.empty(4), np.array([3, 0]), state, np.array([0, 1]))
    assert pool.dialogues == [longer, None, None, OPENED]
    again = policy.fork(pool, np.array([0, 3]))
    np.testing.assert_array_equal(again.contexts.logits, state.contexts.logits[::-1])


def test_the_expected_outcome_is_the_softmax_over_all_closing_lines(model, template):
    user = speaker(model, template, "user")
    scenario = get_scenario("sandbox")
    [reading] = user.outcomes(user.start([OPENED]), np.ones(1, bool))
    context = list(user.view.context(OPENED, max_tokens=192).tokens) + list(template.marker_ids)
    scores, outcomes = [], []
    for line, outcome in scenario.outcome_lines(CONDITION):
        tokens = [*template.encode(line), template.end_ids[0]]
        logprobs = teacher_forced(model, context + tokens)
        places = range(len(context) - 1, len(context) + len(tokens) - 1)
        scores.append(sum(logprobs[p, t] for p, t in zip(places, tokens, strict=True)))
        outcomes.append(outcome)
    weights = np.exp(np.array(scores) - max(scores))
    weights /= weights.sum()
    assert reading.engagement == pytest.approx(
        sum(w * o.engagement for w, o in zip(weights, outcomes, strict=True)), abs=1e-4
    )
    assert reading.released == pytest.approx(weights[0], abs=1e-4)


def test_the_sampled_outcome_of_an_untrained_simulator_is_unreadable_not_zero(model, template):
    user = speaker(model, template, "user", readout="sampled")
    state = user.start([OPENED, OPENED])
    readings = user.outcomes(state, np.array([True, False]))
    assert math.isnan(readings[0].engagement)
    assert readings[1] is None


def test_a_generated_line_is_read_in_the_sampled_way(model, template):
    user = speaker(model, template, "user", readout="sampled")
    state = user.start([OPENED])
    closed = dataclasses.replace(state, lines=["final distress : 1 of 5"])
    [reading] = user.outcomes(closed, np.ones(1, bool))
    assert (reading.engagement, reading.value) == (1.0, 1.0)


def test_a_policy_has_no_outcome(model, template):
    policy = speaker(model, template, "policy")
    with pytest.raises(ValueError, match="only the user's side has an outcome"):
        policy.outcomes(policy.start([OPENED]), np.ones(1, bool))


def test_a_turn_longer_than_the_context_is_refused_at_the_start(model, template):
    view = View(scenario=get_scenario("sandbox"), role="policy", template=template)
    with pytest.raises(ValueError, match="leaves no room in a context of 192 tokens"):
        ModelSpeaker(model, view, SamplingConfig(max_new_tokens=180), seed=0)


def test_conditions_may_differ_in_how_many_outcomes_they_have(model, template):
    """A row's expectation does not depend on how many lines its neighbour has."""

    class Fewer(type(get_scenario("sandbox"))):
        def outcome_lines(self, condition):
            return super().outcome_lines(condition)[: condition.attributes["distress"]]

    view = View(scenario=Fewer(), role="user", template=template)
    user = ModelSpeaker(model, view, SamplingConfig(max_new_tokens=8), seed=0)
    mild = Dialogue("m", UserCondition("m", {**CONDITION.attributes, "distress": 2}), OPENED.turns)
    together = user.outcomes(user.start([OPENED, mild]), np.ones(2, bool))
    alone = [user.outcomes(user.start([d]), np.ones(1, bool))[0] for d in (OPENED, mild)]
    for found, expected in zip(together, alone, strict=True):
        assert found.value == pytest.approx(expected.value, abs=1e-4)


def test_an_outcome_line_that_contexts_keep_no_room_for_is_refused(model, template):
    user = speaker(model, template, "user")
    with pytest.raises(InputError, match="has 61 tokens; contexts keep room for"):
        user._outcomes.line_tokens(["short", "x" * 60])


def test_a_closing_line_is_drawn_by_what_the_turn_before_it_was(model, template):
    """Two rollouts in the same words are two draws; the same rollout again is the same one."""
    user = speaker(model, template, "user", readout="sampled")
    lines = []
    for ids in ([[1, 5]], [[1, 6]], [[1, 5]]):
        state = dataclasses.replace(user.start([OPENED]), identities=[tuple(ids[0])])
        cut = user._outcomes.drawn_lines(state, np.ones(1, bool))
        lines.append(cut[0])
    assert lines[0] == lines[2]
    assert lines[0] != lines[1]
