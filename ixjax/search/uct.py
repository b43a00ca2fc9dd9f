"""Select, expand, back-propagate: the tree arithmetic of i×MCTS, without any text.

Each operation is written for one tree and vmapped over trees, then jitted at the edge. Loops over
a path run for as many steps as the deepest tree needs, with one bound for all trees: a bound per
tree would make XLA copy whole trees at every step, to freeze those that are done.

See docs/algorithm.md, "The tree". References: Kocsis and Szepesvári, Bandit based Monte-Carlo
planning, 2006 (UCT); Liu et al., Watch the Unobserved, 2020 (pending visits); Couëtoux et al.,
Continuous upper confidence trees, 2011 (progressive widening).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ixjax.search.tree import Tree

# `k * N**a` comes from pow, whose last bit may put an exact integer just above itself; ceil would
# then admit a reaction too many. float32 has seven digits, so this is wide enough and invisible.
_CEIL_SLACK = 1e-5

_Sums = tuple[jax.Array, jax.Array, jax.Array]  # visits, unread, value_sum, each [N]


def uct_select(
    tree: Tree,
    c_uct: ArrayLike,
    *,
    leaves: int = 1,
    widening_factor: ArrayLike = 1.0,
    widening_exponent: ArrayLike = 0.0,
) -> tuple[Tree, jax.Array]:
    """Walks down every tree to `leaves` places worth trying next.

    At a decision node the response with the largest `Q + c_uct * sqrt(ln N(s) / N(s, a))` is taken;
    one that was never tried first; ties go to the lowest index. At a response node the reaction
    with the fewest visits is taken, unless fewer than `ceil(k_w * N**alpha_w)` reactions are known:
    then the walk ends on the response node itself, where a new reaction is to be sampled.
    The walk also ends on a decision node without children and on a terminal node.

    Paths of one call see each other: each carries one pending visit, which counts in `N` and never
    in `W`, until `backpropagate` is told that it was `selected`. The same leaf may still come out
    twice (a tree of one node has no other).

    Args:
        tree: the trees, `[B, N]`.
        c_uct: weight of exploration, at least 0.
        leaves: paths per tree, `L`.
        widening_factor: `k_w`, above 0; 1 and exponent 0 keep one reaction a response.
        widening_exponent: `alpha_w`, in [0, 1].

    Returns:
        The trees with the pending visits added, and the selected nodes, `[B, L]`.

    References:
        docs/algorithm.md, "The tree", selection.
    """
    pending, selected = _select(tree, c_uct, widening_factor, widening_exponent, leaves=leaves)
    return dataclasses.replace(tree, pending=pending), selected


@jax.jit
def add_children(
    tree: Tree,
    parents: ArrayLike,
    terminal: ArrayLike | None = None,
) -> tuple[Tree, jax.Array]:
    """Adds up to `K` nodes to every tree, in the given order.

    Args:
        tree: the trees, `[B, N]`.
        parents: `[B, K]` the parent of each new node; `NO_NODE` where there is none to add.
        terminal: `[B, K]` whether the dialogue is over at the new node; default False.

    Returns:
        The trees, and the new nodes' indices, `[B, K]`. `NO_NODE` where nothing was to be added
        and where the tree or the parent's child slots were full.
    """
    _require_per_tree(tree, parents=parents)
    if terminal is None:
        terminal = jnp.zeros(jnp.shape(parents), bool)
    _require_same_shape(parents=parents, terminal=terminal)
    with jax.named_scope("add_children"):
        return jax.vmap(_add_children_one)(tree, jnp.asarray(parents), jnp.asarray(terminal))


def backpropagate(
    tree: Tree,
    leaves: ArrayLike,
    returns: ArrayLike,
    *,
    gamma: ArrayLike = 1.0,
    selected: ArrayLike | None = None,
) -> Tree:
    """Sends returns from nodes up to the root: `N += 1`, `W += return` at every node of the path.

    The `K` returns of a tree are added in order, so the sums do not depend on the batch.

    Args:
        tree: the trees, `[B, N]`.
        leaves: `[B, K]` where each return was obtained; `NO_NODE` entries are skipped.
        returns: `[B, K]` the returns; nan (the outcome could not be read) leaves `N` and `W` as
            they are and is counted in `unread`.
        gamma: discount a policy turn, in (0, 1], applied when a return passes from a response up
            to the decision before it.
        selected: `[B, L]` the leaves of `uct_select` whose pending visits end here.

    References:
        docs/algorithm.md, "The tree", back-propagation.
    """
    _require_per_tree(tree, leaves=leaves, returns=returns)
    _require_same_shape(leaves=leaves, returns=returns)
    if selected is None:
        selected = jnp.zeros((jnp.shape(leaves)[0], 0), jnp.int32)
    _require_per_tree(tree, selected=selected)
    visits, unread, value_sum, pending = _backpropagate(tree, leaves, returns, selected, gamma)
    return dataclasses.replace(
        tree, visits=visits, unread=unread, value_sum=value_sum, pending=pending
    )


# The jitted functions return what they change and nothing else: what passes through a jitted
# function is copied, and the children of large trees are most of their memory.


@partial(jax.jit, static_argnames=("leaves",))
def _select(
    tree: Tree,
    c_uct: ArrayLike,
    factor: ArrayLike,
    exponent: ArrayLike,
    *,
    leaves: int,
) -> tuple[jax.Array, jax.Array]:
    """Pending visits `[B, N]` with the new paths, and the leaves `[B, L]`."""
    steps = jnp.max(tree.depth) + 1
    dtype = tree.value_sum.dtype
    select = partial(
        _select_one,
        c_uct=jnp.asarray(c_uct, dtype),
        factor=jnp.asarray(factor, dtype),
        exponent=jnp.asarray(exponent, dtype),
        steps=steps,
    )
    add = partial(_add_along_path, steps=steps)

    def next_path(pending: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        leaf = jax.vmap(select)(dataclasses.replace(tree, pending=pending))
        return jax.vmap(add)(pending, tree.parent, leaf, jnp.ones_like(leaf)), leaf

    with jax.named_scope("uct_select"):
        pending, selected = lax.scan(next_path, tree.pending, None, length=leaves)
    return pending, selected.T


@jax.jit
def _backpropagate(
    tree: Tree,
    leaves: ArrayLike,
    returns: ArrayLike,
    selected: ArrayLike,
    gamma: ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The `[B, N]` visits, unread, value_sum and pending afterwards."""
    dtype = tree.value_sum.dtype
    one = partial(
        _backpropagate_one, gamma=jnp.asarray(gamma, dtype), steps=jnp.max(tree.depth) + 1
    )
    with jax.named_scope("backpropagate"):
        return jax.vmap(one)(
            tree, jnp.asarray(leaves), jnp.asarray(returns, dtype), jnp.asarray(selected)
        )


