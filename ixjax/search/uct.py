"""Select, expand, back-propagate: the tree arithmetic of i×MCTS, without any text.

One node's arithmetic is written for one tree and vmapped over trees. The loops over levels belong
to the batch and run as many steps as the deepest path needs: with a bound per tree, XLA would copy
whole trees at every step to freeze those that are done.

See docs/algorithm.md, "The tree". References: Kocsis and Szepesvári, Bandit based Monte-Carlo
planning, 2006; Silver et al., Mastering the game of Go without human knowledge, 2017; Liu et al.,
Watch the Unobserved, 2020 (pending visits); Couëtoux et al., Continuous upper confidence trees,
2011 (progressive widening).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ixjax.search.backup import Backup, send_up
from ixjax.search.operations import jitted, or_nowhere, require_per_tree, require_same_shape
from ixjax.search.selection import Responses, SelectionRule, uct
from ixjax.search.tree import Tree

# `k * N**a` comes from pow, whose last bit may put an exact integer just above itself; ceil would
# then admit a reaction too many. float32 has seven digits, so this is wide enough and invisible.
_CEIL_SLACK = 1e-5


def uct_select(
    tree: Tree,
    c_uct: ArrayLike,
    *,
    leaves: int = 1,
    widening_factor: ArrayLike = 1.0,
    widening_exponent: ArrayLike = 0.0,
    active: ArrayLike | None = None,
    rule: SelectionRule = uct,
    donate: bool = False,
) -> tuple[Tree, jax.Array]:
    """Walk down every tree to `leaves` nodes worth expanding next.

    At a decision node `s` the response `a` with the largest score is taken; ties go to the lowest
    index. The score is the rule's (`ixjax.search.selection`). In it, `N` counts arrived, pending
    and unread visits alike, and `Q` is `tree.value`: `W / N`, or the max backup of it.

    At a response node the reaction with the fewest visits is taken, unless fewer than
    `ceil(k_w * N**alpha_w)` reactions are known: then the walk ends on the response node itself,
    where a new reaction is to be sampled. The walk also ends on a decision node without children
    and on a terminal node.

    Paths of one call see each other: each carries one pending visit, which counts in `N` and never
    in `W`, until `backpropagate` is told that it was `selected`. The same leaf may still come out
    twice (a tree of one node has no other).

    Args:
        tree: the trees, `[B, N]`.
        c_uct: weight of exploration, at least 0.
        leaves: paths per tree, `L`.
        widening_factor: `k_w`, above 0; 1 and exponent 0 keep one reaction a response.
        widening_exponent: `alpha_w`, in [0, 1].
        active: `[B]` which trees take part; default all.
        rule: the score of a response.
        donate: give `tree` up, so that its memory is written in place.

    Returns:
        The trees with the pending visits added, and the selected nodes, `[B, L]`; `NO_NODE` for
        trees that take no part.

    References:
        docs/algorithm.md, "The tree", selection.
    """
    if active is None:
        active = np.ones(tree.parent.shape[0], bool)
    require_per_tree(tree, ndim=1, active=active)
    return _select(
        tree,
        c_uct,
        widening_factor,
        widening_exponent,
        active,
        leaves=leaves,
        rule=rule,
        donate=donate,
    )


def add_children(
    tree: Tree,
    parents: ArrayLike,
    terminal: ArrayLike | None = None,
    *,
    prior: ArrayLike | None = None,
    reward: ArrayLike | None = None,
    donate: bool = False,
) -> tuple[Tree, jax.Array]:
    """Add up to `K` nodes to every tree, in the given order.

    Args:
        tree: the trees, `[B, N]`.
        parents: `[B, K]` the parent of each new node; `NO_NODE` where there is none to add.
        terminal: `[B, K]` whether the dialogue is over at the new node; default False.
        prior: `[B, K]` log-likelihood per token of each new response under the policy; nan, the
            default, where it is not known.
        reward: `[B, K]` reward earned on arriving at each new decision node; default 0. Responses
            earn nothing, whatever is given.
        donate: give `tree` up, so that its memory is written in place.

    Returns:
        The trees, and the new nodes' indices, `[B, K]`. `NO_NODE` where nothing was to be added
        and where the tree or the parent's child slots were full.
    """
    require_per_tree(tree, parents=parents)
    shape = jnp.shape(parents)
    if terminal is None:
        terminal = np.zeros(shape, bool)
    if prior is None:
        prior = np.full(shape, np.nan, tree.prior.dtype)
    if reward is None:
        reward = np.zeros(shape, tree.reward.dtype)
    require_same_shape(parents=parents, terminal=terminal, prior=prior, reward=reward)
    return _add(tree, parents, terminal, prior, reward, donate=donate)


def backpropagate(
    tree: Tree,
    leaves: ArrayLike,
    returns: ArrayLike,
    *,
    gamma: ArrayLike = 1.0,
    selected: ArrayLike | None = None,
    backup: Backup = "mean",
    donate: bool = False,
) -> Tree:
    """Send returns from nodes up to the root: `N += 1`, `W += return` at every node of the path.

    On its way up a return `G` changes with what lies between the nodes: `G + reward(s)` passes from
    a decision `s` to the response before it, `gamma * G` from a response to the decision before it.
    The `K` returns of a tree are added in order, so the sums do not depend on the batch.

    Selection goes by the `value` of each node that was passed. With the `mean` backup that is
    `W / N`; with `max` it is, from the leaves up, over children that have visits,

        value(s) = max over responses a of  gamma * value(a)                          decisions
        value(a) = sum over reactions s of  N(s) * (reward(s) + value(s)) / sum N(s)  responses

    and `W / N` for a node none of whose children has a visit. The policy may choose, so a decision
    is worth its best response; the user's reactions are chance, so a response is worth their mean.
    gamma is above 0 and rounding is monotone, so discounting before the maximum or after it is the
    same to the last bit. `N` and `W` do not depend on the backup; one tree keeps to one backup.

    Args:
        tree: the trees, `[B, N]`.
        leaves: `[B, K]` where each return was obtained; `NO_NODE` entries are skipped.
        returns: `[B, K]` the returns; nan (the outcome could not be read) leaves `N` and `W` as
            they are and is counted in `unread`.
        gamma: discount a policy turn, in (0, 1], applied when a return passes from a response up
            to the decision before it.
        selected: `[B, L]` the leaves of `uct_select` whose pending visits end here; `NO_NODE`
            entries are skipped.
        backup: what the value of a node is made of.
        donate: give `tree` up, so that its memory is written in place.

    References:
        docs/algorithm.md, "The tree", back-propagation.
    """
    require_per_tree(tree, leaves=leaves, returns=returns)
    require_same_shape(leaves=leaves, returns=returns)
    if selected is None:
        selected = np.zeros((jnp.shape(leaves)[0], 0), np.int32)
    require_per_tree(tree, selected=selected)
    return _send_up(tree, leaves, returns, selected, gamma, backup=backup, donate=donate)[0]


def _select_batch(
    tree: Tree,
    c_uct: ArrayLike,
    factor: ArrayLike,
    exponent: ArrayLike,
    active: ArrayLike,
    *,
    leaves: int,
    rule: SelectionRule,
) -> tuple[Tree, jax.Array]:
    dtype = tree.value.dtype
    respond = jax.vmap(partial(_best_response, c_uct=jnp.asarray(c_uct, dtype), rule=rule))
    react = jax.vmap(
        partial(
            _next_reaction,
            factor=jnp.asarray(factor, dtype),
            exponent=jnp.asarray(exponent, dtype),
        )
    )
    active = jnp.asarray(active)
    root = jnp.full(active.shape, Tree.ROOT, jnp.int32)

    def turn(walk: tuple) -> tuple:
        """From a decision to a response to the reaction; stays where the walk ends."""
        node, going, pending = walk
        for choose in (respond, react):
            child = choose(tree, pending, node)
            going &= child != Tree.NO_NODE
            pending = _add_at(pending, child, when=going)
            node = jnp.where(going, child, node)
        return node, going, pending

    def next_path(pending: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        walk = (root, active, _add_at(pending, root, when=active))
        leaf, _going, pending = lax.while_loop(lambda walk: jnp.any(walk[1]), turn, walk)
        return pending, jnp.where(active, leaf, Tree.NO_NODE)

    with jax.named_scope("uct_select"):
        pending, selected = lax.scan(next_path, tree.pending, None, length=leaves)
    return dataclasses.replace(tree, pending=pending), selected.T


def _add_at(pending: jax.Array, node: jax.Array, *, when: jax.Array) -> jax.Array:
    """`pending[B, N]` with the path's visit at `node[B]` of the trees `when[B]`.

    A node has it on arrival, so `_tried` leaves it out. Were it given on leaving, to a node that
    was known before its children were read, nothing would order that write after these reads, and
    XLA would copy `pending` at every step.
    """
    rows = jnp.arange(node.size)
    return pending.at[rows, or_nowhere(node, pending, when=when)].add(1, mode="drop")


def _tried(tree: Tree, pending: jax.Array, node: jax.Array) -> jax.Array:
    """`N` of the node that the walk is at, without the walk itself. Un-batched."""
    return tree.visits[node] + tree.unread[node] + pending[node] - 1


def _best_response(
    tree: Tree, pending: jax.Array, node: jax.Array, *, c_uct: jax.Array, rule: SelectionRule
) -> jax.Array:
    """The response taken at the decision `node`; `NO_NODE` if the walk ends there. Un-batched."""
    known, at = _children(tree, node)
    responses = Responses(
        known=known,
        value=tree.value[at],
        returns=tree.visits[at],
        visits=tree.visits[at] + pending[at] + tree.unread[at],
        prior=tree.prior[at],
        total=jnp.maximum(_tried(tree, pending, node), 1).astype(tree.value.dtype),
        # A divisor of at least one: without a return the sum is 0.
        mean=tree.value_sum[node] / jnp.maximum(tree.visits[node], 1),
    )
    best = jnp.argmax(jnp.where(known, rule(responses, c_uct), -jnp.inf))
    stop = tree.terminal[node] | (tree.num_children[node] == 0)
    return jnp.where(stop, Tree.NO_NODE, at[best])


def _next_reaction(
    tree: Tree, pending: jax.Array, node: jax.Array, *, factor: jax.Array, exponent: jax.Array
) -> jax.Array:
    """The reaction taken at the response `node`; `NO_NODE` if the walk ends there. Un-batched."""
    known, at = _children(tree, node)
    tried = tree.visits[at] + pending[at] + tree.unread[at]
    least = jnp.argmin(jnp.where(known, tried, jnp.iinfo(tried.dtype).max))
    total = _tried(tree, pending, node).astype(factor.dtype)
    limit = jnp.ceil(factor * total**exponent * (1 - _CEIL_SLACK))
    count = tree.num_children[node]
    stop = tree.terminal[node] | (count == 0) | (count < jnp.minimum(limit, tree.width))
    return jnp.where(stop, Tree.NO_NODE, at[least])


def _children(tree: Tree, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which child slots `[W]` of `node` are filled, and by whom; the root where empty."""
    known = jnp.arange(tree.width) < tree.num_children[node]
    return known, jnp.where(known, tree.children[node], Tree.ROOT)


