"""Sessions in which the policy searches: its turns, what it considered, what is taken back."""

from __future__ import annotations

import dataclasses

import pytest

from ixjax.dialogue import Dialogue, UserCondition
from ixjax.io import InputError
from ixjax.search import SearchConfig, SearchingPolicy, ThinkingSession, Tree
from tests.search.doubles import EVEN, MoodScenario, MoodUser, TablePolicy, even_policy

ROOT = Dialogue("d", UserCondition("c", {"mood": 1}), ())


def session(*, policy=None, scenario=None, seed=0, iterations=8) -> ThinkingSession:
    config = SearchConfig(iterations=iterations, width=8, reactions=2, max_turns=3, trees=1)
    searching = SearchingPolicy(
        policy or even_policy(),
        MoodUser(leaving=0.0),
        scenario or MoodScenario(),
        config,
        seed=seed,
    )
    return ThinkingSession(searching, ROOT)


def test_what_is_said_is_what_did_best_in_the_search():
    """ "good" lifts the mood eight times in ten, "bad" once."""
    policy, found = TablePolicy(lambda dialogue: {"good": 0.5, "bad": 0.5}), []
    for seed in range(8):
        talk = session(policy=policy, seed=seed)
        found += talk.say("hello")
        assert talk.dialogue.turns[-1].text == talk.last.text == found[-1]
    assert found.count("good") >= 7


def test_a_turn_shows_the_responses_it_was_chosen_from():
    talk = session()
    assert talk.considered == []
    [said] = talk.say("hello")
    considered = talk.considered
    assert considered[0].text == said
    assert {node.text for node in considered} <= set(EVEN)
    assert [node.visits for node in considered] == sorted(n.visits for n in considered)[::-1]
    assert all(node.parent == Tree.ROOT and 0 <= node.value <= 1 for node in considered)


def test_a_reply_that_was_foreseen_leads_on_into_the_tree():
    """The mood rises by one or stays, so the search has heard one of two replies."""
    talk = session(seed=3)
    list(talk.say("hello"))
    spoken = talk._spoken[2]
    reactions = spoken.tree.children(spoken.chosen)
    foreseen = max(reactions, key=lambda node: node.visits)
    below = spoken.tree.subtree(foreseen.id).children(Tree.ROOT)
    list(talk.say(foreseen.text))
    assert below
    after = {node.id: node for node in talk.considered}
    for node in below:
        assert after[node.id].text == node.text
        assert after[node.id].visits >= node.visits


def test_what_is_said_depends_on_the_seed_and_the_words_alone():
    def talk(seed: int) -> tuple:
        held = session(seed=seed)
        for text in ("hello", "my mood is 1", "my mood is 2"):
            list(held.say(text))
        return held.dialogue.turns, held.considered

    assert talk(0) == talk(0)
    assert talk(0) != talk(1)


def test_a_turn_that_is_taken_back_leads_to_the_tree_before_it():
    talk = session()
    list(talk.say("hello"))
    turns, considered = talk.dialogue.turns, talk.considered
    list(talk.say("my mood is 2"))
    taken_back = talk.considered
    assert talk.undo()
    assert (talk.dialogue.turns, talk.considered) == (turns, considered)
    assert talk.last is None
    list(talk.say("my mood is 2"))
    assert len(talk.dialogue.turns) == 4
    assert talk.considered != taken_back  # other draws
    talk.restart()
    assert (talk.dialogue, talk.considered, talk.undo()) == (ROOT, [], False)


def test_a_turn_that_nobody_waited_for_is_not_said():
    talk = session()
    next(talk.say("hello"))
    assert (talk.dialogue, talk.last, talk.considered) == (ROOT, None, [])


def test_a_policy_that_opens_searches_before_its_first_turn():
    talk = session(scenario=dataclasses.replace(MoodScenario(), policy_opens=True))
    assert talk.model_moves
    [said] = talk.move()
    assert [turn.text for turn in talk.dialogue.turns] == [said]
    assert not talk.model_moves


def test_a_dialogue_goes_on_past_the_turns_that_the_search_looks_ahead():
    talk = session(iterations=2)
    for i in range(5):
        list(talk.say(f"well, {i}"))
    assert len(talk.dialogue.turns) == 10
    assert talk.considered


def test_what_cannot_be_said_is_refused_and_the_session_stays_as_it_was():
    talk = session()
    list(talk.say("hello"))
    before = talk.dialogue, talk.considered
    with pytest.raises(InputError, match="the turn is empty"):
        list(talk.say("  "))
    with pytest.raises(ValueError, match="the user moves next"):
        list(talk.move())
    with pytest.raises(ValueError, match="this session's model is the policy"):
        talk.outcome()
    assert (talk.dialogue, talk.considered) == before