def _select_one(
    tree: Tree, *, c_uct: jax.Array, factor: jax.Array, exponent: jax.Array, steps: jax.Array
) -> jax.Array:
    """One walk from the root; `tree` is un-batched, returns a scalar node index."""

    def step(_: jax.Array, node: jax.Array) -> jax.Array:
        child = _best_child(tree, node, c_uct=c_uct, factor=factor, exponent=exponent)
        return jnp.where(child == Tree.NO_NODE, node, child)

    return lax.fori_loop(0, steps, step, jnp.int32(Tree.ROOT))


def _best_child(
    tree: Tree, node: jax.Array, *, c_uct: jax.Array, factor: jax.Array, exponent: jax.Array
) -> jax.Array:
    """The child that the walk takes from `node`; `NO_NODE` if it ends there. Un-batched."""
    children = tree.children[node]  # [W]
    known = jnp.arange(tree.width) < tree.num_children[node]
    at = jnp.where(known, children, Tree.ROOT)
    arrived = tree.visits[at]
    tried = arrived + tree.pending[at] + tree.unread[at]
    node_tried = tree.visits[node] + tree.pending[node] + tree.unread[node]
    total = node_tried.astype(tree.value_sum.dtype)

    # Divisors of at least one: without a return the sum is 0, without a trial the score infinite.
    mean = tree.value_sum[at] / jnp.maximum(arrived, 1)
    explore = jnp.sqrt(jnp.log(jnp.maximum(total, 1)) / jnp.maximum(tried, 1))
    score = jnp.where(tried == 0, jnp.inf, mean + c_uct * explore)
    response = jnp.argmax(jnp.where(known, score, -jnp.inf))

    reaction = jnp.argmin(jnp.where(known, tried, jnp.iinfo(tried.dtype).max))
    limit = jnp.ceil(factor * total**exponent * (1 - _CEIL_SLACK))
    room = tree.num_children[node] < jnp.minimum(limit, tree.width)

    is_response = tree.kind[node] == Tree.RESPONSE
    stop = tree.terminal[node] | (tree.num_children[node] == 0) | (is_response & room)
    return jnp.where(stop, Tree.NO_NODE, children[jnp.where(is_response, reaction, response)])


