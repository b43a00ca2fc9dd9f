"""A search tree of plain Python objects: what `ixjax.search` must compute, written to be read.

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
    prior: float = math.nan  # log-likelihood per token; nan: not known
    reward: float = 0.0  # earned on arriving at a decision

    @property
    def tried(self) -> int:
        return self.visits + self.pending + self.unread

    @property
    def mean(self) -> float:
        return self.value_sum / self.visits if self.visits else 0.0

    @property
    def path(self) -> list[PlainNode]:
        """From this node up to the root."""
        return [self] if self.parent is None else [self, *self.parent.path]

    @property
    def subtree(self) -> list[PlainNode]:
        """This node and all below it."""
        return [self, *(node for child in self.children for node in child.subtree)]

    def add(self, *, terminal: bool = False) -> PlainNode:
        kind = "response" if self.kind == "decision" else "decision"
        child = PlainNode(kind, parent=self, terminal=terminal)
        self.children.append(child)
        return child


def mean_value(node: PlainNode, gamma: float) -> float:
    return node.mean


def max_value(node: PlainNode, gamma: float) -> float:
    """Decisions are worth their best response, responses the mean of what the user may say."""
    visited = [child for child in node.children if child.visits]
    if not visited:
        return node.mean
    values = [max_value(child, gamma) for child in visited]
    if node.kind == "decision":
        return gamma * max(values)
    pairs = list(zip(visited, values, strict=True))
    return sum(c.visits * (c.reward + value) for c, value in pairs) / sum(c.visits for c in visited)


VALUES = {"mean": mean_value, "max": max_value}


def uct(parent: PlainNode, values: list[float], c_uct: float) -> list[float]:
    return [
        math.inf
        if child.tried == 0
        else value + c_uct * math.sqrt(math.log(max(parent.tried, 1)) / child.tried)
        for child, value in zip(parent.children, values, strict=True)
    ]


def puct(parent: PlainNode, values: list[float], c_uct: float) -> list[float]:
    priors = [child.prior for child in parent.children]
    if any(math.isnan(prior) for prior in priors):
        priors = [0.0] * len(priors)
    weights = [math.exp(prior - max(priors)) for prior in priors]
    policy = [weight / sum(weights) for weight in weights]
    return [
        (value if child.visits else parent.mean)
        + c_uct * p * math.sqrt(max(parent.tried, 1)) / (1 + child.tried)
        for child, value, p in zip(parent.children, values, policy, strict=True)
    ]


RULES = {"uct": uct, "puct": puct}


def select(
    root: PlainNode,
    *,
    c_uct: float,
    k_w: float = 1.0,
    alpha_w: float = 0.0,
    width: int = 10**9,
    rule: str = "uct",
    backup: str = "mean",
    gamma: float = 1.0,
) -> PlainNode:
    """The leaf; it and its ancestors carry one pending visit more afterwards.

    `width` is the most children that a node may have.
    """
    node = root
    while node.children and not node.terminal:
        if node.kind == "decision":
            values = [VALUES[backup](child, gamma) for child in node.children]
            scores = RULES[rule](node, values, c_uct)
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
        value = gamma * value if node.kind == "response" else value + node.reward


def release(leaf: PlainNode) -> None:
    for node in leaf.path:
        node.pending -= 1


def rerooted(nodes: list[PlainNode], root: PlainNode) -> list[PlainNode]:
    """The nodes of the subtree under `root`, in the order in which `nodes` has them."""
    kept = set(map(id, root.subtree))
    root.parent = None
    return [node for node in nodes if id(node) in kept]