def _add_children_one(
    tree: Tree,
    parents: jax.Array,
    terminal: jax.Array,
    prior: jax.Array,
    reward: jax.Array,
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

    new = or_nowhere(index, tree.parent, when=fits)
    into = or_nowhere(at, tree.parent, when=fits)
    response = tree.kind[at] == Tree.DECISION
    kind = jnp.where(response, Tree.RESPONSE, Tree.DECISION)
    grown = dataclasses.replace(
        tree,
        parent=tree.parent.at[new].set(at, mode="drop"),
        kind=tree.kind.at[new].set(kind, mode="drop"),
        depth=tree.depth.at[new].set(tree.depth[at] + 1, mode="drop"),
        num_children=tree.num_children.at[into].add(1, mode="drop"),
        children=tree.children.at[into, slot].set(index, mode="drop"),
        prior=tree.prior.at[new].set(prior, mode="drop"),
        reward=tree.reward.at[new].set(jnp.where(response, 0, reward), mode="drop"),
        terminal=tree.terminal.at[new].set(terminal, mode="drop"),
        num_nodes=tree.num_nodes + jnp.sum(fits, dtype=jnp.int32),
    )
    return grown, jnp.where(fits, index, Tree.NO_NODE)


def _add_children_batch(
    tree: Tree, parents: ArrayLike, terminal: ArrayLike, prior: ArrayLike, reward: ArrayLike
) -> tuple[Tree, jax.Array]:
    with jax.named_scope("add_children"):
        return jax.vmap(_add_children_one)(
            tree,
            jnp.asarray(parents, jnp.int32),
            jnp.asarray(terminal),
            jnp.asarray(prior, tree.prior.dtype),
            jnp.asarray(reward, tree.reward.dtype),
        )


_select = jitted(_select_batch, changes=("pending",), static=("leaves", "rule"))
_add = jitted(
    _add_children_batch,
    changes=(
        "parent",
        "kind",
        "depth",
        "num_children",
        "children",
        "prior",
        "reward",
        "terminal",
        "num_nodes",
    ),
)
_send_up = jitted(
    send_up, changes=("visits", "unread", "value_sum", "value", "pending"), static=("backup",)
)
