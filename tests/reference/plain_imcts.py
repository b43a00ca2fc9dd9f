"""i×MCTS written to be read: one tree, one node, one turn at a time, no arrays.

Speakers are asked a turn at a time about a dialogue that is handed to them whole. The order in
which nodes are numbered, and what each turn is drawn by, are those of docs/algorithm.md.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import run_one
from ixjax.search import SearchConfig
from tests.reference.plain_tree import PlainNode, backpropagate, release, select

POLICY, USER = 0, 1


class PlainSearch:
    def __init__(
        self,
        policy: Any,
        user: Any,
        root: Dialogue,
        config: SearchConfig,
        seed: int = 0,
        reward: Callable[[str], float] = lambda text: 0.0,
    ):
        self.reward = reward
        self.speakers, self.config = (policy, user), config
        self.base = (seed, zlib.crc32(root.condition.id.encode()))
        self.nodes = [PlainNode("decision")]
        self.dialogues = {0: root}
        self.turns = {0: sum(turn.role == "policy" for turn in root.turns)}
        self.outcomes: dict[int, float] = {}
        self.returns: list[float] = []

    def number(self, node: PlainNode) -> int:
        return next(i for i, other in enumerate(self.nodes) if other is node)

    def say(self, speaker: int, dialogue: Dialogue, identity: tuple[int, ...]) -> Utterance:
        return run_one(self.speakers[speaker].begin(dialogue).speak(identity))

    def engagement(self, dialogue: Dialogue) -> float:
        return run_one(self.speakers[USER].begin(dialogue).outcome()).engagement

    def react(
        self, dialogue: Dialogue, node: int, sample: int, turns: int
    ) -> tuple[Dialogue, bool, list[float]]:
        """A reaction to the last turn of `dialogue`, whether it was the last, and the returns."""
        said = self.say(USER, dialogue, (*self.base, node, sample, turns, USER))
        dialogue = dialogue.said("user", said.text)
        rollouts = self.config.rollouts
        if said.ended or turns + 1 >= self.config.max_turns:
            return dialogue, True, [self.engagement(dialogue)] * rollouts
        ends = [
            self.roll_out(dialogue, (*self.base, node, sample * rollouts + r), turns + 1)
            for r in range(rollouts)
        ]
        return dialogue, False, ends

    def roll_out(self, dialogue: Dialogue, identity: tuple[int, ...], turns: int) -> float:
        played, earned = 0, 0.0
        while turns < self.config.max_turns:
            said = self.say(POLICY, dialogue, (*identity, turns, POLICY))
            dialogue = dialogue.said("policy", said.text)
            said = self.say(USER, dialogue, (*identity, turns, USER))
            dialogue = dialogue.said("user", said.text)
            turns, played = turns + 1, played + 1
            earned += self.config.gamma**played * self.shaping(said.text)
            if said.ended:
                break
        return earned + self.config.gamma**played * self.engagement(dialogue)

    def shaping(self, text: str) -> float:
        return self.config.reaction_weight * self.reward(text)

    def add(self, parent: PlainNode, dialogue: Dialogue, turns: int, *, over: bool) -> PlainNode:
        node = parent.add(terminal=over)
        self.nodes.append(node)
        self.dialogues[len(self.nodes) - 1] = dialogue
        self.turns[len(self.nodes) - 1] = turns
        return node

    def responses(self, leaf: int) -> list[tuple[PlainNode, int]]:
        """New responses at a decision, equal ones once, with the sample that said them first."""
        found: dict[str, tuple[PlainNode, int]] = {}
        for sample in range(self.config.width):
            turns = self.turns[leaf]
            said = self.say(POLICY, self.dialogues[leaf], (*self.base, leaf, sample, turns, POLICY))
            if said.text not in found:
                dialogue = self.dialogues[leaf].said("policy", said.text)
                node = self.add(self.nodes[leaf], dialogue, turns + 1, over=False)
                node.prior = said.mean_logprob
                found[said.text] = (node, sample)
        return list(found.values())

    def iterate(self) -> None:
        config = self.config
        leaves = [
            select(
                self.nodes[0],
                c_uct=config.c_uct,
                k_w=config.widening_factor,
                alpha_w=config.widening_exponent,
                rule=config.rule,
                backup=config.backup,
                gamma=config.gamma,
            )
            for _ in range(config.leaves)
        ]
        numbers = [self.number(leaf) for leaf in leaves]
        due: list[tuple[PlainNode, int, int]] = []  # response, node and sample of its reaction
        for number in dict.fromkeys(numbers):
            leaf = self.nodes[number]
            if leaf.terminal:
                continue
            if leaf.kind == "response":
                due.append((leaf, number, len(leaf.children)))
                continue
            for node, sample in self.responses(number):
                due += [
                    (node, number, sample + more * config.width) for more in range(config.reactions)
                ]
        arrived: list[tuple[PlainNode, float]] = []
        for response, node, sample in due:
            at = self.number(response)
            turns = self.turns[at] - 1
            dialogue, over, ends = self.react(self.dialogues[at], node, sample, turns)
            reaction = self.add(response, dialogue, turns + 1, over=over)
            reaction.reward = self.shaping(dialogue.turns[-1].text)
            if over:
                self.outcomes[len(self.nodes) - 1] = ends[0]
            arrived += [(reaction, value) for value in ends]
        # A dialogue that is over has its outcome sent up again.
        arrived += [
            (leaf, self.outcomes[n])
            for leaf, n in zip(leaves, numbers, strict=True)
            if leaf.terminal
        ]
        for node, value in arrived:
            self.returns.append(value)
            backpropagate(node, value, gamma=config.gamma)
        for leaf in leaves:
            release(leaf)

    def run(self) -> list[PlainNode]:
        for _ in range(self.config.iterations):
            self.iterate()
        assert all(math.isfinite(node.value_sum) for node in self.nodes)
        return self.nodes
