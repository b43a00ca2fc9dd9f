"""The host's side of a tree: which participants nodes hold, and when they are closed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ixjax.dialogue import Utterance
from ixjax.search import Tree, TreeNode
from ixjax.search.node_table import COUNTS, NodeTable
from tests.search.doubles import MoodUser, even_policy, roots

ROOT = TreeNode(Tree.ROOT, Tree.NO_NODE, "decision", "", 0, 0, 0.0)


def path(turns: int) -> NodeTable:
    """Return a table of one path: node 2 t is the decision after t exchanges."""
    [root] = roots(1)
    table = NodeTable(root, even_policy(), MoodUser())
    table.add(ROOT)
    for turn in range(1, turns + 1):
        for kind, text in (("response", f"say {turn}"), ("decision", f"hear {turn}")):
            number = len(table.nodes)
            depth = table.depth_below(number - 1)
            table.add(TreeNode(number, number - 1, kind, text, depth, 0, 0.0))
    return table


def fan(leaves: int) -> NodeTable:
    """Return a table whose root and `leaves` children hold participants."""
    [root] = roots(1)
    table = NodeTable(root, even_policy(), MoodUser())
    table.add(ROOT)
    hold(table, 0)
    for number in range(1, leaves + 1):
        table.add(TreeNode(number, 0, "response", f"say {number}", 1, 0, 0.0))
        hold(table, number)
    return table


def hold(table: NodeTable, number: int):
    sides = even_policy().begin(table.root), MoodUser().begin(table.root)
    table.hold(number, sides)
    return sides


def held(table: NodeTable) -> set[int]:
    """Return the nodes that hold participants."""
    return set(table._held)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_the_least_recently_used_are_closed_first(order):
    table = fan(3)
    for iteration, number in enumerate(order, start=1):
        table.iteration = iteration
        table.participants(number)
    for closed, number in enumerate(order, start=1):
        sides = table._held[number]
        table.close_oldest(4 - closed)
        assert held(table) == {Tree.ROOT, *order[closed:]}
        assert all(side.closed for side in sides)


def test_those_used_in_one_iteration_are_closed_in_the_order_of_their_nodes():
    table = fan(3)
    table.close_oldest(3)
    assert held(table) == {0, 2, 3}
    table.close_oldest(9)
    assert held(table) == {0, 2, 3}


def test_the_roots_participants_are_closed_last():
    table = fan(4)
    root = table._held[Tree.ROOT]
    for table.iteration in range(1, 5):  # the root is the one used longest ago
        table.participants(table.iteration)
    table.close_oldest(1)
    assert held(table) == {Tree.ROOT}
    assert not any(side.closed for side in root)
    table.close()
    assert not held(table)
    assert all(side.closed for side in root)


def test_a_held_node_is_a_hit_and_hands_out_what_it_holds():
    table = fan(1)
    sides = table.participants(1)
    assert table.participants(1) is sides
    assert (table.counts["context_hits"], table.counts["context_misses"]) == (2, 0)


def test_a_closed_nodes_participants_begin_near_its_nearest_ancestor_that_is_held():
    """Down a path of three exchanges, whose last decision holds none."""
    table = path(3)
    for number in (0, 2, 4):
        hold(table, number)
    asked = []

    def begin(dialogue, *, near=None):
        asked.append((dialogue, near))
        return even_policy().begin(dialogue)

    for speaker in table._speakers:
        speaker.begin = begin
    nearest = table._held[4]
    policy, user = table.participants(6)
    assert [near for _, near in asked] == list(nearest)
    for dialogue in (policy.dialogue, user.dialogue):
        assert [turn.text for turn in dialogue.turns] == [
            table.root.turns[0].text,
            *(text for turn in (1, 2, 3) for text in (f"say {turn}", f"hear {turn}")),
        ]
    assert (table.counts["context_hits"], table.counts["context_misses"]) == (0, 1)
    assert table.participants(6) == (policy, user)  # they are held from now on
    assert (table.counts["context_hits"], table.counts["context_misses"]) == (1, 1)


def test_an_ancestor_that_was_begun_from_counts_as_used():
    table = fan(2)
    table.add(TreeNode(3, 1, "decision", "hear", 2, 0, 0.0))
    table.iteration = 1
    table.participants(2)
    table.iteration = 2
    table.participants(3)  # begins near node 1
    table.close_oldest(3)
    assert held(table) == {0, 1, 3}


def test_nodes_come_in_the_order_of_their_ids():
    table = path(1)
    with pytest.raises(RuntimeError, match=r"node 5 was added to the tree; expected 3"):
        table.add(TreeNode(5, 2, "response", "", 3, 0, 0.0))


def test_turns_and_reactions_are_those_of_the_path():
    table = path(2)
    root_turns = sum(turn.role == "policy" for turn in table.root.turns)
    assert [table.turns(number) - root_turns for number in range(5)] == [0, 1, 1, 2, 2]
    assert [table.reactions(response) for response in (1, 3)] == [1, 1]
    table.add(TreeNode(5, 1, "decision", "hear another", 2, 0, 0.0))
    assert table.reactions(1) == 2


def test_records_join_words_and_statistics():
    table = path(1)
    table.count("policy", Utterance("say 1", num_tokens=3))
    table.count("simulator", Utterance("", num_tokens=2))  # silence that ends nothing
    table.count("simulator", Utterance("", ended=True, num_tokens=1))
    table.spend("policy", [Utterance("more", num_tokens=4)])
    assert table.tokens == 3 + 2 + 1 + 4
    statistics = {
        "visits": np.array([5, 4, 3, 0]),  # the arrays have room for more nodes
        "value_sum": np.array([2.5, 2.0, 1.5, 0.0]),
        "unread": np.array([1, 0, 0, 0]),
    }
    tree = table.finish(statistics, scenario="mood")
    assert [(n.text, n.visits, n.value_sum, n.unread) for n in tree.nodes] == [
        ("", 5, 2.5, 1),
        ("say 1", 4, 2.0, 0),
        ("hear 1", 3, 1.5, 0),
    ]
    expected = dict.fromkeys(COUNTS, 0) | {
        "nodes": 3,
        "simulations": 5,
        "unreadable": 1,
        "silent": 1,
        "policy_tokens": 7,
        "simulator_tokens": 3,
        "decisions_at_0": 1,
        "decisions_at_1": 1,
    }
    assert tree.account == expected
