"""Dialogues played independently come out as those that are played turn by turn, or alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.generation import (
    Account,
    EngineConfig,
    Game,
    ModelSpeaker,
    RecompilationError,
    SamplingConfig,
    play,
    speaker_engine,
)
from ixjax.generation.lockstep import play_in_lockstep
from ixjax.generation.scheduler import places
from ixjax.generation.turns import POLICY, SILENCE, USER
from ixjax.models import LoraConfig
from ixjax.testing import ScriptedSpeaker, byte_tokenizer, tiny_model
from tests.models.tiny import random_model

SAMPLING = SamplingConfig(max_new_tokens=12)
CONFIG = EngineConfig(rows=4, steps=5, in_flight=2)
TURNS = 3


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_tokenizer(byte_tokenizer())


def speakers(model, template, *, shared=False, account=None, sampling=SAMPLING):
    """Policy and user; a third of all bytes end a turn, so that lengths differ."""
    ends = dataclasses.replace(template, end_ids=(5, *range(7, 263, 12)))
    views = [View(get_scenario("sandbox"), role, ends) for role in ("policy", "user")]
    engine = speaker_engine(model, views[0], sampling, CONFIG, account=account)
    engines = [engine, engine if shared else None]
    return [
        ModelSpeaker(
            model,
            view,
            sampling,
            seed=3,
            engine=e or speaker_engine(model, view, sampling, CONFIG, account=account),
            adapter=i if shared else 0,
        )
        for i, (view, e) in enumerate(zip(views, engines, strict=True))
    ]


@pytest.fixture(scope="module")
def model(template):
    return tiny_model(template.vocab_size, max_length=192)


def games(count: int) -> list[Game]:
    found = []
    for i in range(count):
        condition = UserCondition(f"c{i}", {"need": "advice", "distress": 4, "patience": 3})
        found.append(Game((i, 7), Dialogue(f"d{i}", condition, (Turn("user", "hi ." * (i + 1)),))))
    return found


def texts(finished):
    return [[[said.text for said in side] for side in game.said] for game in finished]


def assert_same(found, expected):
    assert texts(found) == texts(expected)
    assert [g.turns for g in found] == [g.turns for g in expected]
    assert [g.ended for g in found] == [g.ended for g in expected]
    engagement = [[g.reading.engagement for g in part] for part in (found, expected)]
    np.testing.assert_allclose(*engagement, atol=1e-5)


def test_what_is_played_is_what_lockstep_plays_and_what_is_played_alone(model, template):
    policy, user = speakers(model, template)
    together = play(policy, user, games(11), max_turns=TURNS, rows=16)
    locked = play_in_lockstep(policy, user, games(11), TURNS, 11, None)
    assert_same(together, locked)
    lengths = {n for game in together for side in (POLICY, USER) for n in game.tokens(side)}
    assert len(lengths) > 4  # turns of many lengths
    assert any(game.turns == TURNS for game in together)
    alone = [play(policy, user, [game], max_turns=TURNS, rows=1)[0] for game in games(3)]
    assert_same(alone, together[:3])


def test_others_begin_before_all_that_are_in_play_are_over(model, template, monkeypatch):
    policy, user = speakers(model, template)
    begun, reset = [], policy.reset

    def noted(state, dialogues):
        begun.append(sum(dialogue is not None for dialogue in dialogues))
        return reset(state, dialogues)

    monkeypatch.setattr(policy, "reset", noted)
    play(policy, user, games(12), max_turns=TURNS, rows=4)  # as many places as a batch has rows
    assert begun[0] == 4
    assert len(begun) > 3


def test_games_go_on_from_given_states_and_those_that_are_over_are_read_alone(model, template):
    policy, user = speakers(model, template)
    whole = play(policy, user, games(5), max_turns=TURNS, rows=8)
    roots = [game.root for game in games(5)]
    states = policy.start(roots), user.start(roots)
    order = [4, 2, 0, 2]
    going_on = [dataclasses.replace(games(5)[i], root=None, row=i) for i in order]
    going_on.append(dataclasses.replace(going_on[0], over=True))
    found = play(policy, user, going_on, max_turns=TURNS, rows=8, states=states)
    assert_same(found[:4], [whole[i] for i in order])
    assert found[4].said == ((), ())
    expected = user.outcomes(states[1], np.arange(5) == 4)[4]
    assert found[4].reading.engagement == pytest.approx(expected.engagement, abs=1e-6)
    # The states are still what they were.
    again = play(policy, user, going_on, max_turns=TURNS, rows=8, states=states)
    assert_same(again, found)


def test_a_game_may_begin_with_the_users_move(model, template):
    policy, user = speakers(model, template)
    said = "how come ?"
    root = games(1)[0].root
    states = policy.start([root.said("policy", said)]), user.start([root.said("policy", said)])
    game = Game((0, 7), row=0, first=USER)
    for rows in (1, 4):
        [found] = play(policy, user, [game], max_turns=TURNS, rows=rows, states=states)
        [locked] = play_in_lockstep(policy, user, [game], TURNS, 1, states)
        assert len(found.said[USER]) in (len(found.said[POLICY]), len(found.said[POLICY]) + 1)
        assert_same([found], [locked])


@pytest.mark.slow
def test_speakers_that_share_a_base_share_a_batch(template):
    config = dataclasses.replace(
        tiny_model(template.vocab_size, max_length=192).config,
        lora=LoraConfig(rank=2, alpha=8, targets=("query", "up"), adapters=2),
    )
    model = random_model(config)
    account = Account()
    policy, user = speakers(model, template, shared=True, account=account)
    found = play(policy, user, games(9), max_turns=TURNS, rows=16)
    assert account.occupancy > 0.5
    apart = speakers(model, template)
    apart[1].adapter = 1
    assert_same(found, play(*apart, games(9), max_turns=TURNS, rows=16))
    other = speakers(model, template)  # both with the first adapter
    assert texts(play(*other, games(9), max_turns=TURNS, rows=16)) != texts(found)


def test_a_scripted_side_is_played_in_lockstep():
    policy = ScriptedSpeaker("policy", lambda dialogue: {"a": 0.5, "b": 0.5})
    user = ScriptedSpeaker(
        "user",
        lambda dialogue: {"x": 0.5, "y": 0.5},
        reading=lambda dialogue: f"{len(dialogue.turns)} turns",
        ends=lambda dialogue: dialogue.turns[-1].text == "y",
    )
    several = play(policy, user, games(7), max_turns=2, rows=3)
    alone = [play(policy, user, [game], max_turns=2, rows=1)[0] for game in games(7)]
    assert several == alone
    assert {game.ended for game in several} == {True, False}
    assert all(game.reading == f"{1 + 2 * game.turns} turns" for game in several)


def test_stop_strings_end_turns_and_are_cut_off(model, template):
    free = play(*speakers(model, template), games(6), max_turns=1, rows=8)
    text = next(game.said[POLICY][0].text for game in free if game.said[POLICY][0].text.isascii())
    stop = text[1:3]
    sampling = dataclasses.replace(SAMPLING, stop=(stop,))
    policy, user = speakers(model, template, sampling=sampling)
    found = play(policy, user, games(6), max_turns=1, rows=8)
    for game, other in zip(found, free, strict=True):
        said, whole = game.said[POLICY][0], other.said[POLICY][0].text
        if whole.isascii():
            assert said.text == (whole.partition(stop)[0].strip() or SILENCE)
            assert not (stop in whole and said.truncated)
    assert_same(found, play_in_lockstep(policy, user, games(6), 1, 6, None))


@pytest.mark.slow
def test_after_warm_up_nothing_is_compiled_and_what_is_can_be_forbidden(template):
    """Of a model of its own: nothing that it needs was compiled for another test."""
    model = tiny_model(template.vocab_size, max_length=160)
    account = Account()
    policy, user = speakers(model, template, account=account)
    conditions = [game.root.condition for game in games(1)]
    rows = places(policy, user, 16)
    for speaker in (policy, user):
        speaker.warm_up([rows], conditions, identity_parts=4, copies=[])
    assert account.compilations > 10
    before, account.forbidden = account.copy(), True
    play(policy, user, games(11), max_turns=TURNS, rows=16)
    assert (account - before).compilations == 0
    with pytest.raises(RecompilationError, match=r"was compiled anew, with .*float32\[13,263\]"):
        policy.start([games(1)[0].root] * 13)
