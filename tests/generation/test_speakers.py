"""Speakers: incremental contexts equal whole ones, read-outs equal hand-made scores."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import View
from ixjax.generation import ModelSpeaker, SamplingConfig, run_all, run_one
from ixjax.generation.outcomes import line_identity, line_tokens
from ixjax.generation.turns import SILENCE
from ixjax.io import InputError
from tests.generation.dialogues import (
    ANSWERED,
    CONDITION,
    OPENED,
    model,
    speaker,
    template,
    view,
)

SHORT = SamplingConfig(max_new_tokens=8)
LONGEST = 192


@functools.lru_cache
def _full():
    return jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)[0]))


def teacher_forced(tokens) -> np.ndarray:
    """Log-probabilities of every next token, by one plain pass."""
    padded = np.zeros((1, LONGEST), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_full()(model(), padded))[: len(tokens)]


def assert_predicts(participant) -> None:
    """The participant's context is followed as its tokens are in a plain pass."""
    context = participant.context
    asked = [[token] for token in range(0, 256, 32)]
    [found] = context.owner.score([context], [[65]], [asked])
    expected = teacher_forced([*context.tokens, 65])[-1]
    np.testing.assert_allclose(found, expected[::32][:8], atol=1e-4)


def test_hearing_a_turn_equals_reading_the_dialogue_whole():
    policy = speaker("policy")
    grown, whole = policy.begin(ANSWERED), policy.begin(ANSWERED.said("user", "thank you ."))
    policy.engine.read([grown.context])
    grown.hear("thank you .")
    assert grown.context.tokens == whole.context.tokens
    assert grown.dialogue == whole.dialogue
    assert_predicts(grown)
    assert run_one(grown.speak((1,))).text == run_one(whole.speak((1,))).text


def test_what_was_spoken_is_in_the_context_that_hears_the_answer():
    policy = speaker("policy")
    us = policy.begin(OPENED)
    said = run_one(us.speak((0,)))
    assert us.dialogue.turns[-1] == Turn("policy", said.text)
    # The sampled tokens are in the context as they were sampled, not as the text tokenised anew.
    start = policy.view.context(OPENED, max_tokens=LONGEST).tokens
    sampled = us.context.tokens[len(start) :]
    assert policy.view.parse(sampled).text == said.text
    assert len(sampled) == said.num_tokens
    continuation = policy.view.continuation(us.dialogue, "thank you .")
    us.hear("thank you .")
    assert us.context.tokens == [*start, *sampled, *continuation]
    assert_predicts(us)


def test_the_mean_log_probability_of_a_turn_is_that_of_its_tokens():
    policy = speaker("policy")
    us = policy.begin(OPENED)
    start = len(us.context)
    said = run_one(us.speak((0,)))
    logprobs = teacher_forced(us.context.tokens)[start - 1 : -1]
    given = logprobs[np.arange(said.num_tokens), us.context.tokens[start:]]
    assert said.mean_logprob == pytest.approx(given.mean(), abs=2e-4)


def test_a_turn_without_a_word_is_read_as_the_other_side_hears_it():
    policy = speaker("policy")
    us = policy.begin(OPENED)
    request = us.request((0,))
    request.tokens, request.logprobs = [template().end_ids[0]], [-1.0]
    request.ended = request.done = True
    said = us.settle(request)
    assert (said.text, said.truncated) == (SILENCE, False)
    anew = policy.begin(OPENED.said("policy", SILENCE))
    assert us.context.tokens == anew.context.tokens
    us.hear("thank you .")
    assert_predicts(us)


def test_a_full_context_loses_its_oldest_turns_and_goes_on():
    policy = speaker("policy", sampling=SHORT)
    us = policy.begin(ANSWERED)
    for turn in range(8):
        if turn:
            run_one(us.speak((turn,)))
        us.hear("i feel bad today and i can not stop thinking about it .")
        assert len(us.context) <= LONGEST - 8
    assert policy.dropped_turns > 0
    assert_predicts(us)


def test_what_is_said_depends_on_the_identity_alone():
    policy = speaker("policy")
    tasks = lambda ids: [policy.begin(OPENED).speak((i,)) for i in ids]
    texts = [said.text for said in run_all(tasks(range(3)), at_once=3)]
    assert [said.text for said in run_all(tasks((2, 1, 0)), at_once=3)] == texts[::-1]
    assert len(set(texts)) == 3
    assert run_one(speaker("policy", seed=1).begin(OPENED).speak((0,))).text != texts[0]
    with pytest.raises(ValueError, match="identity has 9 numbers"):
        run_one(policy.begin(OPENED).speak(range(9)))


def test_forks_go_on_independently_and_share_what_was_read():
    policy = speaker("policy")
    us = policy.begin(ANSWERED.said("user", "well , i want to know what to do ."))
    copies = run_one(us.fork(3))
    before = policy.engine.stats.copy()
    tasks = [copy.speak((i,)) for copy, i in zip(copies, (0, 1, 0), strict=True)]
    one, other, same = run_all(tasks, at_once=3)
    assert (policy.engine.stats - before).prefill_tokens == 0
    assert one.text == same.text != other.text
    assert len(us.dialogue.turns) == 3
    assert run_one(us.speak((0,))).text == one.text
    us.close()
    copies[0].hear("thank you .")
    assert_predicts(copies[0])


