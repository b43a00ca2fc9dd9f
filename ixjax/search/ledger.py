"""The host's side of a growing tree: the words by node id, and where their contexts lie.

The arrays of `ixjax.search.tree` hold what is counted; a ledger holds what is said. The two meet
again in `finish`, which makes the records that are saved.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation.turns import SILENCE
from ixjax.search.kept import KeptContexts, Stamp
from ixjax.search.tree import FinishedTree, NodeKind, Tree, TreeNode, dialogue_along

COUNTS = (
    "duplicates",
    "collisions",
    "silent",
    "policy_tokens",
    "simulator_tokens",
    "context_hits",
    "context_misses",
)


@dataclass(frozen=True)
class Entry:
    """What is known of one node besides its statistics."""

    kind: NodeKind
    """Who moves here."""
    parent: int
    """The parent's id; `Tree.NO_NODE` for the root."""
    text: str
    """What was said to get here."""
    turns: int
    """Policy turns in the dialogue up to here."""
    context: Stamp | None = None
    """When the contexts were made; None for a node that nothing is sampled at."""
    terminal: bool = False
    """Whether the dialogue is over."""
    outcome: float = math.nan
    """Engagement at a terminal node, nan when unreadable."""
    multiplicity: int = 1
    """Samples at the parent that had this text."""
    truncated: bool = False
    """Whether the text was cut at the token limit."""
    num_tokens: int = 0
    """Tokens that were sampled for the text."""
    mean_logprob: float | None = None
    """Log-probability a token of the text; None for a scripted speaker."""
    reward: float = 0.0
    """Shaping reward of the reaction that led here."""


@dataclass
class Ledger:
    """Entries of one tree by node id, the contexts that it keeps, and its counts."""

    root: Dialogue
    """The dialogue up to the root."""
    kept: KeptContexts
    """Contexts to come back to."""
    entries: list[Entry] = field(default_factory=list)
    reactions: Counter[int] = field(default_factory=Counter)
    """Reactions known by response id."""
    counts: Counter[str] = field(default_factory=Counter)
    """What the account of the finished tree adds up."""

    def add(self, node: int, entry: Entry) -> None:
        """Enters node `node`; nodes come in the order of their ids."""
        if node != len(self.entries):
            raise RuntimeError(f"node {node} was added to the tree, but {len(self.entries)} is due")
        self.entries.append(entry)
        if entry.kind == "decision" and node != Tree.ROOT:
            self.reactions[entry.parent] += 1

    def restore(self, known: FinishedTree) -> None:
        """Enters the nodes of a tree that was searched before, below the root's."""
        for node in known.nodes[1:]:
            turns = self.entries[node.parent].turns + (node.kind == "response")
            entry = Entry(
                kind=node.kind,
                parent=node.parent,
                text=node.text,
                turns=turns,
                terminal=node.terminal,
                outcome=math.nan if node.outcome is None else node.outcome,
                multiplicity=node.multiplicity,
                truncated=node.truncated,
                num_tokens=node.num_tokens,
                mean_logprob=node.mean_logprob,
                reward=node.reward,
            )
            self.add(node.id, entry)

    def count(self, speaker: str, said: Utterance) -> None:
        """A response or reaction of the tree's own, by `policy` or `simulator`."""
        self.spend(speaker, [said])
        self.counts["silent"] += said.text in ("", SILENCE) and not said.ended

    def spend(self, speaker: str, said: Iterable[Utterance]) -> None:
        """Tokens of turns that were sampled by `policy` or `simulator`."""
        self.counts[f"{speaker}_tokens"] += sum(turn.num_tokens for turn in said)

    def path(self, node: int) -> list[int]:
        """From a node up to the root."""
        nodes = [node]
        while nodes[-1] != Tree.ROOT:
            nodes.append(self.entries[nodes[-1]].parent)
        return nodes

    def dialogue_at(self, node: int) -> Dialogue:
        """The dialogue from its first turn to a node."""
        return dialogue_along(self.root, [self.entries[i] for i in self.path(node)[-2::-1]])

    def source(self, node: int, now: Stamp) -> tuple[int, Dialogue | None]:
        """Kept contexts to go on from at a node, and the dialogue to read where they are older."""
        for at in self.path(node):
            made = self.entries[at].context
            if made is not None and made in self.kept:
                self.counts["context_hits" if at == node else "context_misses"] += 1
                number = self.kept.use(made, now)
                return number, None if at == node else self.dialogue_at(node)
        raise RuntimeError("the root's contexts are not kept")

    @property
    def tokens(self) -> int:
        """Tokens sampled for this tree."""
        return self.counts["policy_tokens"] + self.counts["simulator_tokens"]

    def finish(self, statistics: Mapping[str, np.ndarray], *, scenario: str) -> FinishedTree:
        """The records of the tree.

        Args:
            statistics: `[N]` depth, visits, value_sum and unread.
            scenario: its name.
        """
        nodes = tuple(
            TreeNode(
                id=node,
                parent=entry.parent,
                kind=entry.kind,
                text=entry.text,
                depth=int(statistics["depth"][node]),
                visits=int(statistics["visits"][node]),
                value_sum=float(statistics["value_sum"][node]),
                unread=int(statistics["unread"][node]),
                terminal=entry.terminal,
                outcome=None if math.isnan(entry.outcome) else entry.outcome,
                multiplicity=entry.multiplicity,
                truncated=entry.truncated,
                num_tokens=entry.num_tokens,
                mean_logprob=entry.mean_logprob,
                reward=entry.reward,
            )
            for node, entry in enumerate(self.entries)
        )
        account = {
            "nodes": len(nodes),
            "simulations": nodes[Tree.ROOT].visits,
            "unreadable": nodes[Tree.ROOT].unread,
        }
        account |= {name: self.counts[name] for name in COUNTS}
        depths = Counter(node.depth // 2 for node in nodes if node.kind == "decision")
        account |= {f"decisions_at_{depth}": depths[depth] for depth in sorted(depths)}
        return FinishedTree(scenario, self.root, nodes, account)
