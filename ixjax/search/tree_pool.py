"""A pool of growing trees in one struct of arrays.

Each tree has a slot of the arrays. Its operations are effects (`ixjax.generation.driver`): the
driver groups all trees that wait for the same operation, and one jitted call serves them.

Axes: B slots, N nodes, K new nodes or returns of a tree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from ixjax.generation import Effect, Task, wait
from ixjax.generation.driver import Kind
from ixjax.search.config import SearchConfig
from ixjax.search.reuse import clear, restore, statistics
from ixjax.search.selection import RULES, SelectionRule
from ixjax.search.tree import FinishedTree, Tree
from ixjax.search.uct import add_children, backpropagate, uct_select


@dataclasses.dataclass(frozen=True)
class NewNode:
    """A node to add.

    parent: its parent's id.
    terminal: whether the dialogue is over there.
    prior: of a response, log-likelihood per token; nan if unknown.
    reward: of a reaction, its weighted reward.
    """

    parent: int
    terminal: bool = False
    prior: float = np.nan
    reward: float = 0.0


class TreePool:
    """Arrays for `config.trees` trees.

    Args:
        config: budget and constants.
        nodes: most nodes of a tree, N; default by the budget.
        rule: scores responses in selection; default the rule that `config` names.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        nodes: int | None = None,
        rule: SelectionRule | None = None,
    ):
        self._config, self._rule = config, rule or RULES[config.rule]
        width = max(config.width, config.most_reactions)
        self._arrays = Tree.create(config.trees, nodes or config.nodes, width)
        self._free = list(range(config.trees))[::-1]
        self._used: set[int] = set()  # slots whose last tree is still in the arrays

    @property
    def capacity(self) -> int:
        """Return N."""
        return self._arrays.capacity

    @property
    def has_room(self) -> bool:
        """Return whether a slot is free."""
        return bool(self._free)

    def acquire(self) -> Task[int]:
        """Wait for a slot; return it with an unvisited root."""
        return (yield from wait(_Acquire(self)))

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._used.add(slot)
        self._free.append(slot)

    def root(self, slot: int, *, terminal: bool, known: FinishedTree | None) -> Task[None]:
        """Mark a root whose dialogue is over, and restore a known tree into the slot."""
        if terminal or known is not None:
            yield from wait(_Root(self, slot, terminal, known))

    def select(self, slot: int) -> Task[list[int]]:
        """Return the `leaves` nodes to expand next; see `uct_select`."""
        return (yield from wait(_Select(self, slot)))

    def add(self, slot: int, nodes: Sequence[NewNode]) -> Task[list[int]]:
        """Add nodes in order; return their ids. See `add_children`."""
        if not nodes:
            return []
        return (yield from wait(_Add(self, slot, nodes)))

    def backpropagate(
        self, slot: int, returns: Sequence[tuple[int, float]], *, selected: Sequence[int]
    ) -> Task[None]:
        """Send returns from nodes up to the root; see `backpropagate`.

        Args:
            slot: of the tree.
            returns: (node, return), in order.
            selected: the leaves from `select` whose pending visits end here.
        """
        yield from wait(_Backpropagate(self, slot, returns, selected))

    def statistics(self, slot: int) -> Task[dict[str, np.ndarray]]:
        """Return `[N]` depth, visits, value_sum and unread of the tree."""
        return (yield from wait(_Statistics(self, slot)))

    def _acquire(self, effects: Sequence[_Acquire]) -> Iterable[tuple[Effect, int]]:
        served = [(effect, self._free.pop()) for effect in effects[: len(self._free)]]
        stale = self._used & {slot for _, slot in served}
        if stale:
            which = np.isin(np.arange(self._config.trees), list(stale))
            self._arrays = clear(self._arrays, which, donate=True)
            self._used -= stale
        return served

    def _root(self, effects: Sequence[_Root]) -> Iterable[tuple[Effect, None]]:
        config, over = self._config, np.zeros(self._config.trees, bool)
        for effect in effects:
            over[effect.slot] = effect.terminal
            if effect.known is not None:
                self._arrays = restore(
                    self._arrays,
                    effect.slot,
                    effect.known,
                    gamma=config.gamma,
                    backup=config.backup,
                )
        if over.any():
            terminal = self._arrays.terminal
            terminal = terminal.at[:, Tree.ROOT].set(terminal[:, Tree.ROOT] | over)
            self._arrays = dataclasses.replace(self._arrays, terminal=terminal)
        return [(effect, None) for effect in effects]

    def _select(self, effects: Sequence[_Select]) -> Iterable[tuple[Effect, list[int]]]:
        config = self._config
        active = np.isin(np.arange(config.trees), [effect.slot for effect in effects])
        self._arrays, selected = uct_select(
            self._arrays,
            config.c_uct,
            leaves=config.leaves,
            widening_factor=config.widening_factor,
            widening_exponent=config.widening_exponent,
            active=active,
            rule=self._rule,
            donate=True,
        )
        leaves = np.asarray(selected)
        return [(effect, leaves[effect.slot].tolist()) for effect in effects]

    def _add(self, effects: Sequence[_Add]) -> Iterable[tuple[Effect, list[int]]]:
        shape = (self._config.trees, self._config.samples)
        parents = np.full(shape, Tree.NO_NODE, np.int32)
        terminal, reward = np.zeros(shape, bool), np.zeros(shape, np.float32)
        prior = np.full(shape, np.nan, np.float32)
        for effect in effects:
            at = effect.slot, slice(len(effect.nodes))
            parents[at] = [node.parent for node in effect.nodes]
            terminal[at] = [node.terminal for node in effect.nodes]
            prior[at] = [node.prior for node in effect.nodes]
            reward[at] = [node.reward for node in effect.nodes]
        self._arrays, ids = add_children(
            self._arrays, parents, terminal, prior=prior, reward=reward, donate=True
        )
        found = np.asarray(ids)
        return [(effect, found[effect.slot, : len(effect.nodes)].tolist()) for effect in effects]

    def _backpropagate(self, effects: Sequence[_Backpropagate]) -> Iterable[tuple[Effect, None]]:
        config = self._config
        shape = (config.trees, config.samples * config.rollouts + config.leaves)
        nodes, returns = np.full(shape, Tree.NO_NODE, np.int32), np.full(shape, np.nan)
        leaves = np.full((config.trees, config.leaves), Tree.NO_NODE, np.int32)
        for effect in effects:
            leaves[effect.slot] = effect.selected
            for i, (node, value) in enumerate(effect.returns):
                nodes[effect.slot, i], returns[effect.slot, i] = node, value
        self._arrays = backpropagate(
            self._arrays,
            nodes,
            returns,
            gamma=config.gamma,
            selected=leaves,
            backup=config.backup,
            donate=True,
        )
        return [(effect, None) for effect in effects]

    def _statistics(
        self, effects: Sequence[_Statistics]
    ) -> Iterable[tuple[Effect, dict[str, np.ndarray]]]:
        found = jax.device_get([statistics(self._arrays, effect.slot) for effect in effects])
        return list(zip(effects, found, strict=True))


