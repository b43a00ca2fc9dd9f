"""Trees that grow side by side, each at its own pace: their arrays, and what was said in them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np

from ixjax.dialogue.types import Dialogue
from ixjax.generation.turns import words
from ixjax.search.config import SearchConfig
from ixjax.search.expansion import Expansion, Sample
from ixjax.search.kept import KeptContexts
from ixjax.search.ledger import Entry, Ledger
from ixjax.search.planting import Planting
from ixjax.search.reuse import clear, restore, statistics
from ixjax.search.talk import Talk
from ixjax.search.tree import FinishedTree, Tree
from ixjax.search.uct import add_children, backpropagate, uct_select


@dataclasses.dataclass(eq=False)
class Growing:
    """A tree that grows.

    number: of its condition.
    slot: of the arrays.
    task: what is played for it now.
    known: what was searched before.
    iterations: how many are over.
    """

    number: int
    slot: int
    ledger: Ledger
    task: Planting | Expansion
    known: FinishedTree | None = None
    iterations: int = 0


class Forest:
    """As many trees as `config.trees`, in arrays of one size.

    Args:
        talk: where their games are played.
        config: budget and constants.
        scenario: its name.
        nodes: the most that a tree can have; default, what the budget allows.

    Attributes:
        finished: trees that are done, by the number of their condition, to be taken from here.
    """

    def __init__(
        self, talk: Talk, config: SearchConfig, scenario: str, *, nodes: int | None = None
    ):
        self._talk, self._config, self._scenario = talk, config, scenario
        width = max(config.width, config.most_reactions)
        self._arrays = Tree.create(config.trees, nodes or config.nodes, width)
        self._free = list(range(config.trees))[::-1]
        self._growing: list[Growing] = []
        self.finished: dict[int, FinishedTree] = {}

    @property
    def room(self) -> bool:
        """Whether another tree can be planted."""
        return bool(self._free)

    def plant(self, number: int, root: Dialogue | FinishedTree) -> Growing:
        """A tree for a condition, whose task is to be begun."""
        slot = self._free.pop()
        kept = KeptContexts(slot * self._config.kept, self._config.kept)
        known = root if isinstance(root, FinishedTree) else None
        ledger = Ledger(root.root if isinstance(root, FinishedTree) else root, kept)
        task = Planting(self._talk, ledger)
        self._growing.append(Growing(number, slot, ledger, task, known))
        return self._growing[-1]

    def grow(self) -> list[Growing]:
        """Let trees whose task is done go on; those whose next task is to be begun."""
        to_begin: list[Growing] = []
        while ready := [tree for tree in self._growing if tree.task.done]:
            self._take_in(ready)
            going_on: list[Growing] = []
            stopping: list[Growing] = []
            for tree in ready:
                (stopping if self._stops(tree) else going_on).append(tree)
            self._finish(stopping)
            self._select(going_on)
            # One whose leaves are all terminal has nothing to play: it goes on at once.
            to_begin += [tree for tree in going_on if not tree.task.done]
        return to_begin

    def _take_in(self, ready: Sequence[Growing]) -> None:
        """What was said for these trees, and what it earned, into ledgers and arrays."""
        over = np.zeros(self._config.trees, bool)
        expanded = []
        for tree in ready:
            if isinstance(tree.task, Expansion):
                expanded.append(tree)
                tree.iterations += 1
                continue
            over[tree.slot] = tree.ledger.entries[Tree.ROOT].terminal
            if tree.known is not None:
                self._restore(tree, tree.known)
        if over.any():
            terminal = self._arrays.terminal
            terminal = terminal.at[:, Tree.ROOT].set(terminal[:, Tree.ROOT] | over)
            self._arrays = dataclasses.replace(self._arrays, terminal=terminal)
        if expanded:
            self._send_up(expanded, self._add(expanded))

    def _restore(self, tree: Growing, known: FinishedTree) -> None:
        gamma, backup = self._config.gamma, self._config.backup
        self._arrays = restore(self._arrays, tree.slot, known, gamma=gamma, backup=backup)
        tree.ledger.restore(known)

    def _add(self, trees: Sequence[Growing]) -> dict[tuple[int, int], int]:
        """New responses and reactions; the reactions' ids by slot and number of the sample."""
        samples = [(tree, sample) for tree in trees for sample in _samples(tree)]
        ids = self._add_nodes([(t, s, s.leaf) for t, s in samples if s.fresh], reactions=False)
        for tree, sample in samples:
            if sample.fresh:
                _enter_response(tree.ledger, ids[tree.slot, sample.number], sample)
        parents = [
            (t, s, s.leaf if s.widening else ids[t.slot, (s.response_of or s).number])
            for t, s in samples
            if s.reaction is not None
        ]
        found = self._add_nodes(parents, reactions=True)
        for tree, sample, parent in parents:
            reward = self._reward(sample)
            _enter_reaction(tree.ledger, found[tree.slot, sample.number], parent, sample, reward)
        return found

    def _reward(self, sample: Sample) -> float:
        assert sample.reaction is not None
        return self._talk.reaction_reward(sample.reaction)

    def _add_nodes(
        self, children: Sequence[tuple[Growing, Sample, int]], *, reactions: bool
    ) -> dict[tuple[int, int], int]:
        """A node for each sample below a parent; its id by slot and number of the sample."""
        shape = (self._config.trees, self._config.samples)
        parents = np.full(shape, Tree.NO_NODE, np.int32)
        terminal, reward = np.zeros(shape, bool), np.zeros(shape, np.float32)
        prior = np.full(shape, np.nan, np.float32)
        for tree, sample, parent in children:
            at = tree.slot, sample.number
            parents[at] = parent
            if reactions:
                terminal[at], reward[at] = sample.over, self._reward(sample)
            elif sample.response is not None and sample.response.mean_logprob is not None:
                prior[at] = sample.response.mean_logprob
        self._arrays, ids = add_children(
            self._arrays, parents, terminal, prior=prior, reward=reward, donate=True
        )
        ids = np.asarray(ids)
        return {(t.slot, s.number): int(ids[t.slot, s.number]) for t, s, _ in children}

    def _send_up(self, trees: Sequence[Growing], reached: dict[tuple[int, int], int]) -> None:
        """Returns from the reactions that were reached, and from leaves that were terminal."""
        config = self._config
        shape = (config.trees, config.samples, config.rollouts)
        nodes, returns = np.full(shape, Tree.NO_NODE, np.int32), np.full(shape, np.nan)
        leaves = np.full((config.trees, config.leaves), Tree.NO_NODE, np.int32)
        ends, outcomes = leaves.copy(), np.full(leaves.shape, np.nan)
        for tree in trees:
            for sample in _samples(tree):
                at = tree.slot, sample.number
                if at in reached:
                    nodes[at], returns[at] = reached[at], sample.returns
            selected = tree.task.leaves if isinstance(tree.task, Expansion) else []
            for i, leaf in enumerate(selected):
                leaves[tree.slot, i] = leaf
                # A dialogue that is over has its outcome sent up again: nothing else can come.
                if tree.ledger.entries[leaf].terminal:
                    ends[tree.slot, i] = leaf
                    outcomes[tree.slot, i] = tree.ledger.entries[leaf].outcome
        self._arrays = backpropagate(
            self._arrays,
            np.concatenate([nodes.reshape(config.trees, -1), ends], axis=1),
            np.concatenate([returns.reshape(config.trees, -1), outcomes], axis=1),
            gamma=config.gamma,
            selected=leaves,
            backup=config.backup,
            donate=True,
        )

    def _select(self, trees: Sequence[Growing]) -> None:
        """The next leaves of these trees, and the tasks to expand them."""
        if not trees:
            return
        config = self._config
        active = np.isin(np.arange(config.trees), [tree.slot for tree in trees])
        self._arrays, selected = uct_select(
            self._arrays,
            config.c_uct,
            leaves=config.leaves,
            widening_factor=config.widening_factor,
            widening_exponent=config.widening_exponent,
            active=active,
            rule=config.rule,
            donate=True,
        )
        leaves = np.asarray(selected)
        for tree in trees:
            chosen = leaves[tree.slot].tolist()
            tree.task = Expansion(self._talk, tree.ledger, chosen, tree.iterations)

    def _stops(self, tree: Growing) -> bool:
        """Whether its budget is spent, or its root's responses are in a settled order."""
        config, size = self._config, len(tree.ledger.entries)
        if tree.iterations >= config.iterations or size + config.growth > self._arrays.capacity:
            return True
        if not tree.iterations:
            return False
        spent = 0 < config.max_tokens <= tree.ledger.tokens
        return spent or (config.stop_gap > 0 and self._settled(tree))

    def _settled(self, tree: Growing) -> bool:
        """Whether neighbours in the order of the root's responses are `stop_gap` errors apart.

        A mean of N returns in [0, 1] has a standard error of 1 / (2 sqrt N) at the most. One
        response alone is in no order.
        """
        found = jax.device_get(statistics(self._arrays, tree.slot))
        visits, value_sum = found["visits"], found["value_sum"]
        responses = [i for i, e in enumerate(tree.ledger.entries) if e.parent == Tree.ROOT]
        means = sorted((value_sum[i] / visits[i], visits[i]) for i in responses if visits[i])
        if len(means) < max(2, len(responses)):
            return False
        gaps = [
            (high - low) / math.hypot(0.5 / math.sqrt(n), 0.5 / math.sqrt(m))
            for (low, n), (high, m) in itertools.pairwise(means)
        ]
        return all(gap >= self._config.stop_gap for gap in gaps)

    def _finish(self, trees: Sequence[Growing]) -> None:
        """Records of these trees; their slots are free."""
        if not trees:
            return
        found = jax.device_get([statistics(self._arrays, tree.slot) for tree in trees])
        for tree, counted in zip(trees, found, strict=True):
            self.finished[tree.number] = tree.ledger.finish(counted, scenario=self._scenario)
            self._free.append(tree.slot)
        slots = {tree.slot for tree in trees}
        self._growing = [tree for tree in self._growing if tree.slot not in slots]
        which = np.isin(np.arange(self._config.trees), list(slots))
        self._arrays = clear(self._arrays, which, donate=True)


def _samples(tree: Growing) -> list[Sample]:
    return tree.task.samples if isinstance(tree.task, Expansion) else []


def _enter_response(ledger: Ledger, node: int, sample: Sample) -> None:
    assert sample.response is not None
    entry = Entry(
        kind="response",
        parent=sample.leaf,
        text=words(sample.response),
        turns=sample.turns + 1,
        context=sample.response_context,
        multiplicity=sample.multiplicity,
        truncated=sample.response.truncated,
        num_tokens=sample.response.num_tokens,
        mean_logprob=sample.response.mean_logprob,
    )
    ledger.add(node, entry)
    ledger.counts["duplicates"] += entry.multiplicity - 1


def _enter_reaction(ledger: Ledger, node: int, parent: int, sample: Sample, reward: float) -> None:
    said = sample.reaction
    assert said is not None
    entry = Entry(
        kind="decision",
        parent=parent,
        text=said.text if said.ended else words(said),
        turns=sample.turns + 1,
        context=sample.reaction_context,
        terminal=sample.over,
        outcome=sample.outcome,
        truncated=said.truncated,
        num_tokens=said.num_tokens,
        mean_logprob=said.mean_logprob,
        reward=reward,
    )
    ledger.add(node, entry)
