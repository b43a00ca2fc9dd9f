"""The host's side of a growing tree: the text of each node, and its participants.

The arrays of `ixjax.search.tree` hold counts and values, a node table the text. `finish` joins both
into the records that are saved.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import Participant, Speaker, User, UserParticipant
from ixjax.generation.turns import SILENCE
from ixjax.search.tree import FinishedTree, Tree, TreeNode, dialogue_along

COUNTS = (
    "duplicates",
    "collisions",
    "silent",
    "policy_tokens",
    "simulator_tokens",
    "context_hits",
    "context_misses",
)

Participants = tuple[Participant, UserParticipant]


def policy_turns(dialogue: Dialogue) -> int:
    """Return the number of the policy's turns in a dialogue."""
    return sum(turn.role == "policy" for turn in dialogue.turns)


class NodeTable:
    """Nodes of one tree without their statistics, its participants, and its counts.

    Args:
        root: the dialogue up to the root.
        policy: speaks at decision nodes.
        simulator: speaks at response nodes.

    Attributes:
        nodes: by id.
        counts: of the finished tree's account.
        iteration: the present one, by which the oldest participants are found.
    """

    def __init__(self, root: Dialogue, policy: Speaker, simulator: User):
        self.root, self._speakers = root, (policy, simulator)
        self.nodes: list[TreeNode] = []
        self.counts: Counter[str] = Counter()
        self.iteration = 0
        self._held: dict[int, Participants] = {}
        self._used: dict[int, int] = {}  # last iteration by node

    def add(self, node: TreeNode) -> None:
        """Add a node; nodes must come in the order of their ids."""
        if node.id != len(self.nodes):
            raise RuntimeError(
                f"node {node.id} was added to the tree; expected {len(self.nodes)} next"
            )
        self.nodes.append(node)

    def depth_below(self, parent: int) -> int:
        """Return the depth of a child of `parent`."""
        return self.nodes[parent].depth + 1

    def turns(self, node: int) -> int:
        """Return the policy turns in the dialogue up to a node."""
        return policy_turns(self.root) + (self.nodes[node].depth + 1) // 2

    def reactions(self, response: int) -> int:
        """Return the number of reactions to a response."""
        return sum(node.parent == response for node in self.nodes[response + 1 :])

    def count(self, speaker: str, said: Utterance) -> None:
        """Count a response of the `policy` or reaction of the `simulator` that becomes a node."""
        self.spend(speaker, [said])
        self.counts["silent"] += said.text in ("", SILENCE) and not said.ended

    def spend(self, speaker: str, said: Iterable[Utterance]) -> None:
        """Count the sampled tokens of turns of the `policy` or `simulator`."""
        self.counts[f"{speaker}_tokens"] += sum(turn.num_tokens for turn in said)

    @property
    def tokens(self) -> int:
        """Return the tokens sampled for this tree."""
        return self.counts["policy_tokens"] + self.counts["simulator_tokens"]

    def hold(self, node: int, participants: Participants) -> None:
        """Keep the participants of a node's dialogue, to continue from."""
        self._held[node], self._used[node] = participants, self.iteration

    def participants(self, node: int) -> Participants:
        """Return the participants of a node's dialogue; begin them again if they were closed."""
        path = self._path(node)
        near = next(at for at in path if at in self._held)
        self.counts["context_hits" if near == node else "context_misses"] += 1
        self._used[near] = self.iteration
        if near != node:
            dialogue = dialogue_along(self.root, [self.nodes[i] for i in path[-2::-1]])
            policy, user = self._held[near]
            self.hold(
                node,
                (
                    self._speakers[0].begin(dialogue, near=policy),
                    self._speakers[1].begin(dialogue, near=user),
                ),
            )
        return self._held[node]

    def close_oldest(self, most: int) -> None:
        """Close the least recently used participants until `most` nodes have some.

        The choice depends only on the tree, so a tree does not depend on the other trees.
        """
        while len(self._held) > most:
            others = (node for node in self._held if node != Tree.ROOT)
            self._close(min(others, key=lambda node: (self._used[node], node)))

    def close(self) -> None:
        """Close all participants."""
        for node in list(self._held):
            self._close(node)

    def _close(self, node: int) -> None:
        for participant in self._held.pop(node):
            participant.close()

    def _path(self, node: int) -> list[int]:
        """Return the ids from a node up to the root."""
        nodes = [node]
        while nodes[-1] != Tree.ROOT:
            nodes.append(self.nodes[nodes[-1]].parent)
        return nodes

    def finish(self, statistics: Mapping[str, np.ndarray], *, scenario: str) -> FinishedTree:
        """Return the records of the tree.

        Args:
            statistics: `[N]` visits, value_sum and unread.
            scenario: its name.
        """
        nodes = tuple(
            dataclasses.replace(
                node,
                visits=int(statistics["visits"][node.id]),
                value_sum=float(statistics["value_sum"][node.id]),
                unread=int(statistics["unread"][node.id]),
            )
            for node in self.nodes
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
