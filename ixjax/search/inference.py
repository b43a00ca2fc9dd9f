"""A policy that searches before it speaks: i×MCTS at inference, and best of n, its smallest form.

At each of its turns such a policy searches a tree from the present dialogue, with a simulator of
its own, and says the response that did best there. The subtree below that response and the user's
real reaction is kept for the next turn. Like the search, it knows the user's condition, which the
policy itself never sees: read its score as the value of look-ahead, not as what a policy without a
simulator can do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import Speaker, Task, User
from ixjax.search.config import SearchConfig
from ixjax.search.node_table import policy_turns
from ixjax.search.search_tree import Search, search_tree
from ixjax.search.tree import FinishedTree, Tree, TreeNode
from ixjax.search.tree_pool import TreePool

Choice = Literal["value", "visits"]


class SearchingPolicy:
    """A `Speaker` that says what a tree search from its dialogue found best.

    With one iteration, `choose="value"` and nothing to reuse it is best of n by look-ahead.

    Args:
        policy: samples the responses, and plays on in the look-ahead.
        simulator: the user of the look-ahead; not the one that the policy is evaluated with.
        scenario: of the dialogues.
        config: budget of a turn; its look-ahead ends at `max_turns`.
        choose: the response of the best mean return, or the most visited one (ties: of the best
            mean return), which has been compared most.
        reuse: keep the subtree below a turn that is really played.
        seed: of the search.
    """

    def __init__(
        self,
        policy: Speaker,
        simulator: User,
        scenario: Scenario,
        config: SearchConfig,
        *,
        choose: Choice = "visits",
        reuse: bool = True,
        seed: int = 0,
    ):
        self._sides = (policy, simulator)
        self.scenario, self.config, self.reuse = scenario, config, reuse
        self._choose, self._seed = choose, seed
        self._pool = TreePool(config, nodes=(1 + reuse) * config.nodes)

    @property
    def dropped_turns(self) -> int:
        """Return the oldest turns that found no room in contexts of the two, if they count them."""
        return sum(getattr(side, "dropped_turns", 0) for side in self._sides)

    def begin(self, dialogue: Dialogue, *, near: object = None) -> SearchingParticipant:
        """See `Speaker.begin`."""
        return SearchingParticipant(self, dialogue)

    def search(self, root: FinishedTree) -> Task[FinishedTree]:
        """Search a tree from a root, for a turn at least if the dialogue is long already."""
        longest = max(self.config.max_turns, policy_turns(root.root) + 1)
        config = dataclasses.replace(self.config, max_turns=longest)
        search = Search(*self._sides, self.scenario, config, self._seed, self._pool)
        return (yield from search_tree(search, root))

    def ranked(self, tree: FinishedTree) -> list[TreeNode]:
        """Return the root's responses, the best first; in order if no outcome could be read."""

        def merit(node: TreeNode) -> tuple[float, ...]:
            value = node.value if node.visits else -np.inf
            visits = node.visits if self._choose == "visits" else 0
            return (visits, value, -node.id)

        return sorted(tree.children(Tree.ROOT), key=merit, reverse=True)


class SearchingParticipant:
    """A `SearchingPolicy` in one dialogue; see `Participant`.

    Args:
        speaker: the policy.
        dialogue: the turns so far.

    Attributes:
        tree: what is known from here on: after a turn of the policy's, the tree that its response
            was chosen from; None if nothing is.
        chosen: that response's node.
    """

    def __init__(self, speaker: SearchingPolicy, dialogue: Dialogue):
        self.speaker, self.dialogue = speaker, dialogue
        self.tree: FinishedTree | None = None
        self.chosen = Tree.NO_NODE

    def speak(self, identity: Sequence[int]) -> Task[Utterance]:
        """See `Participant.speak`; the search depends on `identity` and the dialogue alone."""
        tree = yield from self.speaker.search(self._root("-".join(map(str, identity))))
        best = self.speaker.ranked(tree)[0]
        self.dialogue = self.dialogue.said("policy", best.text)
        self.tree, self.chosen = tree, best.id
        return Utterance(
            best.text,
            num_tokens=best.num_tokens,
            truncated=best.truncated,
            mean_logprob=best.mean_logprob,
        )

    def hear(self, text: str) -> None:
        """See `Participant.hear`. A reaction that was foreseen leads into the tree below it."""
        self.dialogue = self.dialogue.said("user", text)
        tree, self.tree = self.tree, None
        if tree is not None and self.speaker.reuse:
            reactions = tree.children(self.chosen)
            known = [node.id for node in reactions if node.text == text and not node.terminal]
            self.tree = tree.subtree(known[0]) if known else None

    def fork(self, count: int) -> Task[list[SearchingParticipant]]:
        """See `Participant.fork`."""
        yield from ()
        return [self.copy() for _ in range(count)]

    def copy(self) -> SearchingParticipant:
        """Return a participant that knows the same."""
        copy = SearchingParticipant(self.speaker, self.dialogue)
        copy.tree, copy.chosen = self.tree, self.chosen
        return copy

    def close(self) -> None:
        """See `Participant.close`."""

    def _root(self, name: str) -> FinishedTree:
        """Return the dialogue with the known subtree; `name` stands for its condition's id."""
        condition = dataclasses.replace(self.dialogue.condition, id=name)
        root = dataclasses.replace(self.dialogue, condition=condition)
        if self.tree is not None:
            return dataclasses.replace(self.tree, root=root)
        blank = TreeNode(Tree.ROOT, Tree.NO_NODE, "decision", "", 0, 0, 0.0)
        return FinishedTree(self.speaker.scenario.name, root, (blank,))
