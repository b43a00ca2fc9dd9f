"""Reuse of slots: cleared for the next condition, or filled with a finished tree.

`Tree.create` allocates memory once; the slot of a finished tree is cleared, not allocated again.
After a turn has been played, the search below it is still valid: `FinishedTree.subtree` is restored
into a slot with all its statistics.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ixjax.search.operations import jitted, require_per_tree
from ixjax.search.tree import FinishedTree, Tree


def clear(tree: Tree, which: ArrayLike, *, donate: bool = False) -> Tree:
    """Reset the trees `which` to an unvisited root, as `Tree.create` returns them.

    Args:
        tree: the trees, `[B, N]`.
        which: `[B]` bool, the trees to clear; the others stay as they are.
        donate: donate `tree`, so that only the memory of the cleared trees is written.
    """
    require_per_tree(tree, ndim=1, which=which)
    return _clear(tree, which, donate=donate)[0]


def restore(tree: Tree, slot: int, finished: FinishedTree, *, gamma: float, backup: str) -> Tree:
    """Restore a finished tree into a slot, to search it further.

    Args:
        tree: the trees, `[B, N]`; donated.
        slot: of the tree; it must be clear.
        finished: at most N nodes.
        gamma: see `backpropagate`.
        backup: see `backpropagate`, `mean` or `max`.

    Raises:
        ValueError: the finished tree has too many nodes, or a node with too many children.
    """
    nodes, size = finished.nodes, len(finished.nodes)
    widest = max(len(finished.children(node.id)) for node in nodes)
    for what, found, most in (
        ("nodes", size, tree.capacity),
        ("children at a node", widest, tree.width),
    ):
        if found > most:
            raise ValueError(
                f"the tree of condition {finished.condition_id!r} has {found} {what}; expected at "
                f"most {most}. Give the pool more room, or restore a subtree"
            )
    children = np.full((tree.capacity, tree.width), Tree.NO_NODE, np.int32)
    count = np.zeros(tree.capacity, np.int32)
    for node in nodes[1:]:
        children[node.parent, count[node.parent]] = node.id
        count[node.parent] += 1

    def table(values: list, fill: float = 0) -> np.ndarray:
        return np.array([*values, *[fill] * (tree.capacity - len(values))])

    kinds = {"decision": Tree.DECISION, "response": Tree.RESPONSE}
    logprobs = [n.mean_logprob if n.kind == "response" else None for n in nodes]
    fields = {
        "parent": table([n.parent for n in nodes], Tree.NO_NODE),
        "kind": table([kinds[n.kind] for n in nodes], Tree.DECISION),
        "depth": table([n.depth for n in nodes]),
        "num_children": count,
        "children": children,
        "visits": table([n.visits for n in nodes]),
        "pending": table([]),
        "unread": table([n.unread for n in nodes]),
        "value_sum": table([n.value_sum for n in nodes]),
        "value": table(_values(finished, gamma=gamma, backup=backup)),
        "prior": table([math.nan if p is None else p for p in logprobs], math.nan),
        "reward": table([n.reward for n in nodes]),
        "terminal": table([n.terminal for n in nodes]),
        "num_nodes": np.array(size),
    }
    row = {name: jnp.asarray(f, getattr(tree, name).dtype)[None] for name, f in fields.items()}
    return _put(tree, Tree(**row), slot)


def _values(finished: FinishedTree, *, gamma: float, backup: str) -> list[float]:
    """Return the value of each node, as `backpropagate` computes it."""
    values = [node.value if node.visits else 0.0 for node in finished.nodes]
    if backup == "mean":
        return values
    for node in finished.nodes[::-1]:  # children come after their parents
        visited = [child for child in finished.children(node.id) if child.visits]
        if visited and node.kind == "decision":
            values[node.id] = max(gamma * values[child.id] for child in visited)
        elif visited:
            below = sum(c.visits * (c.reward + values[c.id]) for c in visited)
            values[node.id] = below / sum(child.visits for child in visited)
    return values


@jax.jit
def statistics(tree: Tree, slot: ArrayLike) -> dict[str, jax.Array]:
    """Return `[N]` the arrays of one tree that its records need."""
    return {
        name: lax.dynamic_index_in_dim(getattr(tree, name), slot, keepdims=False)
        for name in ("depth", "visits", "value_sum", "unread")
    }


@partial(jax.jit, donate_argnums=0)
def _put(tree: Tree, row: Tree, slot: ArrayLike) -> Tree:
    return jax.tree.map(
        lambda table, new: lax.dynamic_update_slice_in_dim(table, new, slot, axis=0), tree, row
    )


def _clear_batch(tree: Tree, which: ArrayLike) -> tuple[Tree, None]:
    """Write blank rows one cleared tree at a time, so that the others are not touched."""
    blank = Tree.create(1, tree.capacity, tree.width, value_dtype=tree.value.dtype)
    (rows,) = jnp.nonzero(which, size=tree.parent.shape[0], fill_value=0)

    def wipe(i: jax.Array, tree: Tree) -> Tree:
        return jax.tree.map(
            lambda table, row: lax.dynamic_update_slice_in_dim(table, row, rows[i], axis=0),
            tree,
            blank,
        )

    with jax.named_scope("clear"):
        return lax.fori_loop(0, jnp.sum(jnp.asarray(which, bool)), wipe, tree), None


_clear = jitted(_clear_batch, changes=tuple(field.name for field in dataclasses.fields(Tree)))
