"""A policy that searches before it speaks: i×MCTS at inference, and its special case, best of n.

At each turn the policy searches a tree from the present dialogue, with a simulator, and says the
best response. The subtree after that response and the user's real reaction is kept for the next
turn. The search uses the user's condition, which the policy never sees: the score of this method is
the value of look-ahead, not the quality of a policy without a simulator.
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
    """A `Speaker` that says the best response of a tree search from its dialogue.

    With one iteration, `choose="value"` and `reuse=False` it is best of n by look-ahead.

    Args:
        policy: samples the responses, and plays the rollouts.
        simulator: the user in the search; it may differ from the user that the policy talks to.
        scenario: of the dialogues.
        config: budget of a turn; its rollouts end at `max_turns`.
        choose: the response with the best mean return (`value`), or with the most visits
            (`visits`; ties by mean return).
        reuse: whether to keep the subtree after each turn that is played.
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
        """Return the turns that both sides dropped from contexts, if they count them."""
        return sum(getattr(side, "dropped_turns", 0) for side in self._sides)

    def begin(self, dialogue: Dialogue, *, near: object = None) -> SearchingParticipant:
        """See `Speaker.begin`."""
        return SearchingParticipant(self, dialogue)

    def search(self, root: FinishedTree) -> Task[FinishedTree]:
        """Search a tree from a root; in a long dialogue, look at least one turn ahead."""
        longest = max(self.config.max_turns, policy_turns(root.root) + 1)
        config = dataclasses.replace(self.config, max_turns=longest)
        search = Search(*self._sides, self.scenario, config, self._seed, self._pool)
        return (yield from search_tree(search, root))

    def ranked(self, tree: FinishedTree) -> list[TreeNode]:
        """Return the root's responses, best first; by id if no outcome was readable."""

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
        tree: after a turn of the policy, the tree that its response was chosen from; after a turn
            of the user, the subtree to search further; None if there is none.
        chosen: node of the chosen response.
    """

    def __init__(self, speaker: SearchingPolicy, dialogue: Dialogue):
        self.speaker, self.dialogue = speaker, dialogue
        self.tree: FinishedTree | None = None
        self.chosen = Tree.NO_NODE

    def speak(self, identity: Sequence[int]) -> Task[Utterance]:
        """See `Participant.speak`; the search depends only on `identity` and the dialogue."""
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
        """See `Participant.hear`. If the search sampled this reaction, its subtree is kept."""
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
        """Return a participant with the same dialogue and tree."""
        copy = SearchingParticipant(self.speaker, self.dialogue)
        copy.tree, copy.chosen = self.tree, self.chosen
        return copy

    def close(self) -> None:
        """See `Participant.close`."""

    def _root(self, name: str) -> FinishedTree:
        """Return the dialogue and its known subtree as a root, with the condition id `name`."""
        condition = dataclasses.replace(self.dialogue.condition, id=name)
        root = dataclasses.replace(self.dialogue, condition=condition)
        if self.tree is not None:
            return dataclasses.replace(self.tree, root=root)
        blank = TreeNode(Tree.ROOT, Tree.NO_NODE, "decision", "", 0, 0, 0.0)
        return FinishedTree(self.speaker.scenario.name, root, (blank,))
