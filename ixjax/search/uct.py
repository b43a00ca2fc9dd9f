"""Select, expand, back-propagate: the tree arithmetic of i×MCTS, without any text.

The arithmetic of a node is written for one tree and vmapped over trees. The loops over levels are
over the whole batch and run until the deepest path ends: with a loop per tree, XLA would copy whole
trees in every step to freeze those that are done.

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

# `k * N**a` may be one bit above an exact integer, and ceil would then admit one reaction too many.
# float32 has seven digits, so this slack covers that bit and changes nothing else.
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
    """Select `leaves` nodes of every tree to expand next.

    At a decision node `s` the walk takes the response `a` with the highest score of the rule
    (`ixjax.search.selection`); ties go to the lowest index. In the score, `N` counts arrived,
    pending and unread visits, and `Q` is `tree.value`: `W / N` or its max backup.

    At a response node the walk takes the reaction with the fewest visits. If there are fewer than
    `ceil(k_w * N**alpha_w)` reactions, it ends at the response node, where a new reaction is to be
    sampled. The walk also ends at a decision node without children and at a terminal node.

    Each path adds one pending visit to its nodes, which counts in `N` and not in `W`, so later
    paths of the call differ. `backpropagate` removes it when the leaf is in `selected`. Paths may
    still end at the same leaf (a tree of one node has no other).

    Args:
        tree: the trees, `[B, N]`.
        c_uct: weight of exploration, 0 or more.
        leaves: paths per tree, `L`.
        widening_factor: `k_w`, above 0; 1 with exponent 0 gives one reaction per response.
        widening_exponent: `alpha_w`, in [0, 1].
        active: `[B]` bool, the trees to select in; default all.
        rule: the score of a response.
        donate: donate `tree`, so that its memory is written in place.

    Returns:
        The trees with the pending visits added, and the selected nodes, `[B, L]`; `NO_NODE` for
        inactive trees.

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
        parents: `[B, K]` the parent of each new node; `NO_NODE` for no node.
        terminal: `[B, K]` whether the dialogue is over at the new node; default False.
        prior: `[B, K]` log-likelihood per token of each new response under the policy; nan, the
            default, if unknown.
        reward: `[B, K]` reward earned on arriving at each new decision node; default 0. It is
            ignored for responses.
        donate: donate `tree`, so that its memory is written in place.

    Returns:
        The trees, and the new nodes' indices, `[B, K]`; `NO_NODE` for no node, and if the tree or
        the parent's child slots were full.
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

    A return `G` changes on its way up: a decision `s` passes `G + reward(s)` to the response before
    it, and a response passes `gamma * G` to the decision before it. The `K` returns of a tree are
    added in order, so the sums do not depend on the batch.

    The `value` of each passed node, which selection uses, is `W / N` with the `mean` backup. With
    `max` it is, from the leaves up, over children that have visits,

        value(s) = max over responses a of  gamma * value(a)                          decisions
        value(a) = sum over reactions s of  N(s) * (reward(s) + value(s)) / sum N(s)  responses

    and `W / N` for a node without visited children. The policy chooses, so the value of a decision
    is that of its best response; reactions are chance, so the value of a response is their mean.
    gamma is above 0 and rounding is monotone, so discounting before or after the maximum gives the
    same bits. `N` and `W` do not depend on the backup. Use one backup for all calls on a tree.

    Args:
        tree: the trees, `[B, N]`.
        leaves: `[B, K]` the node of each return; `NO_NODE` entries are skipped.
        returns: `[B, K]` the returns; nan (an unreadable outcome) leaves `N` and `W` unchanged and
            is counted in `unread`.
        gamma: discount per policy turn, in (0, 1], applied when a return passes from a response up
            to the decision before it.
        selected: `[B, L]` the leaves of `uct_select` whose pending visits end here; `NO_NODE`
            entries are skipped.
        backup: how values are computed.
        donate: donate `tree`, so that its memory is written in place.

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
        """Step from a decision to a response to a reaction; stay where the walk ends."""
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
    """Add the path's pending visit at `node[B]` of the trees `when[B]` to `pending[B, N]`.

    It is added on arrival at a node, so `_tried` subtracts it. If it were added on leaving, XLA
    could not order the write after the reads of the children, and would copy `pending` in every
    step.
    """
    rows = jnp.arange(node.size)
    return pending.at[rows, or_nowhere(node, pending, when=when)].add(1, mode="drop")


def _tried(tree: Tree, pending: jax.Array, node: jax.Array) -> jax.Array:
    """Return `N` of the walk's present node, without the walk's own visit. Un-batched."""
    return tree.visits[node] + tree.unread[node] + pending[node] - 1


def _best_response(
    tree: Tree, pending: jax.Array, node: jax.Array, *, c_uct: jax.Array, rule: SelectionRule
) -> jax.Array:
    """Return the best response at a decision; `NO_NODE` if the walk ends there. Un-batched."""
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
    """Return the next reaction at a response; `NO_NODE` if the walk ends there. Un-batched."""
    known, at = _children(tree, node)
    tried = tree.visits[at] + pending[at] + tree.unread[at]
    least = jnp.argmin(jnp.where(known, tried, jnp.iinfo(tried.dtype).max))
    total = _tried(tree, pending, node).astype(factor.dtype)
    limit = jnp.ceil(factor * total**exponent * (1 - _CEIL_SLACK))
    count = tree.num_children[node]
    stop = tree.terminal[node] | (count == 0) | (count < jnp.minimum(limit, tree.width))
    return jnp.where(stop, Tree.NO_NODE, at[least])


def _children(tree: Tree, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which child slots `[W]` are filled, and the child in each; the root if empty."""
    known = jnp.arange(tree.width) < tree.num_children[node]
    return known, jnp.where(known, tree.children[node], Tree.ROOT)


def _add_children_one(
    tree: Tree,
    parents: jax.Array,
    terminal: jax.Array,
    prior: jax.Array,
    reward: jax.Array,
) -> tuple[Tree, jax.Array]:
    """Add children to one tree, `parents[K]`; see `add_children`."""
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
