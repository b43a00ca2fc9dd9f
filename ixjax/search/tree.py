"""Search trees: arrays while they grow, records once they are finished.

During a search, many trees grow as one struct of arrays, `[trees, nodes]`, so selection and
back-propagation are a few vectorised operations and no node is a Python object. Texts are stored on
the host, by node id. A tree that is done becomes a `FinishedTree`: plain records that JSON, pair
extraction and reports read.

Two kinds of node alternate (docs/algorithm.md, "The tree"): at a *decision* node the policy moves,
at a *response* node the user reacts. The root is a decision node.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ixjax.dialogue.types import Dialogue
from ixjax.io import InputError

NodeKind = Literal["decision", "response"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tree:
    """The state of `B` search trees of at most `N` nodes with at most `W` children a node.

    Nodes are numbered in the order of their addition; an unused one has `parent == NO_NODE` and no
    children.

    Attributes:
        parent: `[B, N]` the parent's index; `NO_NODE` for the root.
        kind: `[B, N]` `DECISION` or `RESPONSE`.
        depth: `[B, N]` edges from the root; even for decisions, odd for responses.
        num_children: `[B, N]` number of filled slots in `children`.
        children: `[B, N, W]` indices of the children in the order of their addition.
        visits: `[B, N]` returns that arrived through the node.
        pending: `[B, N]` selected paths through the node whose returns have not arrived.
        unread: `[B, N]` unreadable returns through the node: they have no value, but the
            exploration term counts them.
        value_sum: `[B, N]` sum of the arrived returns, `W` in the formulas (not the axis).
        value: `[B, N]` the value that selection uses, from `backpropagate`: the mean `W / N` or the
            backed-up maximum; 0 without a return.
        prior: `[B, N]` log-likelihood per token of the node's text under its speaker; nan if
            unknown.
        reward: `[B, N]` reward earned on arriving at a decision node; 0 at responses.
        terminal: `[B, N]` whether the dialogue is over at the node.
        num_nodes: `[B]` nodes in use.
    """

    parent: jax.Array  # [B, N]
    kind: jax.Array  # [B, N]
    depth: jax.Array  # [B, N]
    num_children: jax.Array  # [B, N]
    children: jax.Array  # [B, N, W]
    visits: jax.Array  # [B, N]
    pending: jax.Array  # [B, N]
    unread: jax.Array  # [B, N]
    value_sum: jax.Array  # [B, N]
    value: jax.Array  # [B, N]
    prior: jax.Array  # [B, N]
    reward: jax.Array  # [B, N]
    terminal: jax.Array  # [B, N]
    num_nodes: jax.Array  # [B]

    ROOT: ClassVar[int] = 0
    NO_NODE: ClassVar[int] = -1
    DECISION: ClassVar[int] = 0
    RESPONSE: ClassVar[int] = 1

    @classmethod
    def create(
        cls, trees: int, nodes: int, width: int, *, value_dtype: DTypeLike = jnp.float32
    ) -> Tree:
        """Return trees of an unvisited root each.

        Args:
            trees: number of trees, `B`.
            nodes: most nodes of one tree, `N`, the root included.
            width: most children of one node, `W`.
            value_dtype: float32 or, with x64 enabled, float64.
        """
        if min(trees, nodes, width) < 1:
            raise ValueError(
                f"trees={trees}, nodes={nodes}, width={width}; expected 1 or more of each"
            )
        return _blank(trees, nodes, width, jnp.dtype(value_dtype))

    @property
    def capacity(self) -> int:
        """Return the most nodes of one tree, `N`."""
        return self.parent.shape[-1]

    @property
    def width(self) -> int:
        """Return the most children of one node, `W`."""
        return self.children.shape[-1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))  # one program, not one for each field
def _blank(trees: int, nodes: int, width: int, value_dtype: jnp.dtype) -> Tree:
    """See `Tree.create`. Every field is a separate array: a shared one could not be donated."""
    table = (trees, nodes)
    return Tree(
        parent=jnp.full(table, Tree.NO_NODE, jnp.int32),
        kind=jnp.full(table, Tree.DECISION, jnp.int32),
        depth=jnp.zeros(table, jnp.int32),
        num_children=jnp.zeros(table, jnp.int32),
        children=jnp.full((*table, width), Tree.NO_NODE, jnp.int32),
        visits=jnp.zeros(table, jnp.int32),
        pending=jnp.zeros(table, jnp.int32),
        unread=jnp.zeros(table, jnp.int32),
        value_sum=jnp.zeros(table, value_dtype),
        value=jnp.zeros(table, value_dtype),
        prior=jnp.full(table, jnp.nan, value_dtype),
        reward=jnp.zeros(table, value_dtype),
        terminal=jnp.zeros(table, bool),
        num_nodes=jnp.ones((trees,), jnp.int32),
    )


@dataclass(frozen=True)
class TreeNode:
    """One node of a finished tree."""

    id: int
    """Index in `FinishedTree.nodes`; 0 is the root."""
    parent: int
    """The parent's id; `Tree.NO_NODE` for the root."""
    kind: NodeKind
    """Who moves here: the policy at a decision, the user at a response."""
    text: str
    """The response or reaction that led here; "" at the root, or if the user left silently."""
    depth: int
    """Edges from the root."""
    visits: int
    """Returns that arrived through this node, `N`."""
    value_sum: float
    """Sum of these returns, `W`."""
    unread: int = 0
    """Returns through this node whose outcome could not be read."""
    terminal: bool = False
    """Whether the dialogue is over here."""
    outcome: float | None = None
    """The engagement read at a terminal node; None when unreadable or not terminal."""
    multiplicity: int = 1
    """Number of samples at the parent with this text."""
    truncated: bool = False
    """Whether the text was cut at the token limit."""
    num_tokens: int = 0
    """Tokens that were sampled for the text."""
    mean_logprob: float | None = None
    """Mean log-probability per token of the text; None for a scripted speaker."""
    reward: float = 0.0
    """Shaping reward of the reaction that led here, its weight included."""

    @property
    def value(self) -> float:
        """Return the mean return `Q = W / N`; nan without a visit."""
        return self.value_sum / self.visits if self.visits else math.nan


