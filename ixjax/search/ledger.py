"""The host's side of a growing tree: the words by node id, and where their contexts lie.

The arrays of `ixjax.search.tree` hold what is counted; a ledger holds what is said. The two meet
again in `finish`, which makes the records that are saved.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from ixjax.dialogue.types import Dialogue
from ixjax.search.tree import FinishedTree, NodeKind, Tree, TreeNode

NO_ROW = -1


@dataclass(frozen=True)
class Entry:
    """What is known of one node besides its statistics."""

    kind: NodeKind
    """Who moves here."""
    text: str
    """What was said to get here."""
    turns: int
    """Policy turns in the dialogue up to here."""
    row: int = NO_ROW
    """Row of the pools that holds the contexts; `NO_ROW` for a node that nothing is sampled at."""
    terminal: bool = False
    """Whether the dialogue is over."""
    outcome: float = math.nan
    """Engagement at a terminal node, nan when unreadable."""
    multiplicity: int = 1
    """Samples at the parent that had this text."""
    truncated: bool = False
    """Whether the text was cut at the token limit."""


@dataclass
class Ledger:
    """Entries of one tree by node id, its share of the pools' rows, and its counts."""

    root: Dialogue
    """The dialogue up to the root."""
    first_row: int
    """The pools' rows from here on belong to this tree."""
    active: bool = True
    """False for the tree that only fills up the last batch."""
    entries: list[Entry] = field(default_factory=list)
    reactions: Counter[int] = field(default_factory=Counter)
    """Reactions known by response id."""
    counts: Counter[str] = field(default_factory=Counter)
    """What the account of the finished tree adds up."""
    _rows_used: int = 0

    def new_row(self) -> int:
        """A row of the pools that nothing is stored in yet."""
        self._rows_used += 1
        return self.first_row + self._rows_used - 1

    def add(self, node: int, entry: Entry) -> None:
        """Enters node `node`; nodes come in the order of their ids."""
        if node != len(self.entries):
            raise RuntimeError(f"node {node} was added to the tree, but {len(self.entries)} is due")
        self.entries.append(entry)

    def finish(self, arrays: Tree, index: int, *, scenario: str) -> FinishedTree:
        """The records of tree `index`; `arrays` are on the host."""
        nodes = tuple(
            TreeNode(
                id=node,
                parent=int(arrays.parent[index, node]),
                kind=entry.kind,
                text=entry.text,
                depth=int(arrays.depth[index, node]),
                visits=int(arrays.visits[index, node]),
                value_sum=float(arrays.value_sum[index, node]),
                unread=int(arrays.unread[index, node]),
                terminal=entry.terminal,
                outcome=None if math.isnan(entry.outcome) else entry.outcome,
                multiplicity=entry.multiplicity,
                truncated=entry.truncated,
            )
            for node, entry in enumerate(self.entries)
        )
        account = {
            "nodes": len(nodes),
            "simulations": nodes[Tree.ROOT].visits,
            "unreadable": nodes[Tree.ROOT].unread,
        }
        names = ("duplicates", "collisions", "silent", "policy_tokens", "simulator_tokens")
        account |= {name: self.counts[name] for name in names}
        return FinishedTree(scenario, self.root, nodes, account)
