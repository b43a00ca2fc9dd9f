"""Random batches of plain trees, and the package's arrays filled from them field by field."""

from __future__ import annotations

import random

import jax.numpy as jnp
import numpy as np

from ixjax.search import Tree
from tests.reference.plain_tree import VALUES, PlainNode

# Shapes are fixed and only contents are drawn: otherwise every example would compile anew.
TREES, NODES, WIDTH, LEAVES, RETURNS = 3, 24, 4, 3, 5

INTEGERS = ("kind", "depth", "num_children", "visits", "pending", "unread")
FLOATS = ("value_sum", "value", "prior", "reward")


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
        # Whole families without a score, some with equal ones, and now and then a single gap.
        scores = draw.choice([[float("nan")], [-1.0], [-draw.random() for _ in node.children]])
        for child in node.children:
            if node.kind == "decision":
                child.prior = draw.choice(scores or [-1.0])
            else:
                child.reward = draw.choice([0.0, 0.25, draw.random()])
    return nodes


def random_batch(seed: int) -> list[list[PlainNode]]:
    draw = random.Random(seed)
    return [random_plain_tree(draw) for _ in range(TREES)]


def as_arrays(
    batch: list[list[PlainNode]], dtype: str, *, backup: str = "mean", gamma: float = 1.0
) -> Tree:
    """The same trees as the package's arrays, filled field by field."""
    shape = (len(batch), NODES)
    fields = {name: np.zeros(shape, np.int32) for name in INTEGERS}
    fields |= {name: np.zeros(shape, dtype) for name in FLOATS}
    fields["prior"][:] = np.nan
    fields["parent"] = np.full(shape, Tree.NO_NODE, np.int32)
    fields["children"] = np.full((*shape, WIDTH), Tree.NO_NODE, np.int32)
    fields["terminal"] = np.zeros(shape, bool)
    for b, nodes in enumerate(batch):
        for i, node in enumerate(nodes):
            fields["kind"][b, i] = Tree.RESPONSE if node.kind == "response" else Tree.DECISION
            fields["depth"][b, i] = len(node.path) - 1
            fields["num_children"][b, i] = len(node.children)
            fields["children"][b, i, : len(node.children)] = [nodes.index(c) for c in node.children]
            fields["value"][b, i] = VALUES[backup](node, gamma)
            for name in ("visits", "pending", "unread", "value_sum", "prior", "reward", "terminal"):
                fields[name][b, i] = getattr(node, name)
            if node.parent is not None:
                fields["parent"][b, i] = nodes.index(node.parent)
    return Tree(
        **{name: jnp.asarray(array) for name, array in fields.items()},
        num_nodes=jnp.asarray([len(nodes) for nodes in batch], jnp.int32),
    )


def assert_same(tree: Tree, batch: list[list[PlainNode]], *, rtol: float = 0.0) -> None:
    for b, nodes in enumerate(batch):
        for name in ("visits", "pending", "unread"):
            found = np.asarray(getattr(tree, name))[b, : len(nodes)]
            assert found.tolist() == [getattr(node, name) for node in nodes], name
        found = np.asarray(tree.value_sum)[b, : len(nodes)]
        np.testing.assert_allclose(found, [n.value_sum for n in nodes], rtol=rtol, atol=rtol)


def assert_equal_arrays(tree: Tree, expected: Tree) -> None:
    """All fields, bit for bit."""
    for name, found in vars(tree).items():
        np.testing.assert_array_equal(found, getattr(expected, name), err_msg=name)
