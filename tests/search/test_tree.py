"""Finished trees keep all that was said, and come back from JSON as they were."""

from __future__ import annotations

import json
import math

import jax
import pytest

from ixjax.dialogue.types import Dialogue, Turn, UserCondition
from ixjax.io import InputError
from ixjax.search import FinishedTree, Tree, TreeNode


def small_tree() -> FinishedTree:
    root = Dialogue("d", UserCondition("c", {"mood": 1}), (Turn("user", "hello"),))
    return FinishedTree(
        scenario="mood",
        root=root,
        nodes=(
            TreeNode(0, -1, "decision", "", 0, visits=3, value_sum=1.5),
            TreeNode(1, 0, "response", "hi", 1, visits=2, value_sum=1.5, multiplicity=3),
            TreeNode(2, 0, "response", "go", 1, visits=1, value_sum=0.0),
            TreeNode(3, 1, "decision", "nice", 2, visits=2, value_sum=1.5),
            TreeNode(4, 2, "decision", "", 2, visits=1, value_sum=0.0, terminal=True, outcome=0.0),
            TreeNode(5, 3, "response", "so?", 3, visits=0, value_sum=0.0, unread=1),
        ),
        account={"nodes": 6, "simulations": 3},
    )


def test_the_dialogue_at_a_node_is_the_root_and_the_path_to_it():
    tree = small_tree()
    assert [turn.text for turn in tree.dialogue_at(5).turns] == ["hello", "hi", "nice", "so?"]
    assert [turn.role for turn in tree.dialogue_at(3).turns] == ["user", "policy", "user"]
    # A user who left without a word said nothing.
    assert [turn.text for turn in tree.dialogue_at(4).turns] == ["hello", "go"]


def test_children_and_values():
    tree = small_tree()
    assert [node.text for node in tree.children(Tree.ROOT)] == ["hi", "go"]
    assert tree.value(1) == 0.75
    assert math.isnan(tree.value(5))


def test_json_round_trip():
    tree = small_tree()
    record = json.loads(json.dumps(tree.to_json(), allow_nan=False))
    assert FinishedTree.from_json(record) == tree


def test_a_record_that_is_no_tree_is_refused():
    record = small_tree().to_json()
    del record["account"]
    with pytest.raises(InputError, match="not a search tree: 'account'"):
        FinishedTree.from_json(record)
    record = small_tree().to_json()
    record["nodes"][3]["parent"] = 4
    with pytest.raises(InputError, match="node 3 has id 3 and parent 4"):
        FinishedTree.from_json(record)


def test_an_array_tree_survives_tree_map_and_eval_shape():
    tree = Tree.create(2, 5, 3)
    shapes = jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes.children == (2, 5, 3)
    assert jax.eval_shape(lambda t: t, tree).value_sum.shape == (2, 5)
    assert (tree.capacity, tree.width) == (5, 3)


def test_a_tree_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nodes=0"):
        Tree.create(1, 0, 1)
