"""A session with a policy that searches before each of its turns.

It takes turns as `generation.Session` does, but a turn comes as a whole, after the search. What was
searched is held for every turn: it tells why a turn was chosen, and a turn that is taken back leads
to the tree that was there before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ixjax.dialogue.types import Dialogue, OutcomeReading
from ixjax.generation import TurnTaking
from ixjax.search.inference import Searched, SearchingPolicy
from ixjax.search.tree import TreeNode


class ThinkingSession(TurnTaking):
    """A dialogue with a `SearchingPolicy`, whose user is whoever calls this; see `TurnTaking`.

    Args:
        policy: the model's side.
        root: where the dialogue begins, with the condition that the search takes the user to be in.
    """

    def __init__(self, policy: SearchingPolicy, root: Dialogue):
        super().__init__("policy", policy.scenario, root)
        self.policy = policy
        self._searched: dict[int, Searched] = {}  # behind the policy's turns, by number of turns
        self._drawn = 0  # turns, of which each has another identity

    @property
    def dropped_turns(self) -> int:
        """Of the dialogue and of those that were played to look ahead; see `TurnTaking`."""
        return self.policy.dropped_turns

    @property
    def considered(self) -> list[TreeNode]:
        """The responses that the model's last turn was chosen from, the chosen one first."""
        searched = self._searched.get(len(self.dialogue.turns))
        tree = searched and searched.trees[0]
        return self.policy.ranked(tree) if tree else []

    def outcome(self) -> OutcomeReading:
        """See `TurnTaking.outcome`.

        Raises:
            ValueError: always.
        """
        raise ValueError("only the user's side has an outcome; this session's model is the policy")

    def _answer(self, text: str | None) -> Iterator[str]:
        state = self._searched.get(len(self.dialogue.turns)) or self.policy.start([self.dialogue])
        if text is not None:
            state = self.policy.listen(state, [text])
        identity = np.array([[self._drawn]], np.uint32)
        self._drawn += 1
        state, [said] = self.policy.speak(state, identity, np.ones(1, bool))
        assert said is not None  # of an active row
        yield said.text
        [dialogue] = state.dialogues
        assert dialogue is not None
        self.dialogue, self.last = dialogue, said
        self._searched[len(dialogue.turns)] = state

    def _forget(self) -> None:
        left = len(self.dialogue.turns)
        self._searched = {turns: s for turns, s in self._searched.items() if turns <= left}