@dataclass(frozen=True)
class FinishedTree:
    """The finished search of one condition: texts, visits and returns."""

    scenario: str
    """Name of the scenario."""
    root: Dialogue
    """The dialogue up to the root, with the user's condition."""
    nodes: tuple[TreeNode, ...]
    """All nodes by id."""
    account: Mapping[str, int] = field(default_factory=dict)
    """Counts: nodes, simulations (returns that arrived), unreadable, duplicates (samples equal to
    a sibling), collisions (leaves selected twice at once), silent (empty utterances),
    policy_tokens, simulator_tokens, context_hits (expansions whose contexts were kept),
    context_misses (expansions whose contexts were read again from an ancestor's), and
    decisions_at_D (decision nodes, D policy turns below the root)."""

    @property
    def condition_id(self) -> str:
        """Return the id of the searched user condition."""
        return self.root.condition.id

    @functools.cached_property
    def _children(self) -> tuple[tuple[int, ...], ...]:
        lists: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            if node.parent != Tree.NO_NODE:
                lists[node.parent].append(node.id)
        return tuple(map(tuple, lists))

    def children(self, node: int) -> tuple[TreeNode, ...]:
        """Return the children of a node, in the order of their addition."""
        return tuple(self.nodes[child] for child in self._children[node])

    def value(self, node: int) -> float:
        """Return the mean return `Q` of a node; nan without a visit."""
        return self.nodes[node].value

    def dialogue_at(self, node: int) -> Dialogue:
        """Return the dialogue from its first turn to a node."""
        path: list[TreeNode] = []
        index = node
        while index != Tree.ROOT:
            path.append(self.nodes[index])
            index = self.nodes[index].parent
        return dialogue_along(self.root, path[::-1])

    def subtree(self, node: int) -> FinishedTree:
        """Return the tree whose root is a decision node of this one, with its statistics.

        Raises:
            ValueError: the node is a response.
        """
        if self.nodes[node].kind != "decision":
            raise ValueError(f"node {node} is a response; expected a decision as root")
        ids = {node: Tree.ROOT}
        for below in self.nodes[node + 1 :]:  # children come after their parents
            if below.parent in ids:
                ids[below.id] = len(ids)
        moved = [
            dataclasses.replace(
                self.nodes[old],
                id=new,
                parent=ids.get(self.nodes[old].parent, Tree.NO_NODE),
                depth=self.nodes[old].depth - self.nodes[node].depth,
            )
            for old, new in ids.items()
        ]
        moved[Tree.ROOT] = dataclasses.replace(moved[Tree.ROOT], text="", reward=0.0)
        return FinishedTree(self.scenario, self.dialogue_at(node), tuple(moved))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, a line of a file of `io.write_jsonl(..., schema=TREE_SCHEMA)`."""
        return {
            "condition_id": self.condition_id,
            "scenario": self.scenario,
            "root": self.root.to_json(),
            "nodes": [dataclasses.asdict(node) for node in self.nodes],
            "account": dict(self.account),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> FinishedTree:
        """Return the tree of a JSON object from `to_json`.

        Raises:
            InputError: a field is missing, or the nodes do not form one tree.
        """
        try:
            nodes = tuple(TreeNode(**node) for node in record["nodes"])
            tree = cls(
                scenario=record["scenario"],
                root=restored_dialogue(record["root"], record["condition_id"]),
                nodes=nodes,
                account=dict(record["account"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"not a search tree: {error}; expected the fields condition_id, scenario, root, "
                "nodes, account as `ixjax search` writes them"
            ) from error
        for index, node in enumerate(nodes):
            first = node.parent == Tree.NO_NODE
            if node.id != index or first != (index == 0) or node.parent >= index:
                raise InputError(
                    f"tree of condition {tree.condition_id!r}: node {index} has id {node.id} and "
                    f"parent {node.parent}; expected ids 0, 1, 2... and parents before children"
                )
        return tree


class Said(Protocol):
    """The part of a node that a dialogue needs."""

    @property
    def kind(self) -> NodeKind:
        """Return who moves at the node."""
        ...

    @property
    def text(self) -> str:
        """Return the text that led to the node; "" if there is none."""
        ...


def dialogue_along(root: Dialogue, path: Iterable[Said]) -> Dialogue:
    """Return the root's dialogue, extended by the nodes of a path that starts below the root."""
    dialogue = root
    for step in path:
        if step.text:
            dialogue = dialogue.said("policy" if step.kind == "response" else "user", step.text)
    return dialogue


def restored_dialogue(record: Mapping[str, Any], condition_id: str) -> Dialogue:
    """Return a dialogue from its JSON, with this condition id, which the JSON may lack."""
    dialogue = Dialogue.from_json(record)
    condition = dataclasses.replace(dialogue.condition, id=condition_id)
    return dataclasses.replace(dialogue, condition=condition)
