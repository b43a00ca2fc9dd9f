"""Dialogues that are played at once come out as those that are played alone, turn by turn."""

from __future__ import annotations

import dataclasses

import pytest

from ixjax.dialogue.types import OutcomeReading
from ixjax.generation import (
    EngineConfig,
    EngineStats,
    RecompilationError,
    Rollout,
    SamplingConfig,
    play,
    rollout,
    run_all,
    run_one,
    speaker_engine,
)
from ixjax.generation.rollouts import models_side_by_side, side_by_side
from ixjax.generation.turns import POLICY, SILENCE, USER
from ixjax.testing import ScriptedSpeaker
from tests.generation import dialogues
from tests.generation.dialogues import CONFIG, SAMPLING, roots, speaker, view

TURNS = 3
ENDS = (5, *range(7, 263, 12))  # a twelfth of all bytes end a turn, so that lengths differ


def speakers(*, shared=False, **settings):
    """Policy and user, each with an engine, or with one engine and an adapter each."""
    views = [view(role, end_ids=ENDS) for role in ("policy", "user")]
    policy = speaker("policy", at=views[0], seed=3, **settings)
    engine = {"engine": policy.engine, "adapter": 1} if shared else {}
    return policy, speaker("user", at=views[1], seed=3, **{**settings, **engine})


def turn_by_turn(policy, user, root, identity, *, max_turns=TURNS) -> Rollout:
    """The dialogue by participants alone, one turn after the other: nothing is batched."""
    us, them, said = policy.begin(root), user.begin(root), ([], [])
    for turn in range(max_turns):
        said[POLICY].append(run_one(us.speak((*identity, turn, POLICY))))
        them.hear(said[POLICY][-1].text)
        said[USER].append(run_one(them.speak((*identity, turn, USER))))
        if said[USER][-1].ended:
            break
        if turn + 1 < max_turns:
            us.hear(said[USER][-1].text)
    reading = run_one(them.outcome())
    return Rollout(reading, turn + 1, said[USER][-1].ended, tuple(map(tuple, said)))


def scripted():
    policy = ScriptedSpeaker("policy", lambda dialogue: {"a": 0.5, "b": 0.5})
    user = ScriptedSpeaker(
        "user",
        lambda dialogue: {"x": 0.5, "y": 0.5},
        reading=lambda dialogue: OutcomeReading(0.5, len(dialogue.turns)),
        ends=lambda dialogue: dialogue.turns[-1].text == "y",
    )
    return policy, user


def texts(found):
    return [[[said.text for said in side] for side in each.said] for each in found]


