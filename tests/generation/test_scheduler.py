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
    Finished,
    Game,
    ModelSpeaker,
    RecompilationError,
    SamplingConfig,
    play,
    side_by_side,
    speaker_engine,
)
from ixjax.generation.lockstep import Lockstep, play_in_lockstep
from ixjax.generation.scheduler import Scheduler, places
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
    locked = play_in_lockstep(policy, user, games(11), max_turns=TURNS, rows=11)
    assert_same(together, locked)
    lengths = {n for game in together for side in (POLICY, USER) for n in game.tokens(side)}
    assert len(lengths) > 4  # turns of many lengths
    assert any(game.turns == TURNS for game in together)
    alone = [play(policy, user, [game], max_turns=TURNS, rows=1)[0] for game in games(3)]
    assert_same(alone, together[:3])


def test_others_begin_before_all_that_are_in_play_are_over(model, template, monkeypatch):
    policy, user = speakers(model, template)
    begun, reset = [], policy.reset

    def noted(state, dialogues, **options):
        begun.extend([len(dialogues)] if dialogues else [])
        return reset(state, dialogues, **options)

    monkeypatch.setattr(policy, "reset", noted)
    play(policy, user, games(12), max_turns=TURNS, rows=4)  # as many places as a batch has rows
    assert begun[0] == 4
    assert len(begun) > 3


def ends(board, number: int) -> dict[int, Finished]:
    """The next `number` games that end, by place; those held are resumed."""
    found = {}
    while len(found) < number:
        for place, event in board.advance():
            if isinstance(event, Finished):
                found[place] = event
            else:
                board.resume(place)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lockstep", [False, True])
def test_games_go_on_from_contexts_that_were_kept(model, template, lockstep):
    policy, user = speakers(model, template)
    whole = play(policy, user, games(5), max_turns=TURNS, rows=8)
    if lockstep:
        board = Lockstep(policy, user, max_turns=TURNS, size=8, kept=5)
    else:
        board = side_by_side(policy, user, max_turns=TURNS, rows=8, kept=5)
    board.begin(dict(enumerate(games(5))))
    board.keep({i: 4 - i for i in range(5)})
    board.drop(range(5))
    assert len(board.free()) == board.size
    order = [4, 2, 0, 2]
    going_on = [dataclasses.replace(games(5)[i], root=None, kept=4 - i) for i in order]
    going_on.append(dataclasses.replace(going_on[0], over=True))
    for _ in range(2):  # what is kept stays what it was
        board.begin(dict(enumerate(going_on)))
        found = ends(board, 5)
        assert_same([found[i] for i in range(4)], [whole[i] for i in order])
        assert found[4].said == ((), ())
        expected = user.outcomes(user.start([games(5)[4].root]), np.ones(1, bool))[0]
        assert found[4].reading.engagement == pytest.approx(expected.engagement, abs=1e-5)


@pytest.mark.parametrize("lockstep", [False, True])
def test_a_game_is_held_after_its_first_turns_and_goes_on_as_another(model, template, lockstep):
    policy, user = speakers(model, template)
    make = Lockstep if lockstep else Scheduler
    board = make(policy, user, max_turns=TURNS, size=8, kept=4)
    first, second = (dataclasses.replace(game, holds=2) for game in games(2))
    board.begin({0: first, 5: second})
    spoken = {0: [], 5: []}
    while not all(len(said) == 2 for said in spoken.values()):
        for place, event in board.advance():
            spoken[place].append(event)
            if event.speaker == POLICY:
                board.resume(place)
    assert [event.speaker for event in spoken[0]] == [POLICY, USER]
    with pytest.raises(RuntimeError, match="none of 2 games can go on"):
        board.advance()
    [whole] = play(policy, user, games(1), max_turns=TURNS, rows=1)
    assert [e.utterance.text for e in spoken[0]] == [side[0].text for side in whole.said]
    # Kept here, it can be played on in two ways: by its own identity, and by another's.
    board.keep({0: 3})
    board.drop([5])
    board.resume(0)
    other = Game(second.identity, kept=3, turns=1)
    board.begin({1: other, 2: dataclasses.replace(other, identity=first.identity)})
    found = ends(board, 3)
    assert texts([found[0]]) == texts([whole])
    assert [s.text for s in found[2].said[USER]] == [s.text for s in whole.said[USER][1:]]
    assert texts([found[1]]) != texts([found[2]])


def test_what_was_kept_of_a_root_is_not_read_again(model, template):
    policy, user = speakers(model, template)
    [game] = games(1)
    longer = game.root.said("policy", "how come ?").said("user", "i lost my keys .")
    board = Scheduler(policy, user, max_turns=TURNS, size=4, kept=1)
    board.begin({0: game})
    board.keep({0: 0})
    board.drop([0])
    continued = dataclasses.replace(game, root=longer, turns=1, holds=1)
    board.begin({1: dataclasses.replace(continued, kept=0)})
    before = policy.engine.account.prefill_tokens
    while not (events := board.advance()):
        pass
    read = policy.engine.account.prefill_tokens - before
    lengths = [
        len(policy.view.context(dialogue, max_tokens=150).tokens)
        for dialogue in (game.root, longer)
    ]
    assert read == lengths[1] - lengths[0]
    [(_, spoken)] = events
    [alone] = play(policy, user, [continued], max_turns=TURNS, rows=1)
    assert spoken.utterance.text == alone.said[POLICY][0].text


def test_a_game_may_begin_with_the_users_move(model, template):
    policy, user = speakers(model, template)
    root = games(1)[0].root.said("policy", "how come ?")
    game = Game((0, 7), root, first=USER)
    for rows in (1, 4):
        [found] = play(policy, user, [game], max_turns=TURNS, rows=rows)
        [locked] = play_in_lockstep(policy, user, [game], max_turns=TURNS, rows=1)
        assert len(found.said[USER]) in (len(found.said[POLICY]), len(found.said[POLICY]) + 1)
        assert_same([found], [locked])


def test_a_game_that_goes_on_from_nothing_is_refused(model, template):
    with pytest.raises(ValueError, match="has no root"):
        play(*speakers(model, template), [Game((0,))], max_turns=1, rows=1)


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
    assert_same(found, play_in_lockstep(policy, user, games(6), max_turns=1, rows=6))


@pytest.mark.slow
def test_after_warm_up_nothing_is_compiled_and_what_is_can_be_forbidden(template):
    """Of a model of its own: nothing that it needs was compiled for another test."""
    model = tiny_model(template.vocab_size, max_length=160)
    account = Account()
    policy, user = speakers(model, template, account=account)
    conditions = [game.root.condition for game in games(1)]
    rows = places(policy, user, 16)
    for speaker in (policy, user):
        speaker.warm_up([rows], conditions, identity_parts=4)
    assert account.compilations > 10
    before, account.forbidden = account.copy(), True
    play(policy, user, games(11), max_turns=TURNS, rows=16)
    assert (account - before).compilations == 0
    with pytest.raises(RecompilationError, match=r"was compiled anew, with .*float32\[13,263\]"):
        policy.start([games(1)[0].root] * 13)