def test_a_dialogue_near_another_reads_only_where_they_differ():
    policy = speaker("policy")
    longer = OPENED.said("policy", "how come ?").said("user", "i lost my keys .")
    us, alone = policy.begin(OPENED), policy.begin(longer)
    policy.engine.read([us.context])
    before = policy.engine.stats.prefill_tokens
    near = policy.begin(longer, near=us)
    policy.engine.read([near.context])
    assert policy.engine.stats.prefill_tokens - before == len(near.context) - len(us.context)
    assert near.context.tokens == alone.context.tokens
    assert run_one(near.speak((1,))).text == run_one(alone.speak((1,))).text
    assert us.dialogue == OPENED


def expected_outcome(condition, dialogue, lines):
    """Softmax over all closing lines, scored by plain passes."""
    user = speaker("user")
    context = [*user.view.context(dialogue, max_tokens=LONGEST).tokens, *template().marker_ids]
    scores, outcomes = [], []
    for line, outcome in lines:
        tokens = [*template().encode(line), template().end_ids[0]]
        logprobs = teacher_forced(context + tokens)
        places = range(len(context) - 1, len(context) + len(tokens) - 1)
        scores.append(sum(logprobs[p, t] for p, t in zip(places, tokens, strict=True)))
        outcomes.append(outcome)
    weights = np.exp(np.array(scores) - max(scores))
    weights /= weights.sum()
    return weights, sum(w * o.engagement for w, o in zip(weights, outcomes, strict=True))


def test_the_expected_outcome_is_the_softmax_over_all_closing_lines():
    user = speaker("user")
    reading = run_one(user.begin(OPENED).outcome())
    lines = get_scenario("sandbox").outcome_lines(CONDITION)
    weights, engagement = expected_outcome(CONDITION, OPENED, lines)
    assert reading.engagement == pytest.approx(engagement, abs=1e-4)
    assert reading.released == pytest.approx(weights[0], abs=1e-4)


def test_an_outcome_is_read_after_any_turn_and_changes_nothing():
    user = speaker("user")
    them, other = user.begin(ANSWERED), user.begin(ANSWERED)
    run_one(them.outcome())
    said = run_one(them.speak((3,)))
    assert said.text == run_one(other.speak((3,))).text
    assert run_one(them.outcome()) == run_one(other.outcome())


def test_the_sampled_outcome_of_an_untrained_simulator_is_unreadable_not_zero():
    reading = run_one(speaker("user", readout="sampled").begin(OPENED).outcome())
    assert math.isnan(reading.engagement)


def test_a_generated_line_is_read_in_the_sampled_way():
    user = speaker("user", readout="sampled")
    them = user.begin(ANSWERED)
    request = them.request((0,))
    end = template().end_ids[0]
    line = template().encode("final distress : 1 of 5")
    request.tokens = [*template().encode("bye"), *template().marker_ids, *line, end]
    request.logprobs, request.ended, request.done = [0.0] * len(request.tokens), True, True
    user.engine.extend({them.context: request.tokens[:-1]})
    said = them.settle(request)
    assert (said.text, said.ended) == ("bye", True)
    # The context ends with the words: a closing line is scored after them.
    assert them.context.tokens[-3:] == template().encode("bye")
    reading = run_one(them.outcome())
    assert (reading.engagement, reading.value) == (1.0, 1.0)


def test_a_policy_has_no_outcome():
    with pytest.raises(ValueError, match="only the user's side has an outcome"):
        run_one(speaker("policy").begin(OPENED).outcome())


def test_a_turn_longer_than_the_context_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"max_new_tokens is 180; expected 159 .* 192 tokens"):
        ModelSpeaker(model(), view("policy"), SamplingConfig(max_new_tokens=180), seed=0)


def test_conditions_may_differ_in_how_many_outcomes_they_have():
    """An expectation does not depend on the number of lines of another condition."""

    class Fewer(type(get_scenario("sandbox"))):
        def outcome_lines(self, condition):
            return super().outcome_lines(condition)[: condition.attributes["distress"]]

    at = View(scenario=Fewer(), role="user", template=template())
    user = speaker("user", at=at)
    mild = Dialogue("m", UserCondition("m", {**CONDITION.attributes, "distress": 2}), OPENED.turns)
    both = run_all([user.begin(d).outcome() for d in (OPENED, mild)], at_once=2)
    alone = [run_one(user.begin(d).outcome()) for d in (OPENED, mild)]
    for found, expected in zip(both, alone, strict=True):
        assert found.value == pytest.approx(expected.value, abs=1e-4)
    # The conditions are no part of the words, so the plain scores need no other context.
    shapes = user.scored_shapes([OPENED.condition, mild.condition])
    assert {lines for _, lines, _ in shapes} == {4, 2}


def test_an_outcome_line_that_contexts_keep_no_room_for_is_refused():
    with pytest.raises(InputError, match="has 61 tokens; contexts keep room for"):
        line_tokens(view("user"), ["short", "x" * 60])


def test_a_closing_line_is_drawn_by_the_turn_before_it():
    """Two rollouts in the same words are two draws; the same rollout again is the same one."""
    user = speaker("user", readout="sampled")
    lines, ends = [], template().end_ids[0]
    for identity in ((1, 5), (1, 6), (1, 5)):
        them = user.begin(OPENED.said("policy", "okay ."))
        request = them.request(identity)
        request.tokens, request.logprobs = [*template().encode("well"), ends], [0.0] * 5
        request.ended = request.done = True
        user.engine.extend({them.context: request.tokens[:-1]})
        them.settle(request)
        lines.append(run_one(them._drawn_line()))
    assert lines[0] == lines[2]
    assert lines[0] != lines[1]


def test_no_turn_has_the_identity_of_a_closing_line():
    assert line_identity((1, 5)) == (1, 5, 0, 0, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="an identity has 8 numbers; expected at most 7"):
        line_identity((0,) * 8)