def _add_along_path(
    counts: jax.Array, parent: jax.Array, leaf: jax.Array, amount: jax.Array, *, steps: jax.Array
) -> jax.Array:
    """`counts[N]` with `amount` added at `leaf` and at all its ancestors. Un-batched."""

    def step(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        node, counts = carry
        counts = counts.at[_or_nowhere(node, counts)].add(amount, mode="drop")
        return _up(parent, node), counts

    return lax.fori_loop(0, steps, step, (leaf, counts))[1]


def _add_children_one(
    tree: Tree, parents: jax.Array, terminal: jax.Array
) -> tuple[Tree, jax.Array]:
    """Un-batched `add_children`: `parents[K]`."""
    wanted = parents != Tree.NO_NODE
    at = jnp.where(wanted, parents, Tree.ROOT)
    earlier = jnp.tril(jnp.ones((parents.size, parents.size), bool), -1)
    same_parent = (parents[:, None] == parents[None, :]) & wanted[None, :]
    slot = tree.num_children[at] + jnp.sum(earlier & same_parent, axis=1, dtype=jnp.int32)
    fits = wanted & (slot < tree.width)
    index = tree.num_nodes + jnp.cumsum(fits, dtype=jnp.int32) - 1
    fits &= index < tree.capacity

    # Index `capacity` is nowhere: scatters drop it.
    new = jnp.where(fits, index, tree.capacity)
    into = jnp.where(fits, at, tree.capacity)
    kind = jnp.where(tree.kind[at] == Tree.DECISION, Tree.RESPONSE, Tree.DECISION)
    grown = dataclasses.replace(
        tree,
        parent=tree.parent.at[new].set(at, mode="drop"),
        kind=tree.kind.at[new].set(kind, mode="drop"),
        depth=tree.depth.at[new].set(tree.depth[at] + 1, mode="drop"),
        num_children=tree.num_children.at[into].add(1, mode="drop"),
        children=tree.children.at[into, slot].set(index, mode="drop"),
        terminal=tree.terminal.at[new].set(terminal, mode="drop"),
        num_nodes=tree.num_nodes + jnp.sum(fits, dtype=jnp.int32),
    )
    return grown, jnp.where(fits, index, Tree.NO_NODE)


def _backpropagate_one(
    tree: Tree,
    leaves: jax.Array,
    returns: jax.Array,
    selected: jax.Array,
    *,
    gamma: jax.Array,
    steps: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Un-batched `backpropagate`: `leaves[K]`, `returns[K]`, `selected[L]`."""

    def climb(sums: _Sums, leaf_and_return: tuple[jax.Array, jax.Array]) -> tuple[_Sums, None]:
        leaf, value = leaf_and_return
        readable = ~jnp.isnan(value)

        def step(_: jax.Array, carry: tuple) -> tuple:
            node, value, (visits, unread, value_sum) = carry
            at = _or_nowhere(node, visits)
            sums = (
                visits.at[at].add(readable.astype(visits.dtype), mode="drop"),
                unread.at[at].add((~readable).astype(unread.dtype), mode="drop"),
                value_sum.at[at].add(value, mode="drop"),
            )
            turn_begins = tree.kind[jnp.maximum(node, Tree.ROOT)] == Tree.RESPONSE
            return _up(tree.parent, node), jnp.where(turn_begins, gamma * value, value), sums

        start = (leaf, jnp.where(readable, value, 0), sums)
        return lax.fori_loop(0, steps, step, start)[2], None

    def release(pending: jax.Array, leaf: jax.Array) -> tuple[jax.Array, None]:
        return _add_along_path(pending, tree.parent, leaf, jnp.int32(-1), steps=steps), None

    sums = (tree.visits, tree.unread, tree.value_sum)
    (visits, unread, value_sum), _ = lax.scan(climb, sums, (leaves, returns))
    pending, _ = lax.scan(release, tree.pending, selected)
    return visits, unread, value_sum, pending


def _or_nowhere(node: jax.Array, table: jax.Array) -> jax.Array:
    """`node`, or an index past the end, which scatters drop, for `NO_NODE`."""
    return jnp.where(node == Tree.NO_NODE, table.shape[0], node)


def _up(parent: jax.Array, node: jax.Array) -> jax.Array:
    """The parent of `node`; `NO_NODE` stays `NO_NODE`."""
    return jnp.where(node == Tree.NO_NODE, node, parent[jnp.maximum(node, Tree.ROOT)])


def _require_per_tree(tree: Tree, **arrays: ArrayLike) -> None:
    """Refuses anything but `[B, K]`, before a silent broadcast does something else with it."""
    trees = tree.parent.shape[0]
    for name, array in arrays.items():
        if jnp.ndim(array) != 2 or jnp.shape(array)[0] != trees:
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}; expected [{trees}, K]: one row for each of "
                f"the {trees} trees"
            )


def _require_same_shape(**arrays: ArrayLike) -> None:
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected one shape for all of these, found {shapes}")
