"""Policies that search before they speak play as speakers among speakers."""

from __future__ import annotations

import numpy as np
import pytest

from ixjax.io import InputError
from ixjax.search import SearchConfig, SearchingPolicy, Tree
from tests.search.doubles import EVEN, MoodScenario, MoodUser, TablePolicy, even_policy, roots


def best_of(candidates: int, *, rollouts: int = 8, policy=None, user=None) -> SearchingPolicy:
    config = SearchConfig(iterations=1, width=candidates, reactions=rollouts, max_turns=3, trees=8)
    return SearchingPolicy(
        policy or even_policy(),
        user or MoodUser(),
        MoodScenario(),
        config,
        choose="value",
        reuse=False,
    )


def said_first(speaker: SearchingPolicy, dialogues, *, salt: int = 0) -> list[str]:
    identities = np.array([[salt, i, 7] for i in range(len(dialogues))], np.uint32)
    active = np.ones(len(dialogues), bool)
    _, said = speaker.speak(speaker.start(dialogues), identities, active)
    return [utterance.text for utterance in said]


def test_the_best_of_many_is_better_than_the_policy():
    """ "good" is a quarter of the policy's turns; twelve candidates almost always include it."""
    found = said_first(best_of(12, rollouts=24), roots(40))
    assert found.count("good") >= 30
    assert found.count("bad") <= 2


def test_the_best_of_one_is_the_policy():
    found = [text for salt in range(8) for text in said_first(best_of(1), roots(50), salt=salt)]
    for text, probability in EVEN.items():
        deviation = np.sqrt(probability * (1 - probability) / len(found))
        assert abs(found.count(text) / len(found) - probability) < 4 * deviation


def test_what_is_said_does_not_depend_on_the_batch():
    dialogues = roots(6)
    # One has more turns than the search looks: it is searched a turn ahead, its neighbours are not.
    for _ in range(5):
        dialogues[5] = dialogues[5].said("policy", "odd").said("user", "my mood is 1")
    speaker = best_of(4)
    identities = np.array([[0, i, 7] for i in range(6)], np.uint32)
    together, said = speaker.speak(speaker.start(dialogues), identities, np.ones(6, bool))
    for i in (5, 2):
        alone = speaker.start([dialogues[i]])
        alone, [utterance] = speaker.speak(alone, identities[i : i + 1], np.ones(1, bool))
        assert utterance == said[i]
        assert alone.trees[0] == together.trees[i]


def test_a_whole_dialogue_is_played_with_another_user():
    """Rows that are over stay as they are; the others hear the actual user, not the look-ahead."""
    speaker, user = best_of(3), MoodUser(leaving=0.3)
    dialogues = roots(8)
    mine, theirs = speaker.start(dialogues), user.start(dialogues)
    alive = np.ones(8, bool)
    for turn in range(3):
        identities = np.array([[i, turn] for i in range(8)], np.uint32)
        mine, said = speaker.speak(mine, identities, alive)
        assert [utterance is not None for utterance in said] == alive.tolist()
        theirs = user.listen(theirs, [None if u is None else u.text for u in said])
        theirs, heard = user.speak(theirs, identities + 100, alive)
        alive = np.array([u is not None and not u.ended for u in heard])
        replies = [u.text if on else None for u, on in zip(heard, alive, strict=True)]
        mine = speaker.listen(mine, replies)
    for row, guest, on in zip(mine.dialogues, theirs.rows, alive, strict=True):
        last = None if on else -1  # the user's parting words were heard by nobody
        assert row.turns == guest.dialogue.turns[:last]


def test_forked_and_stored_rows_keep_their_dialogues():
    speaker = best_of(2)
    state = speaker.start(roots(3))
    forked = speaker.fork(state, np.array([2, 2, 0]))
    assert [d.id for d in forked.dialogues] == ["d2", "d2", "d0"]
    stored = speaker.store(speaker.empty(4), np.array([3]), forked, np.array([0]))
    assert stored.dialogues[3].id == "d2"
    assert stored.dialogues[:3] == (None, None, None)


def test_without_a_readable_outcome_the_first_sample_is_said():
    policy = TablePolicy(lambda dialogue: {"good": 0.5, "bad": 0.5})
    found = said_first(best_of(4, policy=policy), roots(12, mute="always"))
    assert found == said_first(best_of(1, policy=policy), roots(12, mute="always"))
    assert set(found) == {"good", "bad"}


def test_a_count_below_one_is_refused():
    with pytest.raises(InputError, match=r"search.width is 0"):
        best_of(0)


def deep(*, iterations: int = 12, reuse: bool = True, **options) -> SearchingPolicy:
    config = SearchConfig(
        iterations=iterations, width=12, max_turns=3, trees=8, widening_exponent=0.8
    )
    user = MoodUser(leaving=0.0)
    return SearchingPolicy(even_policy(), user, MoodScenario(), config, reuse=reuse, **options)


def test_a_deep_search_says_what_is_best():
    found = said_first(deep(iterations=40), roots(30))
    assert found.count("good") >= 15  # a quarter of the policy's turns, and but a little better
    assert found.count("bad") <= 1  # half of them


def test_what_was_searched_below_the_turns_that_were_played_is_kept():
    """The tree that the next search begins with is the part below what was said and answered."""
    speaker = deep()
    state = speaker.start(roots(2))
    identities = np.array([[i, 0] for i in range(2)], np.uint32)
    state, said = speaker.speak(state, identities, np.ones(2, bool))
    tree, chosen = state.trees[0], state.chosen[0]
    reaction = tree.children(chosen)[0]
    below = tree.subtree(reaction.id)
    assert below.nodes[Tree.ROOT].visits == reaction.visits > 0
    assert below.root.turns[-2:] == tuple(t for t in tree.dialogue_at(reaction.id).turns[-2:])
    state = speaker.listen(state, [reaction.text, "something that no one foresaw"])
    assert state.trees[0].nodes == below.nodes
    assert state.trees[1] is None
    state, said = speaker.speak(state, identities + 9, np.ones(2, bool))
    after = state.trees[0].nodes
    new = speaker.config.iterations
    for old, grown in zip(below.nodes, after, strict=False):
        assert (old.text, old.parent, old.depth) == (grown.text, grown.parent, grown.depth)
        assert grown.visits >= old.visits
    # An expanded leaf gives a return for each response, a terminal one a single return.
    assert after[0].visits - below.nodes[0].visits >= new
    # The other dialogue was searched from nothing.
    fresh = deep(reuse=False)
    alone = fresh.start([state.dialogues[1].before(3)])
    _, [again] = fresh.speak(alone, identities[1:] + 9, np.ones(1, bool))
    assert again.text == said[1].text


def test_a_dialogue_longer_than_the_search_looks_is_searched_a_turn_ahead():
    speaker, [root] = deep(iterations=2), roots(1)
    for i in range(4):
        root = root.said("policy", "odd").said("user", f"my mood is {i % 2}")
    _, [said] = speaker.speak(speaker.start([root]), np.zeros((1, 1), np.uint32), np.ones(1, bool))
    assert said.text in EVEN
