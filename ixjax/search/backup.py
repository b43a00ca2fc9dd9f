"""The loop of `uct.backpropagate`, which documents the computed values.

All `K` returns of all trees move up together, level by level from the deepest leaf of the call; a
return that starts higher up waits for its level. All returns through a node therefore pass it in
the same step and are added in order, after the levels below are final. The max backup, which
computes a value from the children's values, thus computes it once.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ixjax.search.operations import or_nowhere
from ixjax.search.tree import Tree

Backup = Literal["mean", "max"]


def send_up(
    tree: Tree,
    leaves: ArrayLike,
    returns: ArrayLike,
    selected: ArrayLike,
    gamma: ArrayLike,
    *,
    backup: Backup,
) -> tuple[Tree, None]:
    """Backpropagate `returns[B, K]` from `leaves[B, K]`; see `uct.backpropagate`."""
    dtype = tree.value.dtype
    leaves, returns = jnp.asarray(leaves, jnp.int32), jnp.asarray(returns, dtype)
    gamma = jnp.asarray(gamma, dtype)
    rows = jnp.arange(leaves.shape[0])[:, None]
    readable = ~jnp.isnan(returns)
    worth_of_one = _mean if backup == "mean" else partial(_best, gamma=gamma)
    worth = jax.vmap(jax.vmap(worth_of_one, in_axes=(None, 0)))  # trees, then returns

    def level(state: tuple) -> tuple:
        """Move the returns at the deepest nodes one level up."""
        node, depth, value, tree = state
        here = depth == jnp.max(depth)
        tree = _count(tree, node, value, arrived=here & readable, unread=here & ~readable)
        at = jnp.maximum(node, Tree.ROOT)
        touched = or_nowhere(node, tree.value, when=here)
        value_now = tree.value.at[rows, touched].set(worth(tree, at), mode="drop")
        tree = dataclasses.replace(tree, value=value_now)
        passed = jnp.where(
            tree.kind[rows, at] == Tree.RESPONSE, gamma * value, value + tree.reward[rows, at]
        )
        return (
            jnp.where(here, tree.parent[rows, at], node),
            jnp.where(here, depth - 1, depth),
            jnp.where(here, passed, value),
            tree,
        )

    with jax.named_scope("backpropagate"):
        depth = jnp.where(
            leaves == Tree.NO_NODE, -1, tree.depth[rows, jnp.maximum(leaves, Tree.ROOT)]
        )
        state = (leaves, depth, returns, tree)
        *_, tree = lax.while_loop(lambda state: jnp.any(state[1] >= 0), level, state)
        pending = _release(tree, jnp.asarray(selected, jnp.int32))
    return dataclasses.replace(tree, pending=pending), None


def _count(
    tree: Tree, node: jax.Array, value: jax.Array, *, arrived: jax.Array, unread: jax.Array
) -> Tree:
    """Add the returns `[B, K]` that `arrived` to `N` and `W`, and count the `unread` ones."""
    rows = jnp.arange(node.shape[0])
    into = or_nowhere(node, tree.visits, when=arrived)
    lost = or_nowhere(node, tree.visits, when=unread)

    # One scatter per return: within one scatter, the device picks the order of addition.
    def add(value_sum: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        at, value = one
        return value_sum.at[rows, at].add(value, mode="drop"), None

    return dataclasses.replace(
        tree,
        visits=tree.visits.at[rows[:, None], into].add(1, mode="drop"),
        unread=tree.unread.at[rows[:, None], lost].add(1, mode="drop"),
        value_sum=lax.scan(add, tree.value_sum, (into.T, value.T))[0],
    )


def _mean(tree: Tree, node: jax.Array) -> jax.Array:
    """Return `W / N` at `node`, 0 without a return. Un-batched."""
    return tree.value_sum[node] / jnp.maximum(tree.visits[node], 1)


def _best(tree: Tree, node: jax.Array, *, gamma: jax.Array) -> jax.Array:
    """Return the max backup's value at `node`, from final values below it. Un-batched."""
    known = jnp.arange(tree.width) < tree.num_children[node]
    at = jnp.where(known, tree.children[node], Tree.ROOT)
    visits = jnp.where(known, tree.visits[at], 0)
    # A child without a visit is excluded: its value of 0 is no return.
    best = jnp.max(jnp.where(visits > 0, gamma * tree.value[at], -jnp.inf))
    total = jnp.sum(visits)
    mean = jnp.sum(visits * (tree.reward[at] + tree.value[at])) / jnp.maximum(total, 1)
    below = jnp.where(tree.kind[node] == Tree.DECISION, best, mean)
    return jnp.where(total > 0, below, _mean(tree, node))


def _release(tree: Tree, selected: jax.Array) -> jax.Array:
    """Subtract a pending visit on each path from `selected[B, L]` to the root."""
    rows = jnp.arange(selected.shape[0])[:, None]

    def level(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        node, pending = state
        pending = pending.at[rows, or_nowhere(node, pending)].add(-1, mode="drop")
        up = tree.parent[rows, jnp.maximum(node, Tree.ROOT)]
        return jnp.where(node == Tree.NO_NODE, node, up), pending

    state = (selected, tree.pending)
    return lax.while_loop(lambda state: jnp.any(state[0] != Tree.NO_NODE), level, state)[1]
