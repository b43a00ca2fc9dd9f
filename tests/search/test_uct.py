"""The jitted tree operations do what the plain tree in tests/reference does, bit for bit."""

from __future__ import annotations

import math
import random
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ixjax.search import RULES, Tree, add_children, backpropagate, uct_select
from ixjax.search.selection import Rule
from tests.reference import plain_tree
from tests.reference.plain_tree import PlainNode
from tests.search.plain_batches import (
    LEAVES,
    RETURNS,
    TREES,
    WIDTH,
    as_arrays,
    assert_equal_arrays,
    assert_same,
    random_batch,
)

seeds = st.integers(0, 2**32)
c_ucts = st.sampled_from([0.0, 0.3, 1.0, 2.0])
widenings = st.sampled_from([(1.0, 0.0), (2.0, 0.0), (1.0, 0.5), (1.5, 0.25), (2.0, 1.0)])


gammas = st.sampled_from([1.0, 0.9])
rules = st.sampled_from(["uct", "puct"])
backups = st.sampled_from(["mean", "max"])
masks = st.lists(st.booleans(), min_size=TREES, max_size=TREES)


@given(seeds, c_ucts, widenings, rules, backups, masks)
@settings(max_examples=200, deadline=None)
def test_selected_paths_equal_the_plain_trees(seed, c_uct, widening, rule, backup, active):
    batch = random_batch(seed)
    k_w, alpha_w = widening
    with jax.enable_x64(True):
        tree, leaves = uct_select(
            as_arrays(batch, "float64", backup=backup, gamma=0.9),
            c_uct,
            leaves=LEAVES,
            widening_factor=k_w,
            widening_exponent=alpha_w,
            active=jnp.asarray(active),
            rule=RULES[rule],
        )
        plain = partial(
            plain_tree.select,
            c_uct=c_uct,
            k_w=k_w,
            alpha_w=alpha_w,
            width=WIDTH,
            rule=rule,
            backup=backup,
            gamma=0.9,
        )
        for nodes, takes_part, found in zip(batch, active, leaves.tolist(), strict=True):
            expected = [
                nodes.index(plain(nodes[0])) if takes_part else Tree.NO_NODE for _ in range(LEAVES)
            ]
            assert found == expected
        assert_same(tree, batch)  # the pending visits lie on the same paths


@given(seeds, gammas, backups)
@settings(max_examples=200, deadline=None)
def test_backpropagated_sums_equal_the_plain_trees_bit_for_bit(seed, gamma, backup):
    with jax.enable_x64(True):
        check_backpropagation(seed, gamma, backup=backup, dtype="float64", rtol=0.0)


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_backpropagated_sums_in_float32_are_within_1e_6(seed):
    check_backpropagation(seed, 1.0, backup="mean", dtype="float32", rtol=1e-6)


def check_backpropagation(seed, gamma, *, backup, dtype, rtol):
    batch = random_batch(seed)
    draw = random.Random(seed + 1)
    leaves = np.full((TREES, RETURNS), Tree.NO_NODE, np.int32)
    returns = np.zeros((TREES, RETURNS), dtype)
    selected = np.full((TREES, LEAVES), Tree.NO_NODE, np.int32)
    tree = as_arrays(batch, dtype, backup=backup, gamma=gamma)
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
        tree,
        jnp.asarray(leaves),
        jnp.asarray(returns),
        gamma=gamma,
        selected=jnp.asarray(selected),
        backup=backup,
    )
    assert_same(tree, batch, rtol=rtol)
    for b, nodes in enumerate(batch):
        # A weighted mean may be summed with one rounding less, so its last bits are the device's.
        expected = [plain_tree.VALUES[backup](node, gamma) for node in nodes]
        np.testing.assert_allclose(
            tree.value[b, : len(nodes)], expected, rtol=1e-12 if dtype == "float64" else 1e-5
        )


def world_value(path: tuple[int, ...]) -> float:
    """A world whose answers are keyed on the path: any implementation sees the same one."""
    return random.Random(repr(path)).choice([0.0, 1.0, random.Random(repr(path) + "v").random()])


def add_to_both(
    tree: Tree, plain: list[list[PlainNode]], parents: list[list[PlainNode]]
) -> tuple[Tree, list[list[PlainNode]]]:
    """A child for each of `parents` in the arrays and in the plain trees, under the same ids."""
    size = max(map(len, parents))
    at = np.full((len(plain), size), Tree.NO_NODE, np.int32)
    prior, reward = np.full(at.shape, np.nan), np.zeros(at.shape)
    news = []
    for b, (nodes, row) in enumerate(zip(plain, parents, strict=True)):
        at[b, : len(row)] = [nodes.index(parent) for parent in row]
        fresh = [parent.add() for parent in row]
        nodes.extend(fresh)
        for k, node in enumerate(fresh):
            draw = random.Random(repr(("seen", b, *(nodes.index(n) for n in node.path))))
            prior[b, k], reward[b, k] = -draw.random(), draw.random() / 4
            if node.kind == "response":
                node.prior = prior[b, k]
            else:
                node.reward = reward[b, k]
        news.append(fresh)
    tree, ids = add_children(tree, at, prior=prior, reward=reward, donate=True)
    for nodes, fresh, found in zip(plain, news, ids.tolist(), strict=True):
        assert found[: len(fresh)] == [nodes.index(node) for node in fresh]
    return tree, news


