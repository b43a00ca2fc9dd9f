"""Slots that are cleared are as new; subtrees are the plain ones, statistics and all."""

from __future__ import annotations

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixjax.dialogue.types import Dialogue, Turn, UserCondition
from ixjax.search import (
    RULES,
    FinishedTree,
    Tree,
    TreeNode,
    add_children,
    backpropagate,
    clear,
    uct_select,
)
from ixjax.search.reuse import restore
from tests.reference import plain_tree
from tests.reference.plain_tree import PlainNode
from tests.search.plain_batches import (
    NODES,
    TREES,
    WIDTH,
    as_arrays,
    assert_equal_arrays,
    random_batch,
)

seeds = st.integers(0, 2**32)
masks = st.lists(st.booleans(), min_size=TREES, max_size=TREES)


@given(seeds, masks, st.booleans())
@settings(max_examples=50, deadline=None)
def test_cleared_trees_are_as_created_and_the_others_as_they_were(seed, which, donate):
    batch = random_batch(seed)
    cleared = clear(as_arrays(batch, "float32"), np.array(which), donate=donate)
    blank, before = Tree.create(TREES, NODES, WIDTH), as_arrays(batch, "float32")
    expected = jax.tree.map(
        lambda new, old: jnp.stack([(new if w else old)[b] for b, w in enumerate(which)]),
        blank,
        before,
    )
    assert_equal_arrays(cleared, expected)


def finished_of(nodes: list[PlainNode]) -> FinishedTree:
    """A plain tree as records."""
    number = {id(node): i for i, node in enumerate(nodes)}
    records = [
        TreeNode(
            id=i,
            parent=Tree.NO_NODE if node.parent is None else number[id(node.parent)],
            kind=node.kind,
            text=f"said {i}" if i else "",
            depth=len(node.path) - 1,
            visits=node.visits,
            value_sum=node.value_sum,
            unread=node.unread,
            terminal=node.terminal,
            mean_logprob=None if math.isnan(node.prior) else node.prior,
            reward=node.reward,
        )
        for i, node in enumerate(nodes)
    ]
    root = Dialogue("d", UserCondition("c", {}), (Turn("user", "hello"),))
    return FinishedTree("mood", root, tuple(records))


@given(seeds, st.sampled_from(["mean", "max"]))
@settings(max_examples=60, deadline=None)
def test_a_subtree_that_is_restored_is_the_plain_subtree(seed, backup):
    draw, [nodes, *_] = random.Random(seed + 1), random_batch(seed)
    for node in nodes:
        node.pending = 0
    decisions = [i for i, node in enumerate(nodes) if node.kind == "decision"]
    whole, root = finished_of(nodes), draw.choice([0, *decisions])
    part = whole.subtree(root)
    left = plain_tree.rerooted(nodes, nodes[root])
    left[0].reward = 0.0  # what led to the root earns nothing in its tree
    texts = [node.text for node in part.nodes[1:]]
    assert texts == [f"said {nodes.index(node)}" for node in left[1:]]
    blank = Tree.create(TREES, NODES, WIDTH)
    found = restore(blank, 1, part, gamma=0.5, backup=backup)
    nothing = [PlainNode("decision")]
    batch = [nothing, left, nothing]
    assert_equal_arrays(found, as_arrays(batch, "float32", backup=backup, gamma=0.5))


@pytest.mark.parametrize(
    ("nodes", "width", "found"), [(3, 4, "4 nodes; expected at most 3"), (4, 2, "3 children")]
)
def test_a_tree_that_does_not_fit_is_refused(nodes, width, found):
    plain = [PlainNode("decision")]
    plain += [plain[0].add() for _ in range(3)]
    with pytest.raises(ValueError, match=f"condition 'c' has {found}"):
        restore(Tree.create(2, nodes, width), 0, finished_of(plain), gamma=1.0, backup="mean")


def test_a_response_is_no_root():
    nodes = [PlainNode("decision")]
    nodes.append(nodes[0].add())
    with pytest.raises(ValueError, match="node 1 is a response; expected a decision"):
        finished_of(nodes).subtree(1)


def test_a_cleared_slot_grows_the_tree_that_a_new_one_grows():
    def grow(tree: Tree) -> Tree:
        tree, new = add_children(tree, jnp.zeros((2, 2), jnp.int32), prior=jnp.zeros((2, 2)))
        tree, new = add_children(tree, new, reward=jnp.ones((2, 2)))
        for _ in range(3):
            tree, leaf = uct_select(tree, 1.0, rule=RULES["puct"])
            tree = backpropagate(tree, leaf, jnp.ones((2, 1)), selected=leaf, backup="max")
        return tree

    once = grow(Tree.create(2, 8, 2))
    again = grow(clear(once, np.array([True, True]), donate=True))
    assert_equal_arrays(again, grow(Tree.create(2, 8, 2)))


def test_what_to_clear_is_said_of_every_tree():
    with pytest.raises(ValueError, match=r"which has shape \(3,\); expected \[2\]"):
        clear(Tree.create(2, 8, 2), np.zeros(3, bool))
