"""The jitted tree operations do what the plain tree in tests/reference does, bit for bit."""

from __future__ import annotations

import math
import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixjax.search import Tree, add_children, backpropagate, uct_select
from tests.reference import plain_tree
from tests.reference.plain_tree import PlainNode

# Shapes are fixed and only contents are drawn: otherwise every example would compile anew.
TREES, NODES, WIDTH, LEAVES, RETURNS = 3, 24, 4, 3, 5

seeds = st.integers(0, 2**32)
c_ucts = st.sampled_from([0.0, 0.3, 1.0, 2.0])
widenings = st.sampled_from([(1.0, 0.0), (2.0, 0.0), (1.0, 0.5), (1.5, 0.25), (2.0, 1.0)])


def random_plain_tree(draw: random.Random) -> list[PlainNode]:
    """Nodes in the order of their addition; values include exact ties and unvisited children."""
    nodes = [PlainNode("decision")]
    size = draw.randint(1, NODES)
    while len(nodes) < size:
        open_nodes = [n for n in nodes if len(n.children) < WIDTH and not n.terminal]
        # A response always has a first reaction: expansion adds the two together.
        childless = [n for n in open_nodes if n.kind == "response" and not n.children]
        if not (childless or open_nodes):
            break
        parent = childless[0] if childless else draw.choice(open_nodes)
        nodes.append(parent.add(terminal=parent.kind == "response" and draw.random() < 0.2))
    for node in nodes:
        node.visits = draw.choice([0, 1, 2, draw.randint(1, 40)])
        node.pending = draw.choice([0, 0, 1, 2])
        node.unread = draw.choice([0, 0, 0, 1])
        value = draw.choice([0.0, 0.5, 1.0, draw.random()])
        node.value_sum = value * node.visits
    return nodes


def random_batch(seed: int) -> list[list[PlainNode]]:
    draw = random.Random(seed)
    return [random_plain_tree(draw) for _ in range(TREES)]


def as_arrays(batch: list[list[PlainNode]], dtype: str) -> Tree:
    """The same trees as the package's arrays, filled field by field."""
    shape = (len(batch), NODES)
    fields = {
        name: np.zeros(shape, np.int32)
        for name in ("kind", "depth", "num_children", "visits", "pending", "unread")
    }
    parent = np.full(shape, Tree.NO_NODE, np.int32)
    children = np.full((*shape, WIDTH), Tree.NO_NODE, np.int32)
    value_sum = np.zeros(shape, dtype)
    terminal = np.zeros(shape, bool)
    for b, nodes in enumerate(batch):
        for i, node in enumerate(nodes):
            fields["kind"][b, i] = Tree.RESPONSE if node.kind == "response" else Tree.DECISION
            fields["depth"][b, i] = len(node.path) - 1
            fields["num_children"][b, i] = len(node.children)
            for name in ("visits", "pending", "unread"):
                fields[name][b, i] = getattr(node, name)
            children[b, i, : len(node.children)] = [nodes.index(c) for c in node.children]
            value_sum[b, i] = node.value_sum
            terminal[b, i] = node.terminal
            if node.parent is not None:
                parent[b, i] = nodes.index(node.parent)
    return Tree(
        parent=jnp.asarray(parent),
        children=jnp.asarray(children),
        value_sum=jnp.asarray(value_sum),
        terminal=jnp.asarray(terminal),
        num_nodes=jnp.asarray([len(nodes) for nodes in batch], jnp.int32),
        **{name: jnp.asarray(array) for name, array in fields.items()},
    )


def assert_same(tree: Tree, batch: list[list[PlainNode]], *, rtol: float = 0.0) -> None:
    for b, nodes in enumerate(batch):
        for name in ("visits", "pending", "unread"):
            found = np.asarray(getattr(tree, name))[b, : len(nodes)]
            assert found.tolist() == [getattr(node, name) for node in nodes], name
        found = np.asarray(tree.value_sum)[b, : len(nodes)]
        np.testing.assert_allclose(found, [n.value_sum for n in nodes], rtol=rtol, atol=rtol)