@pytest.mark.parametrize(
    ("widening", "rule", "backup", "gamma"),
    [
        ((1.0, 0.0), "uct", "mean", 1.0),
        ((1.0, 0.5), "uct", "mean", 0.9),
        ((1.0, 0.5), "puct", "mean", 0.9),
        # One reaction a response: the mean over more is not the same to the last bit.
        ((1.0, 0.0), "uct", "max", 0.9),
        ((1.0, 0.0), "puct", "max", 1.0),
    ],
)
def test_whole_searches_grow_the_same_trees(widening, rule, backup, gamma):
    """Forty simulations from bare roots: the same nodes, paths, counts and sums at each step.

    Every third of them one tree sits out.
    """
    k_w, alpha_w = widening
    simulations, width = 40, 3
    with jax.enable_x64(True):
        tree = Tree.create(2, 1 + 2 * simulations * width, 16, value_dtype="float64")
        plain = [[PlainNode("decision")] for _ in range(2)]
        for simulation in range(simulations):
            active = [True, simulation % 3 > 0]
            tree, leaves = uct_select(
                tree,
                1.0,
                widening_factor=k_w,
                widening_exponent=alpha_w,
                active=np.array(active),
                rule=RULES[rule],
                donate=True,
            )
            at: list[list[PlainNode]] = []
            for b, nodes in enumerate(plain):
                if not active[b]:
                    at.append([])
                    continue
                leaf = plain_tree.select(
                    nodes[0],
                    c_uct=1.0,
                    k_w=k_w,
                    alpha_w=alpha_w,
                    rule=rule,
                    backup=backup,
                    gamma=gamma,
                )
                assert leaves[b, 0] == nodes.index(leaf)
                plain_tree.release(leaf)
                at.append([leaf] * (width if leaf.kind == "decision" else 1))
            tree, ends = add_to_both(tree, plain, at)
            # A new response is followed by its first reaction.
            responses = [[node for node in row if node.kind == "response"] for row in ends]
            if any(responses):
                tree, reactions = add_to_both(tree, plain, responses)
                ends = [new or end for new, end in zip(reactions, ends, strict=True)]
            targets = np.full((2, width), Tree.NO_NODE, np.int32)
            returns = np.zeros(targets.shape)
            for b, (nodes, row) in enumerate(zip(plain, ends, strict=True)):
                for k, node in enumerate(row):
                    targets[b, k] = nodes.index(node)
                    returns[b, k] = world_value((b, *(nodes.index(n) for n in node.path)))
                    plain_tree.backpropagate(node, returns[b, k], gamma=gamma)
            tree = backpropagate(
                tree, targets, returns, gamma=gamma, selected=leaves, backup=backup, donate=True
            )
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


def test_a_rule_of_ones_own_is_passed_in_and_each_name_has_a_rule():
    tree, _ = add_children(Tree.create(1, 8, 4), np.zeros((1, 3), np.int32))
    last_first = lambda responses, c_uct: c_uct * jnp.arange(responses.known.size)
    _, leaf = uct_select(tree, 1.0, rule=last_first)
    assert leaf.tolist() == [[3]]
    assert set(typing.get_args(Rule)) == set(RULES)


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


def test_donating_gives_the_same_trees_and_keeps_what_was_not_given():
    batch = random_batch(11)
    kept = as_arrays(batch, "float32")
    before = jax.tree.map(np.array, kept)
    parents = np.zeros((TREES, 2), np.int32)
    values = np.full((TREES, LEAVES), 0.5, np.float32)

    def step(tree: Tree, *, donate: bool) -> Tree:
        tree, leaves = uct_select(tree, 1.0, leaves=LEAVES, donate=donate)
        tree, _ = add_children(tree, parents, donate=donate)
        return backpropagate(tree, leaves, values, selected=leaves, donate=donate)

    found = step(kept, donate=False)
    assert_equal_arrays(kept, before)
    assert_equal_arrays(step(as_arrays(batch, "float32"), donate=True), found)


def test_reactions_alone_earn_a_reward():
    tree = Tree.create(1, 4, 1)
    ones = np.ones((1, 1), np.float32)
    tree, response = add_children(tree, np.zeros((1, 1), np.int32), reward=ones)
    tree, _ = add_children(tree, response, reward=ones)
    assert tree.reward[0].tolist() == [0, 0, 1, 0]
