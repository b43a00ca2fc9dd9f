"""New nodes at a selected leaf: sampled turns with their returns; `add` adds them to the tree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.types import Utterance
from ixjax.generation import Task
from ixjax.generation.turns import words
from ixjax.search.node_table import NodeTable, Participants
from ixjax.search.tree import TreeNode
from ixjax.search.tree_pool import NewNode, TreePool


@dataclasses.dataclass(frozen=True)
class Response:
    """A new response at a leaf.

    said: the policy's turn.
    multiplicity: samples with this text.
    held: participants for later reactions; None if there are none.
    reactions: to it.
    """

    said: Utterance
    multiplicity: int
    held: Participants | None
    reactions: Sequence[Reaction]


@dataclasses.dataclass(frozen=True)
class Reaction:
    """A new reaction to a response.

    said: the user's turn.
    over: whether it is the dialogue's last turn.
    reward: its weighted reward.
    outcome: engagement if it is over; nan if it is unreadable.
    held: participants that continue; None if it is over.
    returns: `[rollouts]` discounted to the reaction; nan if unreadable.
    """

    said: Utterance
    over: bool
    reward: float
    outcome: float
    held: Participants | None
    returns: np.ndarray


@dataclasses.dataclass(frozen=True)
class Expansion:
    """New nodes at a leaf: responses with their reactions, or one more reaction to a response."""

    leaf: int
    responses: Sequence[Response] = ()
    reaction: Reaction | None = None


def add(
    pool: TreePool, table: NodeTable, slot: int, expansions: Sequence[Expansion]
) -> Task[list[tuple[int, float]]]:
    """Add new nodes to a tree; return (node of the reaction, return) for each return.

    Args:
        pool: of the tree's arrays.
        table: of the tree.
        slot: of the tree.
        expansions: of different leaves; their nodes are numbered in this order.
    """
    responses = [(e.leaf, response) for e in expansions for response in e.responses]
    ids = yield from pool.add(slot, [_new_response(*found) for found in responses])
    parents: dict[int, int] = {}  # of reactions, by the identity of their response
    for node, (leaf, response) in zip(ids, responses, strict=True):
        table.add(_response_node(node, leaf, response, table.depth_below(leaf)))
        table.counts["duplicates"] += response.multiplicity - 1
        parents[id(response)] = node
        if response.held is not None:
            table.hold(node, response.held)
    reactions = _in_order(expansions, parents)
    new = [NewNode(parent, r.over, reward=r.reward) for parent, r in reactions]
    ids = yield from pool.add(slot, new)
    returns: list[tuple[int, float]] = []
    for node, (parent, reaction) in zip(ids, reactions, strict=True):
        table.add(_reaction_node(node, parent, reaction, table.depth_below(parent)))
        if reaction.held is not None:
            table.hold(node, reaction.held)
        returns += [(node, value) for value in reaction.returns.tolist()]
    return returns


def _in_order(
    expansions: Sequence[Expansion], parents: dict[int, int]
) -> list[tuple[int, Reaction]]:
    """Return (parent, reaction) of the new reactions, leaf by leaf."""
    found: list[tuple[int, Reaction]] = []
    for expansion in expansions:
        if expansion.reaction is not None:
            found.append((expansion.leaf, expansion.reaction))
        for response in expansion.responses:
            found += [(parents[id(response)], reaction) for reaction in response.reactions]
    return found


def _new_response(leaf: int, response: Response) -> NewNode:
    prior = response.said.mean_logprob
    return NewNode(leaf, prior=math.nan if prior is None else prior)


def _response_node(node: int, leaf: int, response: Response, depth: int) -> TreeNode:
    said = response.said
    return TreeNode(
        id=node,
        parent=leaf,
        kind="response",
        text=words(said),
        depth=depth,
        visits=0,
        value_sum=0.0,
        multiplicity=response.multiplicity,
        truncated=said.truncated,
        num_tokens=said.num_tokens,
        mean_logprob=said.mean_logprob,
    )


def _reaction_node(node: int, parent: int, reaction: Reaction, depth: int) -> TreeNode:
    said = reaction.said
    return TreeNode(
        id=node,
        parent=parent,
        kind="decision",
        text=said.text if said.ended else words(said),
        depth=depth,
        visits=0,
        value_sum=0.0,
        terminal=reaction.over,
        outcome=readable(reaction.outcome),
        truncated=said.truncated,
        num_tokens=said.num_tokens,
        mean_logprob=said.mean_logprob,
        reward=reaction.reward,
    )


def readable(outcome: float | None) -> float | None:
    """Return an outcome; None for nan, which is unreadable."""
    return None if outcome is None or math.isnan(outcome) else outcome
