"""A person and a model in one dialogue: whose move it is, and what can be taken back.

How the model comes by its turns is left open: `generation.Session` tells them as they are sampled,
`search.ThinkingSession` searches before each of them.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

from ixjax.dialogue.scenarios import Scenario
from ixjax.dialogue.types import Dialogue, OutcomeReading, Role, Utterance, text_problem
from ixjax.io import InputError


class TurnTaking(abc.ABC):
    """A dialogue between a model and whoever calls this.

    An iterator of pieces that is left before its end leaves the dialogue as it was.

    Args:
        role: the model's side.
        scenario: of the dialogue.
        root: where the dialogue begins: without a turn, or with some that were given.

    Attributes:
        dialogue: what was said so far.
        last: the model's last turn; None before it, and after one was taken back.
    """

    def __init__(self, role: Role, scenario: Scenario, root: Dialogue):
        self.role, self.scenario = role, scenario
        self.dialogue = root
        self.last: Utterance | None = None
        self._root = root

    @property
    def person(self) -> Role:
        """The side that the caller plays."""
        return "user" if self.role == "policy" else "policy"

    @property
    def ended(self) -> bool:
        """Whether the model has closed the dialogue."""
        return self.last is not None and self.last.ended

    @property
    def model_moves(self) -> bool:
        """Whether the next turn is the model's: it opens, or the root ends with the person's."""
        if self.ended or self.dialogue.turns:
            return not self.ended and self.dialogue.turns[-1].role == self.person
        opener: Role = "policy" if self.scenario.policy_opens else "user"
        return opener != self.person

    @property
    @abc.abstractmethod
    def dropped_turns(self) -> int:
        """Oldest turns that found no room in a context, so far."""

    def move(self) -> Iterator[str]:
        """The model's turn, where `model_moves`.

        Returns:
            Pieces of it, as `say` gives them; nothing happens before the first is asked for.

        Raises:
            ValueError: the other side moves next.
        """
        if not self.model_moves:
            raise ValueError(f"the {self.person} moves next; `say` something")
        yield from self._answer(None)

    def say(self, text: str) -> Iterator[str]:
        """Say a turn to the model.

        Returns:
            Pieces of its answer. An iterator: nothing is said, or refused, before the first piece
            is asked for.

        Raises:
            InputError: the text is empty, no valid Unicode, or too long for the model's context.
            ValueError: the dialogue is over, or the model moves first.
        """
        if self.ended or self.model_moves:
            state = "the dialogue is over" if self.ended else "the model moves next"
            raise ValueError(f"{state}; nothing can be said now")
        if problem := text_problem(text):
            raise InputError(f"what was said {problem}")
        yield from self._answer(text)

    def undo(self) -> bool:
        """Take back the last exchange; whether there was one.

        What is said next is answered by other draws, also if it is the same.
        """
        said = [
            i
            for i, turn in enumerate(self.dialogue.turns)
            if turn.role == self.person and i >= len(self._root.turns)
        ]
        if said:
            self._go_to(self.dialogue.before(said[-1]))
        return bool(said)

    def restart(self) -> None:
        """Begin again at the root."""
        self._go_to(self._root)

    @abc.abstractmethod
    def outcome(self) -> OutcomeReading:
        """What the dialogue has come to, if the model is the user's side.

        Raises:
            ValueError: the model is the policy, which has no outcome.
        """

    @abc.abstractmethod
    def _answer(self, text: str | None) -> Iterator[str]:
        """Pieces of the model's next turn, after the person's, if any; then the dialogue has both.

        Every turn is drawn by another identity, also one that is said again.
        """

    def _go_to(self, dialogue: Dialogue) -> None:
        self.dialogue, self.last = dialogue, None
        self._forget()

    @abc.abstractmethod
    def _forget(self) -> None:
        """Turns were taken back: let go of what was held of them."""
