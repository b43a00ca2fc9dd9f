"""A session with a policy that searches before each of its turns.

It takes turns as `generation.Session` does, but a turn is yielded as a whole, after the search. The
tree of every turn is kept: it shows why a turn was chosen, and `undo` returns to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ixjax.dialogue.types import Dialogue, OutcomeReading
from ixjax.generation import TurnTaking, run_one
from ixjax.search.inference import SearchingParticipant, SearchingPolicy
from ixjax.search.tree import TreeNode


class ThinkingSession(TurnTaking):
    """A dialogue between a `SearchingPolicy` and the caller as its user; see `TurnTaking`.

    Args:
        policy: the model's side.
        root: the beginning of the dialogue, with the condition that the search assumes of the user.
    """

    def __init__(self, policy: SearchingPolicy, root: Dialogue):
        super().__init__("policy", policy.scenario, root)
        self.policy = policy
        self._spoken: dict[int, SearchingParticipant] = {}  # after its turns, by number of turns
        self._drawn = 0  # turns so far: each has its own identity

    @property
    def dropped_turns(self) -> int:
        """Return the dropped turns of the dialogue and of its rollouts; see `TurnTaking`."""
        return self.policy.dropped_turns

    @property
    def considered(self) -> list[TreeNode]:
        """Return the responses that the model's last turn was chosen from, the chosen one first."""
        spoken = self._spoken.get(len(self.dialogue.turns))
        return self.policy.ranked(spoken.tree) if spoken and spoken.tree else []

    def outcome(self) -> OutcomeReading:
        """See `TurnTaking.outcome`.

        Raises:
            ValueError: always.
        """
        raise ValueError("only the user's side has an outcome; this session's model is the policy")

    def _answer(self, text: str | None) -> Iterator[str]:
        before = self._spoken.get(len(self.dialogue.turns))
        participant = before.copy() if before else self.policy.begin(self.dialogue)
        if text is not None:
            participant.hear(text)
        self._drawn += 1
        said = run_one(participant.speak([self._drawn - 1]))
        yield said.text
        self.dialogue, self.last = participant.dialogue, said
        self._spoken[len(participant.dialogue.turns)] = participant

    def _forget(self) -> None:
        left = len(self.dialogue.turns)
        self._spoken = {turns: p for turns, p in self._spoken.items() if turns <= left}
