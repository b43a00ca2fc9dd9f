"""A search tree of plain Python objects: what `ixjax.search.uct` must compute, written to be read.

One node is one object, one path is one list. No arrays, no jax, nothing shared with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(eq=False, repr=False)
class PlainNode:
    kind: str  # "decision" (the policy moves) or "response" (the user reacts)
    parent: PlainNode | None = None
    children: list[PlainNode] = field(default_factory=list)
    visits: int = 0  # returns that arrived
    pending: int = 0  # returns that are still out
    unread: int = 0  # returns that could not be read
    value_sum: float = 0.0
    terminal: bool = False

    @property
    def tried(self) -> int:
        return self.visits + self.pending + self.unread

    @property
    def path(self) -> list[PlainNode]:
        """From this node up to the root."""
        return [self] if self.parent is None else [self, *self.parent.path]

    def add(self, *, terminal: bool = False) -> PlainNode:
        kind = "response" if self.kind == "decision" else "decision"
        child = PlainNode(kind, parent=self, terminal=terminal)
        self.children.append(child)
        return child


def uct(parent: PlainNode, child: PlainNode, c_uct: float) -> float:
    if child.tried == 0:
        return math.inf
    mean = child.value_sum / child.visits if child.visits else 0.0
    return mean + c_uct * math.sqrt(math.log(max(parent.tried, 1)) / child.tried)


def select(
    root: PlainNode, *, c_uct: float, k_w: float = 1.0, alpha_w: float = 0.0, width: int = 10**9
) -> PlainNode:
    """The leaf; it and its ancestors carry one pending visit more afterwards.

    `width` is the most children that a node may have.
    """
    node = root
    while node.children and not node.terminal:
        if node.kind == "decision":
            scores = [uct(node, child, c_uct) for child in node.children]
            node = node.children[scores.index(max(scores))]
        elif len(node.children) < min(width, math.ceil(k_w * node.tried**alpha_w)):
            break  # a new reaction is to be sampled here
        else:
            counts = [child.tried for child in node.children]
            node = node.children[counts.index(min(counts))]
    for visited in node.path:
        visited.pending += 1
    return node


def backpropagate(leaf: PlainNode, value: float, *, gamma: float = 1.0) -> None:
    for node in leaf.path:
        if math.isnan(value):
            node.unread += 1
        else:
            node.visits += 1
            node.value_sum += value
        if node.kind == "response":
            value = gamma * value


def release(leaf: PlainNode) -> None:
    for node in leaf.path:
        node.pending -= 1