def assert_same(found, expected):
    assert texts(found) == texts(expected)
    assert [each.turns for each in found] == [each.turns for each in expected]
    assert [each.ended for each in found] == [each.ended for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.reading.engagement == pytest.approx(other.reading.engagement, abs=2e-4)


def test_dialogues_played_at_once_are_those_played_turn_by_turn():
    policy, user = speakers()
    together = play(policy, user, roots(7), max_turns=TURNS, rows=16)
    plain = speakers()
    assert_same(together, [turn_by_turn(*plain, *root) for root in roots(7)])
    lengths = {n for each in together for side in (POLICY, USER) for n in each.tokens(side)}
    assert len(lengths) > 4  # turns of many lengths
    assert any(each.turns == TURNS for each in together)
    assert policy.engine.pool.used == user.engine.pool.used == 0  # all were closed
    # Nor does the order matter, nor how many are played side by side.
    reordered = play(policy, user, roots(7)[::-1], max_turns=TURNS, rows=1)
    assert_same(reordered[::-1], together)


def test_two_sides_with_one_pool_and_a_limit_say_the_same():
    free = play(*speakers(), roots(7), max_turns=TURNS, rows=16)
    stats = EngineStats()
    limited = dataclasses.replace(CONFIG, pool_tokens=20 * 64)
    engine = speaker_engine(dialogues.model(), view("policy", end_ids=ENDS), SAMPLING, limited)
    engine.stats = stats
    policy = speaker("policy", at=view("policy", end_ids=ENDS), seed=3, engine=engine)
    user = speaker("user", at=view("user", end_ids=ENDS), seed=3, pool=engine.pool)
    assert_same(play(policy, user, roots(7), max_turns=TURNS, rows=16), free)
    assert engine.pool.used == 0


def test_others_begin_before_all_that_are_played_are_over(monkeypatch):
    policy, user = speakers()[0], scripted()[1]  # dialogues of 1 to 3 turns
    open_now, most, events = 0, 0, []
    begin, engine = policy.begin, policy.engine

    def noted(root, **options):
        nonlocal open_now, most
        open_now, most = open_now + 1, max(most, open_now + 1)
        events.append("begin")
        return begin(root, **options)

    free = engine.free

    def closed(context):
        nonlocal open_now
        open_now -= 1
        events.append("end")
        free(context)

    monkeypatch.setattr(policy, "begin", noted)
    monkeypatch.setattr(engine, "free", closed)
    play(policy, user, roots(9), max_turns=TURNS, rows=4)
    assert most == 4
    assert events[:4] == ["begin"] * 4
    fifth = [i for i, event in enumerate(events) if event == "begin"][4]
    assert 1 <= events[:fifth].count("end") < 4


def test_rollouts_go_on_from_forks_and_leave_their_origin_as_it_was():
    policy, user = speakers()
    [(root, identity)] = roots(1)
    us, them = policy.begin(root), user.begin(root)
    first = run_one(us.speak((*identity, 0, POLICY)))
    them.hear(first.text)
    reaction = run_one(them.speak((*identity, 0, USER)))
    us.hear(reaction.text)
    [whole] = play(policy, user, [(root, identity)], max_turns=TURNS, rows=1)
    for _ in range(2):  # the origin stays what it was
        ours, theirs = run_one(us.fork(3)), run_one(them.fork(3))
        identities = [identity, (1, 7), identity]
        tasks = [
            rollout(*sides, own, turns=1, max_turns=TURNS)
            for *sides, own in zip(ours, theirs, identities, strict=True)
        ]
        one, other, same = run_all(tasks, at_once=3)
        assert_same([one], [same])
        assert one.turns == whole.turns
        assert [s.text for s in one.said[POLICY]] == [s.text for s in whole.said[POLICY][1:]]
        assert [s.text for s in one.said[USER]] == [s.text for s in whole.said[USER][1:]]
        assert one.reading.engagement == pytest.approx(whole.reading.engagement, abs=2e-4)
        assert texts([other]) != texts([one])


def test_a_dialogue_that_is_over_is_read_and_nothing_is_said():
    policy, user = speakers()
    [(root, identity)] = roots(1)
    task = rollout(policy.begin(root), user.begin(root), identity, turns=TURNS, max_turns=TURNS)
    found = run_one(task)
    assert found.said == ((), ())
    expected = run_one(user.begin(root).outcome())
    assert found.reading.engagement == pytest.approx(expected.engagement, abs=1e-4)


@pytest.mark.slow
def test_speakers_that_share_a_base_share_a_batch():
    stats, of = EngineStats(), dialogues.model(adapters=2)
    policy, user = speakers(shared=True, of=of, stats=stats)
    found = play(policy, user, roots(9), max_turns=TURNS, rows=16)
    assert stats.occupancy > 0.5
    separate = speakers(of=of)
    separate[1].adapter = 1
    assert_same(found, play(*separate, roots(9), max_turns=TURNS, rows=16))
    other = speakers(of=of)  # both with the first adapter
    assert texts(play(*other, roots(9), max_turns=TURNS, rows=16)) != texts(found)


def test_scripted_sides_are_played_in_turn():
    several = play(*scripted(), roots(7), max_turns=2, rows=3)
    alone = [play(*scripted(), [root], max_turns=2, rows=1)[0] for root in roots(7)]
    assert several == alone == [turn_by_turn(*scripted(), *root, max_turns=2) for root in roots(7)]
    assert {each.ended for each in several} == {True, False}
    assert all(each.reading.value == 1 + 2 * each.turns for each in several)


def test_a_scripted_user_answers_a_model():
    policy, user = speakers()[0], scripted()[1]
    found = play(policy, user, roots(5), max_turns=TURNS, rows=4)
    assert_same(found, [turn_by_turn(policy, user, *root) for root in roots(5)])
    assert side_by_side(policy, user, 4) == 4


def test_stop_strings_end_turns_and_are_cut_off():
    free = play(*speakers(), roots(6), max_turns=1, rows=8)
    text = next(e.said[POLICY][0].text for e in free if e.said[POLICY][0].text.isascii())
    stop = text[1:3]
    stopping = speakers(sampling=dataclasses.replace(SAMPLING, stop=(stop,)))
    found = play(*stopping, roots(6), max_turns=1, rows=8)
    for each, other in zip(found, free, strict=True):
        said, whole = each.said[POLICY][0], other.said[POLICY][0].text
        if whole.isascii():
            assert said.text == (whole.partition(stop)[0].strip() or SILENCE)
            assert not (stop in whole and said.truncated)
    assert_same(found, [turn_by_turn(*stopping, *root, max_turns=1) for root in roots(6)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rows": 0, "max_turns": 1}, "rows=0"), ({"rows": 1, "max_turns": 0}, "max_turns=0")],
)
def test_sizes_below_one_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        play(*scripted(), roots(1), **settings)


def test_more_dialogues_than_rows_are_played_at_once():
    config = EngineConfig(rows=4, in_flight=2)
    assert models_side_by_side(config, 100, shared=False) == 10
    assert models_side_by_side(config, 100, shared=True) == 6
    assert models_side_by_side(config, 3, shared=False) == 4


@pytest.mark.slow
def test_after_warm_up_nothing_is_compiled_and_compiling_can_be_forbidden():
    """With a model of another length: nothing that it needs was compiled for another test."""
    stats = EngineStats()
    policy, user = speakers(of=dialogues.model(max_length=160), stats=stats)
    conditions = [root.condition for root, _ in roots(1)]
    for each in (policy, user):
        each.engine.warm_up(ends=len(ENDS), scored=each.scored_shapes(conditions), tokens=16 * 160)
    assert stats.compilations > 10
    before, stats.forbidden = stats.copy(), True
    play(policy, user, roots(11), max_turns=TURNS, rows=16)
    assert (stats - before).compilations == 0
    other = speaker(
        "policy",
        of=dialogues.model(max_length=160),
        sampling=SamplingConfig(max_new_tokens=9),
        engine=speaker_engine(
            dialogues.model(max_length=160),
            view("policy"),
            SAMPLING,
            dataclasses.replace(CONFIG, rows=3),
            stats=stats,
        ),
    )
    with pytest.raises(RecompilationError, match=r"compiled again, with .*float32\[2,16,2,64,8\]"):
        run_one(other.begin(roots(1)[0][0]).speak((1,)))