@given(seeds, c_ucts, widenings)
@settings(max_examples=150, deadline=None)
def test_selected_paths_equal_the_plain_trees(seed, c_uct, widening):
    batch = random_batch(seed)
    k_w, alpha_w = widening
    with jax.enable_x64(True):
        tree, leaves = uct_select(
            as_arrays(batch, "float64"),
            c_uct,
            leaves=LEAVES,
            widening_factor=k_w,
            widening_exponent=alpha_w,
        )
        plain = partial(plain_tree.select, c_uct=c_uct, k_w=k_w, alpha_w=alpha_w, width=WIDTH)
        expected = [[nodes.index(plain(nodes[0])) for _ in range(LEAVES)] for nodes in batch]
        assert leaves.tolist() == expected
        assert_same(tree, batch)  # the pending visits lie on the same paths


@given(seeds, st.sampled_from([1.0, 0.9]))
@settings(max_examples=150, deadline=None)
def test_backpropagated_sums_equal_the_plain_trees_bit_for_bit(seed, gamma):
    with jax.enable_x64(True):
        check_backpropagation(seed, gamma, dtype="float64", rtol=0.0)


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_backpropagated_sums_in_float32_are_within_1e_6(seed):
    check_backpropagation(seed, 1.0, dtype="float32", rtol=1e-6)


def check_backpropagation(seed, gamma, *, dtype, rtol):
    batch = random_batch(seed)
    draw = random.Random(seed + 1)
    leaves = np.full((TREES, RETURNS), Tree.NO_NODE, np.int32)
    returns = np.zeros((TREES, RETURNS), dtype)
    selected = np.full((TREES, LEAVES), Tree.NO_NODE, np.int32)
    tree = as_arrays(batch, dtype)
    for b, nodes in enumerate(batch):
        for k in range(RETURNS):
            if draw.random() < 0.8:
                leaves[b, k] = draw.randrange(len(nodes))
                returns[b, k] = draw.choice([0.0, 1.0, math.nan, draw.random()])
                plain_tree.backpropagate(nodes[leaves[b, k]], float(returns[b, k]), gamma=gamma)
        for k in range(draw.randint(0, LEAVES)):
            selected[b, k] = draw.randrange(len(nodes))
            plain_tree.release(nodes[selected[b, k]])
    tree = backpropagate(
        tree, jnp.asarray(leaves), jnp.asarray(returns), gamma=gamma, selected=jnp.asarray(selected)
    )
    assert_same(tree, batch, rtol=rtol)


def world_value(path: tuple[int, ...]) -> float:
    """A world whose answers are keyed on the path: any implementation sees the same one."""
    return random.Random(repr(path)).choice([0.0, 1.0, random.Random(repr(path) + "v").random()])


@pytest.mark.parametrize("widening", [(1.0, 0.0), (1.0, 0.5)])
def test_whole_searches_grow_the_same_trees(widening):
    """Forty simulations from bare roots: the same nodes, paths, counts and sums at each step."""
    k_w, alpha_w = widening
    simulations, width = 40, 3
    with jax.enable_x64(True):
        tree = Tree.create(2, 1 + 2 * simulations * width, 16, value_dtype="float64")
        plain = [[PlainNode("decision")] for _ in range(2)]
        for _ in range(simulations):
            tree, leaves = uct_select(tree, 1.0, widening_factor=k_w, widening_exponent=alpha_w)
            parents = np.full((2, width), Tree.NO_NODE, np.int32)
            news: list[list[PlainNode]] = []
            for b, nodes in enumerate(plain):
                leaf = plain_tree.select(nodes[0], c_uct=1.0, k_w=k_w, alpha_w=alpha_w)
                assert leaves[b, 0] == nodes.index(leaf)
                count = width if leaf.kind == "decision" else 1
                parents[b, :count] = nodes.index(leaf)
                fresh = [leaf.add() for _ in range(count)]
                nodes.extend(fresh)
                plain_tree.release(leaf)
                news.append(fresh)
            tree, ids = add_children(tree, jnp.asarray(parents))
            # A response is followed by its first reaction.
            parents = np.array(ids)
            for b, (nodes, fresh) in enumerate(zip(plain, news, strict=True)):
                if fresh[0].kind == "decision":
                    parents[b] = Tree.NO_NODE  # the reaction itself was new
                else:
                    fresh[:] = [node.add() for node in fresh]
                    nodes.extend(fresh)
            tree, reactions = add_children(tree, jnp.asarray(parents))
            targets = np.where(np.asarray(reactions) == Tree.NO_NODE, ids, reactions)
            returns = np.zeros(targets.shape)
            for b, (nodes, fresh) in enumerate(zip(plain, news, strict=True)):
                for k, node in enumerate(fresh):
                    assert targets[b, k] == nodes.index(node)
                    value = world_value((b, *(nodes.index(n) for n in node.path)))
                    returns[b, k] = value
                    plain_tree.backpropagate(node, value)
            tree = backpropagate(tree, jnp.asarray(targets), jnp.asarray(returns), selected=leaves)
        assert_same(tree, plain)
        assert tree.num_nodes.tolist() == [len(nodes) for nodes in plain]


