"""Policies that search before they speak play as speakers among speakers."""

from __future__ import annotations

import numpy as np
import pytest

from ixjax.generation import play, run_all, run_one
from ixjax.generation.turns import POLICY, USER
from ixjax.io import InputError
from ixjax.search import SearchConfig, SearchingPolicy, Tree
from tests.search.doubles import EVEN, MoodScenario, MoodUser, TablePolicy, even_policy, roots


def best_of(
    candidates: int, *, rollouts: int = 8, policy=None, user=None, trees: int = 8
) -> SearchingPolicy:
    config = SearchConfig(
        iterations=1, width=candidates, reactions=rollouts, max_turns=3, trees=trees
    )
    return SearchingPolicy(
        policy or even_policy(),
        user or MoodUser(),
        MoodScenario(),
        config,
        choose="value",
        reuse=False,
    )


def said_first(speaker: SearchingPolicy, dialogues, *, salt: int = 0) -> list[str]:
    tasks = [speaker.begin(d).speak([salt, i, 7]) for i, d in enumerate(dialogues)]
    return [utterance.text for utterance in run_all(tasks, at_once=len(tasks))]


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
    together = [speaker.begin(dialogue) for dialogue in dialogues]
    tasks = [participant.speak([0, i, 7]) for i, participant in enumerate(together)]
    said = run_all(tasks, at_once=6)
    for i in (5, 2):
        alone = speaker.begin(dialogues[i])
        assert run_one(alone.speak([0, i, 7])) == said[i]
        assert alone.tree == together[i].tree


def test_more_dialogues_than_trees_take_turns():
    speaker, few = best_of(2), best_of(2, trees=2)
    assert said_first(few, roots(7)) == said_first(speaker, roots(7))


def test_a_whole_dialogue_is_played_with_another_user():
    """The policy hears the actual user, not the one of its look-ahead."""
    speaker, user = best_of(3), MoodUser(leaving=0.3)
    played = play(
        speaker, user, [(root, (i,)) for i, root in enumerate(roots(8))], max_turns=3, rows=4
    )
    assert {found.ended for found in played} == {True, False}
    for found in played:
        assert found.turns == len(found.said[POLICY]) == len(found.said[USER])
        assert found.turns == 3 or found.ended
        assert {said.text for said in found.said[POLICY]} <= set(EVEN)
    assert user.calls.count("speak") == sum(found.turns for found in played)
    again = play(speaker, MoodUser(leaving=0.3), [(roots(8)[5], (5,))], max_turns=3, rows=1)
    assert again == [played[5]]


def test_forks_keep_what_is_known_and_go_on_independently():
    speaker = best_of(2)
    one = speaker.begin(roots(1)[0])
    said = run_one(one.speak([1]))
    fork, other = run_one(one.fork(2))
    assert (fork.dialogue, fork.tree, fork.chosen) == (one.dialogue, one.tree, one.chosen)
    fork.hear("my mood is 1")
    assert one.dialogue == other.dialogue == roots(1)[0].said("policy", said.text)
    assert fork.dialogue == one.dialogue.said("user", "my mood is 1")


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
    one, other = map(speaker.begin, roots(2))
    run_all([one.speak([0, 0]), other.speak([1, 0])], at_once=2)
    tree, chosen = one.tree, one.chosen
    reaction = tree.children(chosen)[0]
    below = tree.subtree(reaction.id)
    assert below.nodes[Tree.ROOT].visits == reaction.visits > 0
    assert below.root.turns[-2:] == tuple(t for t in tree.dialogue_at(reaction.id).turns[-2:])
    one.hear(reaction.text)
    other.hear("something that no one foresaw")
    assert one.tree.nodes == below.nodes
    assert other.tree is None
    _, said = run_all([one.speak([9, 9]), other.speak([10, 9])], at_once=2)
    after = one.tree.nodes
    new = speaker.config.iterations
    for old, grown in zip(below.nodes, after, strict=False):
        assert (old.text, old.parent, old.depth) == (grown.text, grown.parent, grown.depth)
        assert grown.visits >= old.visits
    # An expanded leaf gives a return for each response, a terminal one a single return.
    assert after[0].visits - below.nodes[0].visits >= new
    # The other dialogue was searched from nothing.
    fresh = deep(reuse=False).begin(other.dialogue.before(3))
    assert run_one(fresh.speak([10, 9])) == said


def test_a_dialogue_longer_than_the_search_looks_is_searched_a_turn_ahead():
    speaker, [root] = deep(iterations=2), roots(1)
    for i in range(4):
        root = root.said("policy", "odd").said("user", f"my mood is {i % 2}")
    assert run_one(speaker.begin(root).speak([0])).text in EVEN
