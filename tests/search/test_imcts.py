"""The search grows the trees that docs/algorithm.md describes, and its values are the world's."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from ixjax.dialogue.types import UserCondition
from ixjax.io import InputError
from ixjax.search import FinishedTree, SearchConfig, Tree, clear, grow, run, tree_pool
from tests.search.doubles import (
    EVEN,
    MoodScenario,
    MoodSide,
    MoodUser,
    TablePolicy,
    TableSide,
    even_policy,
    roots,
)

SMALL = SearchConfig(trees=2, iterations=6, width=3, max_turns=3)


def search(conditions, config, *, user=None, policy=None, scenario=None, seed=0):
    found = run(
        policy or even_policy(),
        user or MoodUser(),
        scenario or MoodScenario(),
        conditions,
        config,
        seed=seed,
    )
    return list(found)


def root_responses(tree: FinishedTree) -> dict[str, tuple[float, int]]:
    return {node.text: (node.value, node.visits) for node in tree.children(Tree.ROOT)}


def assert_consistent(tree: FinishedTree, config: SearchConfig) -> None:
    """Every return that went through a node went through exactly one child or began there."""
    for node in tree.nodes:
        children = tree.children(node.id)
        below = sum(child.visits for child in children)
        summed = sum(child.value_sum for child in children)
        if node.kind == "response":
            assert node.visits == below
            assert math.isclose(node.value_sum, summed, abs_tol=1e-4)
        elif node.id == Tree.ROOT and not node.terminal:
            assert node.visits == below
        elif not node.terminal:
            assert node.visits + node.unread == config.rollouts + below + sum(
                child.unread for child in children
            )
        else:
            assert not children
        if node.parent != Tree.NO_NODE:
            assert node.depth == tree.nodes[node.parent].depth + 1
            assert node.kind != tree.nodes[node.parent].kind
        if node.visits:
            assert 0 <= node.value <= 1 + 1e-6
        assert len({child.text for child in children}) == len(children) or node.kind == "response"


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        SearchConfig(
            trees=3, iterations=6, width=3, leaves=2, reactions=3, rollouts=2, max_turns=4
        ),
        SearchConfig(trees=3, iterations=8, width=3, leaves=3, rollouts=2, max_turns=4),
        SearchConfig(
            trees=2,
            iterations=12,
            width=2,
            max_turns=3,
            widening_factor=1.0,
            widening_exponent=0.5,
        ),
        SearchConfig(trees=1, iterations=1, width=1, max_turns=1),
        SearchConfig(trees=1, iterations=5, width=1, max_turns=9, leaves=2),
    ],
)
def test_trees_are_consistent(config):
    for tree in search(roots(4), config):
        assert_consistent(tree, config)
        assert tree.account["nodes"] == len(tree.nodes) <= config.nodes
        assert tree.account["simulations"] == tree.nodes[Tree.ROOT].visits > 0


def test_a_response_ends_the_dialogue_at_max_turns():
    config = SearchConfig(trees=1, iterations=30, width=3, max_turns=2)
    (tree,) = search(roots(1), config, user=MoodUser(leaving=0.0))
    depths = {node.depth for node in tree.nodes if node.terminal}
    assert depths == {4}  # two policy turns and the reactions to them
    assert max(node.depth for node in tree.nodes) == 4


def test_equal_responses_are_one_child_and_are_counted():
    config = SearchConfig(trees=1, iterations=1, width=12, max_turns=2)
    (tree,) = search(roots(1), config)
    responses = tree.children(Tree.ROOT)
    assert len(responses) == 3  # the table has three texts
    assert sum(node.multiplicity for node in responses) == 12
    assert tree.account["duplicates"] == 9


def test_a_tree_does_not_depend_on_what_shares_its_batch():
    conditions = roots(5)
    alone = {
        tree.condition_id: tree
        for condition in conditions
        for tree in search([condition], SearchConfig(trees=1, iterations=6, width=3, max_turns=3))
    }
    for trees, order in ((2, conditions), (5, conditions[::-1]), (8, conditions[1:])):
        config = SearchConfig(trees=trees, iterations=6, width=3, max_turns=3)
        found = search(order, config)
        assert [tree.condition_id for tree in found] == [d.condition.id for d in order]
        for tree in found:
            assert tree.to_json() == alone[tree.condition_id].to_json()


def test_a_slot_is_cleared_in_place_when_it_is_used_again(monkeypatch):
    given = []

    def watched(tree: Tree, which: np.ndarray, **options) -> Tree:
        given.append(tree)
        return clear(tree, which, **options)

    monkeypatch.setattr(tree_pool, "clear", watched)
    assert len(search(roots(4), dataclasses.replace(SMALL, trees=2))) == 4
    assert 1 <= len(given) <= 2
    assert all(array.is_deleted() for tree in given for array in vars(tree).values())


def test_another_seed_gives_another_tree():
    first, second = (search(roots(1), SMALL, seed=seed)[0] for seed in (0, 1))
    assert first.to_json() != second.to_json()


def test_no_history_is_read_twice():
    """Dialogues are begun for roots alone; everything later goes on from held participants."""
    policy, user = even_policy(), MoodUser()
    config = SearchConfig(trees=3, iterations=6, width=4, leaves=2, rollouts=2, max_turns=4)
    trees = search(roots(7), config, policy=policy, user=user)
    for speaker in (policy, user):
        assert (speaker.calls.count("begin"), speaker.calls.count("begin near")) == (7, 0)
    assert sum(tree.account["context_hits"] for tree in trees) > 30
    assert sum(tree.account["context_misses"] for tree in trees) == 0


def test_participants_that_were_closed_begin_again_and_change_nothing():
    """With few participants held the trees are those of many, alone or next to others."""
    many = SearchConfig(trees=3, iterations=12, width=3, max_turns=4, contexts=64)
    few = dataclasses.replace(many, contexts=0, trees=1)
    assert few.kept == 1 + 1 + 3
    policy, user = even_policy(), MoodUser()
    full, read_again = search(roots(3), many), search(roots(3), few, policy=policy, user=user)
    assert [tree.nodes for tree in full] == [tree.nodes for tree in read_again]
    assert sum(tree.account["context_misses"] for tree in full) == 0
    misses = sum(tree.account["context_misses"] for tree in read_again)
    assert misses > 5
    assert policy.calls.count("begin near") == user.calls.count("begin near") == misses


@pytest.mark.parametrize(
    "changes",
    [
        {"contexts": 0, "iterations": 12},
        {"leaves": 2, "rollouts": 2, "reactions": 2},
        {"widening_factor": 2.0, "widening_exponent": 0.5},
        {"iterations": 1, "max_turns": 1},
    ],
)
def test_every_participant_is_closed_once_its_tree_is_done(changes):
    made: list[TableSide | MoodSide] = []

    class Policy(TableSide):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    class User(MoodSide):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

        def copy(self):
            return User(self._speaker, self._dialogue, self.mood)

    policy, user = even_policy(), MoodUser()
    policy.participant, user.participant = Policy, User
    config = dataclasses.replace(SMALL, **changes)
    over = roots(4)[3]
    for _ in range(config.max_turns):
        over = over.said("policy", "good").said("user", "my mood is 1")
    search([*roots(3), over], config, policy=policy, user=user)
    assert len(made) > 20
    assert all(side.closed for side in made)


def test_values_of_last_turns_are_exact_expectations_over_reactions():
    """With one policy turn left nothing is chosen below a response, so UCT cannot bias its value.

    Every visit samples another reaction (k_w = 2, alpha_w = 1), so a response's mean return is an
    average of independent draws of g given the response; the exact expectation is enumerated.
    """
    config = SearchConfig(
        trees=3, iterations=200, width=8, max_turns=1, widening_factor=2.0, widening_exponent=1.0
    )
    user = MoodUser()
    for tree, mood in zip(search(roots(3), config), (0, 1, 2), strict=True):
        for text, (value, visits) in root_responses(tree).items():
            exact = user.expected(mood, text, EVEN, 1)
            assert abs(value - exact) < 4 * standard_error(visits), (text, value, exact, visits)


def standard_error(visits: int) -> float:
    # One response moves the mood by a Bernoulli step of 1/TOP, whose deviation is at most half.
    return 0.5 / MoodUser.TOP / math.sqrt(visits)


def test_root_values_converge_to_the_enumerated_ones():
    """The error of the root's action values falls like one over the root of the visits.

    What converges, exactly: with k_w = 2 and alpha_w = 1 the walk ends at a root response every
    time, samples a fresh reaction and rolls the policy out from it. Nothing below is ever
    selected, so no visit is drawn towards better responses than the policy's own, and `Q(root, a)`
    estimates the policy's action value Q^pi(h, a), which `MoodUser.expected` enumerates. (A deep
    search estimates the value of its own improved policy instead, which no table holds.)
    """
    user, max_turns, trees = MoodUser(), 3, 8
    errors = []
    for iterations in (4, 32, 256):
        config = SearchConfig(
            trees=trees,
            iterations=iterations,
            width=8,
            max_turns=max_turns,
            c_uct=2.0,
            widening_factor=2.0,
            widening_exponent=1.0,
        )
        squared, scaled = [], []
        for index, tree in enumerate(search(roots(trees), config)):
            for text, (value, visits) in root_responses(tree).items():
                error = value - user.expected(index % 3, text, EVEN, max_turns)
                squared.append(error**2)
                # Deviation of one return: engagement in [0, 1] moves by at most max_turns steps.
                scaled.append(abs(error) * math.sqrt(visits) / (max_turns / MoodUser.TOP / 2))
        errors.append(math.sqrt(np.mean(squared)))
        assert max(scaled) < 4.0
    # 4 -> 32 -> 256 iterations: one over the root predicts a factor of up to 2.8 each time.
    assert errors[1] < errors[0] / 1.5
    assert errors[2] < errors[1] / 1.5
    assert errors[2] < 0.03


def test_a_deep_search_prefers_the_best_response_and_beats_the_policy():
    config = SearchConfig(trees=6, iterations=40, width=12, max_turns=3, widening_factor=3.0)
    trees = search(roots(12), config)
    visits = [{text: n for text, (_, n) in root_responses(tree).items()} for tree in trees]
    assert sum(v["good"] for v in visits) > 1.3 * sum(v["bad"] for v in visits)
    policys_own = [MoodUser().expected(i % 3, None, EVEN, 3) for i in range(12)]
    assert np.mean([tree.value(Tree.ROOT) for tree in trees]) > np.mean(policys_own) + 0.05


def test_unreadable_outcomes_count_no_visit_and_no_value():
    """The user of this condition gives no readable outcome once it has heard "bad"."""
    (tree,) = search(roots(1, mute="bad"), SearchConfig(trees=1, iterations=9, width=8))
    bad = next(node for node in tree.children(Tree.ROOT) if node.text == "bad")
    assert bad.visits == 0
    assert bad.unread > 0
    assert math.isnan(bad.value)
    assert tree.account["unreadable"] == tree.nodes[Tree.ROOT].unread > 0
    assert json.loads(json.dumps(tree.to_json(), allow_nan=False))


def test_a_run_without_any_readable_outcome_yields_its_trees_then_fails():
    found = run(even_policy(), MoodUser(), MoodScenario(), roots(3, mute="always"), SMALL)
    for _ in range(3):
        tree = next(found)
        assert tree.account["simulations"] == 0
        assert tree.account["unreadable"] > 0
    with pytest.raises(InputError, match=r"not one of the \d+ simulated outcomes could be read"):
        next(found)


def test_a_user_who_leaves_at_once_has_its_outcome_counted_at_every_visit():
    config = SearchConfig(trees=1, iterations=8, width=4, rollouts=2, max_turns=5)
    (tree,) = search(roots(1), config, user=MoodUser(leaving=1.0, silent_exit=True))
    reactions = [node for node in tree.nodes if node.kind == "decision" and node.id != Tree.ROOT]
    assert all(node.terminal and node.text == "" for node in reactions)
    responses = tree.children(Tree.ROOT)
    assert tree.nodes[Tree.ROOT].visits == 2 * len(responses) + 7
    assert tree.dialogue_at(reactions[0].id).turns[-1].role == "policy"


def test_a_root_that_is_over_is_visited_with_its_outcome():
    (root,) = roots(1, mood=2)
    for turn in range(2):
        root = root.said("policy", "good").said("user", f"reply {turn}")
    config = SearchConfig(trees=1, iterations=5, width=4, max_turns=2)
    (tree,) = search([root], config)
    assert len(tree.nodes) == 1
    assert tree.nodes[0].terminal
    assert tree.nodes[0].visits == 5
    assert tree.value(Tree.ROOT) == pytest.approx(0.5)  # mood 2 of 4


def test_a_bare_condition_is_opened_by_the_side_that_opens():
    conditions = [UserCondition(f"c{i}", {"mood": 1}) for i in range(3)]
    for tree in search(conditions, SMALL, user=MoodUser(leaving=0.0)):
        assert [turn.role for turn in tree.root.turns] == ["user"]
    for tree in search(conditions, SMALL, scenario=MoodScenario(policy_opens=True)):
        assert tree.root.turns == ()
        assert tree.dialogue_at(tree.children(Tree.ROOT)[0].id).turns[0].role == "policy"


def test_a_user_who_leaves_without_a_word_leaves_a_tree_of_one_node():
    config = SearchConfig(trees=2, iterations=3, width=2)
    conditions = [UserCondition("c0", {"mood": 2})]
    (tree,) = search(conditions, config, user=MoodUser(leaving=1.0, silent_exit=True))
    assert [(node.visits, node.terminal) for node in tree.nodes] == [(3, True)]
    assert tree.value(Tree.ROOT) == pytest.approx(0.5)


def test_silence_is_heard_as_silence():
    policy = TablePolicy(lambda dialogue: {"": 0.5, "good": 0.5})
    (tree,) = search(roots(1), SearchConfig(trees=1, iterations=4, width=8), policy=policy)
    assert {node.text for node in tree.children(Tree.ROOT)} == {"...", "good"}
    assert tree.account["silent"] > 0


def test_leaves_selected_twice_are_expanded_once():
    config = SearchConfig(trees=1, iterations=1, leaves=3, width=2, max_turns=2)
    (tree,) = search(roots(1), config)
    assert tree.account["collisions"] == 2  # a tree of one node has one leaf
    assert sum(node.multiplicity for node in tree.children(Tree.ROOT)) == 2


def test_discounting_counts_the_policy_turns_that_remain():
    """A user who never leaves and whose mood stands still: g = 1/2 after three turns."""
    policy = TablePolicy(lambda dialogue: {"hm": 1.0})
    config = SearchConfig(trees=1, iterations=4, width=1, max_turns=3, gamma=0.5)
    (tree,) = search(roots(3)[2:], config, policy=policy, user=MoodUser(leaving=0.0))
    # Node values halve with every policy turn that is still to come after them.
    assert [tree.value(i) for i in range(5)] == pytest.approx([0.0625, 0.125, 0.125, 0.25, 0.25])


def test_tokens_are_counted_by_speaker():
    config = SearchConfig(trees=1, iterations=1, width=1, max_turns=1)
    (tree,) = search(roots(1), config)
    assert (tree.account["policy_tokens"], tree.account["simulator_tokens"]) == (2, 4)


def test_roots_that_cannot_be_searched_are_refused():
    root = roots(1)[0]
    with pytest.raises(InputError, match="'d0' ends with a turn of the policy;"):
        search([root.said("policy", "good")], SMALL)
    with pytest.raises(InputError, match="condition id 'c0' occurs twice"):
        search([root, root], SMALL)


def test_trees_can_be_taken_as_they_finish():
    """The second root is over: its tree is done while the first one still grows."""
    long, over = roots(2)
    for turn in range(3):
        over = over.said("policy", "good").said("user", f"reply {turn}")

    def grown(*, in_order: bool) -> list[FinishedTree]:
        sides = even_policy(), MoodUser(), MoodScenario()
        return list(grow(*sides, [long, over], SMALL, seed=0, in_order=in_order))

    first, second = grown(in_order=True)
    assert (first.condition_id, second.condition_id) == ("c0", "c1")
    assert grown(in_order=False) == [second, first]


def test_no_conditions_give_no_trees():
    assert search([], SMALL) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("conditions", 0),
        ("widening_exponent", 2),
        ("c_uct", -1),
        ("c_uct", math.inf),
        ("widening_factor", math.inf),
        ("gamma", math.nan),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(InputError, match=f"search.{field} is {value}; expected"):
        SearchConfig(**{field: value})


def test_a_node_budget_below_one_iteration_is_refused_and_one_above_is_kept_to():
    with pytest.raises(InputError, match=r"search.max_nodes is 6; expected 7 or more"):
        SearchConfig(width=3, max_nodes=6)
    config = dataclasses.replace(SMALL, iterations=50, max_nodes=20)
    for tree in search(roots(4), config):
        assert 20 - config.growth < len(tree.nodes) <= 20 or tree.nodes[Tree.ROOT].visits >= 50
    # Its own budget alone stops a tree: the part that both have is the same.
    whole = search(roots(1), dataclasses.replace(config, max_nodes=0))[0]
    [tree] = search(roots(1), config)
    assert [n.text for n in tree.nodes] == [n.text for n in whole.nodes[: len(tree.nodes)]]


def test_a_token_budget_ends_a_tree_after_the_iteration_that_spends_it():
    config = dataclasses.replace(SMALL, iterations=50, max_tokens=1)
    for tree in search(roots(3), config):
        assert tree.nodes[Tree.ROOT].visits == len(tree.children(Tree.ROOT))
    config = dataclasses.replace(config, max_tokens=100)
    for tree in search(roots(3), config, user=MoodUser(leaving=0.0)):
        spent = tree.account["policy_tokens"] + tree.account["simulator_tokens"]
        assert spent < 100 + config.samples * config.max_turns * 6
        assert spent >= 100 or tree.account["simulations"] >= 50  # which is what remains to spend


def test_a_tree_whose_roots_order_is_settled_stops_early():
    endless = SearchConfig(
        trees=4,
        iterations=400,
        width=8,
        max_turns=2,
        c_uct=2.0,
        widening_factor=2.0,
        widening_exponent=1.0,
    )
    visits = {}
    for gap in (0.0, 0.5, 1.5):
        trees = search(roots(4), dataclasses.replace(endless, stop_gap=gap))
        visits[gap] = [tree.nodes[Tree.ROOT].visits for tree in trees]
        for tree in trees:
            if tree.nodes[Tree.ROOT].visits < visits[0.0][0] and gap:
                values = sorted((n.value, n.visits) for n in tree.children(Tree.ROOT))
                for (low, n), (high, m) in itertools.pairwise(values):
                    error = math.hypot(0.5 / math.sqrt(n), 0.5 / math.sqrt(m))
                    assert high - low >= gap * error - 1e-6
    assert max(visits[0.5]) <= min(visits[0.0])
    assert sum(visits[0.5]) < sum(visits[1.5]) <= sum(visits[0.0])


def test_a_single_response_is_in_no_order():
    policy = TablePolicy(lambda dialogue: {"hm": 1.0})
    endless = SearchConfig(trees=1, iterations=5, width=2, max_turns=3)
    for gap in (0.0, 0.5):
        config = dataclasses.replace(endless, stop_gap=gap)
        [tree] = search(roots(1), config, policy=policy, user=MoodUser(leaving=0.0))
        assert tree.account["simulations"] == 5


def test_errors_of_returns_with_rewarded_reactions_are_unknown():
    with pytest.raises(InputError, match=r"stop_gap is 1.0 and search.reaction_weight 0.1"):
        SearchConfig(stop_gap=1.0, reaction_weight=0.1)


def test_speakers_who_always_say_the_same_leave_a_path():
    policy = TablePolicy(lambda dialogue: {"hm": 1.0})
    config = SearchConfig(trees=2, iterations=5, width=4, max_turns=3)
    for tree in search(roots(2), config, policy=policy, user=MoodUser(leaving=0.0)):
        assert all(len(tree.children(node.id)) <= 1 for node in tree.nodes)
        assert len(tree.nodes) == 7
        assert tree.account["duplicates"] == 3 * 3


def test_the_accounts_of_trees_add_up():
    for tree in search(roots(5), dataclasses.replace(SMALL, leaves=2, rollouts=2)):
        decisions = [n for n in tree.nodes if n.kind == "decision"]
        by_depth = {k: v for k, v in tree.account.items() if k.startswith("decisions_at_")}
        assert sum(by_depth.values()) == len(decisions)
        assert by_depth["decisions_at_0"] == 1
        expanded = sum(bool(tree.children(node.id)) for node in decisions)
        assert tree.account["context_hits"] + tree.account["context_misses"] == expanded