def test_untried_children_come_first_then_ties_go_to_the_lowest_index():
    tree = Tree.create(1, 8, 3)
    tree, ids = add_children(tree, jnp.zeros((1, 3), jnp.int32))
    tree, ids = add_children(tree, ids)
    order = []
    for _ in range(6):
        tree, leaf = uct_select(tree, 1.0)
        order.append(int(leaf[0, 0]))
        tree = backpropagate(tree, leaf, jnp.full((1, 1), 0.5), selected=leaf)
    assert order == [4, 5, 6, 4, 5, 6]


def test_leaves_of_one_call_spread_over_siblings():
    tree = Tree.create(1, 16, 3)
    tree, ids = add_children(tree, jnp.zeros((1, 3), jnp.int32))
    tree, ids = add_children(tree, ids)
    _, leaves = uct_select(tree, 1.0, leaves=3)
    assert sorted(leaves[0].tolist()) == [4, 5, 6]


def test_a_response_whose_outcomes_cannot_be_read_does_not_hold_the_search():
    """It was tried, so it is no longer infinite; and it has no value, so it never wins by one."""
    tree = Tree.create(1, 8, 2)
    tree, ids = add_children(tree, jnp.zeros((1, 2), jnp.int32))
    tree, ids = add_children(tree, ids)
    chosen = []
    for _ in range(10):
        tree, leaf = uct_select(tree, 0.1)
        chosen.append(int(leaf[0, 0]))
        value = jnp.where(leaf == 3, jnp.nan, 0.5)
        tree = backpropagate(tree, leaf, value, selected=leaf)
    assert chosen.count(3) == 1
    assert tree.unread[0, 0] == 1
    assert tree.visits[0, 0] == 9


def test_a_batch_of_trees_equals_the_trees_one_by_one():
    batch = random_batch(7)
    tree, leaves = uct_select(as_arrays(batch, "float32"), 1.0, leaves=LEAVES)
    for b, nodes in enumerate(batch):
        alone, leaf = uct_select(as_arrays([nodes], "float32"), 1.0, leaves=LEAVES)
        assert leaf[0].tolist() == leaves[b].tolist()
        assert alone.pending[0].tolist() == tree.pending[b].tolist()


def test_a_full_tree_refuses_more_children():
    tree = Tree.create(1, 3, 2)
    tree, ids = add_children(tree, jnp.zeros((1, 3), jnp.int32))
    assert ids.tolist() == [[1, 2, Tree.NO_NODE]]
    tree, ids = add_children(tree, jnp.ones((1, 1), jnp.int32))
    assert ids.tolist() == [[Tree.NO_NODE]]
    assert tree.num_nodes.tolist() == [3]


def test_arrays_of_another_batch_are_refused():
    tree = Tree.create(2, 4, 2)
    with pytest.raises(ValueError, match=r"leaves has shape \(1, 1\); expected \[2, K\]"):
        backpropagate(tree, jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1)))
    with pytest.raises(ValueError, match="one shape"):
        backpropagate(tree, jnp.zeros((2, 1), jnp.int32), jnp.zeros((2, 3)))