@dataclasses.dataclass(eq=False)
class _Operation(Effect):
    """An operation of one tree; one call serves all trees that wait for it."""

    pool: TreePool
    kind: ClassVar[Kind] = "trees"

    @property
    def group(self) -> Hashable:
        return (type(self), self.pool)

    @property
    def fills(self) -> int:
        return 1

    def serve(self, effects: Sequence[Any]) -> Iterable[tuple[Effect, Any]]:
        return _SERVE[type(self)](self.pool, effects)


@dataclasses.dataclass(eq=False)
class _Acquire(_Operation):
    @property
    def ready(self) -> bool:
        return self.pool.has_room


@dataclasses.dataclass(eq=False)
class _Root(_Operation):
    slot: int
    terminal: bool
    known: FinishedTree | None


@dataclasses.dataclass(eq=False)
class _Select(_Operation):
    slot: int


@dataclasses.dataclass(eq=False)
class _Add(_Operation):
    slot: int
    nodes: Sequence[NewNode]


@dataclasses.dataclass(eq=False)
class _Backpropagate(_Operation):
    slot: int
    returns: Sequence[tuple[int, float]]
    selected: Sequence[int]


@dataclasses.dataclass(eq=False)
class _Statistics(_Operation):
    slot: int


_SERVE = {
    _Acquire: TreePool._acquire,
    _Root: TreePool._root,
    _Select: TreePool._select,
    _Add: TreePool._add,
    _Backpropagate: TreePool._backpropagate,
    _Statistics: TreePool._statistics,
}
