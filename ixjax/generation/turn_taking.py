"""A dialogue between a person and a model: whose move it is, undo and restart.

Subclasses produce the model's turns: `generation.Session` streams them as they are sampled,
`search.ThinkingSession` searches before each of them.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

from ixjax.dialogue.scenarios import Scenario
from ixjax.dialogue.types import Dialogue, OutcomeReading, Role, Utterance, text_problem
from ixjax.io import InputError


class TurnTaking(abc.ABC):
    """A dialogue between a model and the caller.

    `move` and `say` return iterators over fragments of the model's turn. If one is dropped before
    its end, the dialogue is unchanged.

    Args:
        role: the model's side.
        scenario: of the dialogue.
        root: the beginning of the dialogue, with or without turns.

    Attributes:
        dialogue: all turns so far.
        last: the model's last turn; None before the first, and after `undo` and `restart`.
    """

    def __init__(self, role: Role, scenario: Scenario, root: Dialogue):
        self.role, self.scenario = role, scenario
        self.dialogue = root
        self.last: Utterance | None = None
        self._root = root

    @property
    def person(self) -> Role:
        """Return the side that the caller plays."""
        return "user" if self.role == "policy" else "policy"

    @property
    def ended(self) -> bool:
        """Return whether the model has closed the dialogue."""
        return self.last is not None and self.last.ended

    @property
    def model_moves(self) -> bool:
        """Return whether the model moves next: it opens, or the person spoke last."""
        if self.ended or self.dialogue.turns:
            return not self.ended and self.dialogue.turns[-1].role == self.person
        opener: Role = "policy" if self.scenario.policy_opens else "user"
        return opener != self.person

    @property
    @abc.abstractmethod
    def dropped_turns(self) -> int:
        """Return the number of oldest turns so far that did not fit in a context."""

    def move(self) -> Iterator[str]:
        """Let the model speak, if `model_moves`.

        Yields:
            Fragments of its turn. Nothing runs before the first one is requested.

        Raises:
            ValueError: the other side moves next.
        """
        if not self.model_moves:
            raise ValueError(f"the {self.person} moves next; call `say`")
        yield from self._answer(None)

    def say(self, text: str) -> Iterator[str]:
        """Say a turn to the model, and let it answer.

        Yields:
            Fragments of the answer. Nothing runs before the first one is requested, not even the
            checks.

        Raises:
            InputError: the text is empty, invalid Unicode, or too long for the model's context.
            ValueError: the dialogue is over, or the model moves first.
        """
        if self.ended or self.model_moves:
            state = "the dialogue is over" if self.ended else "the model moves next"
            raise ValueError(f"{state}; nothing can be said now")
        if problem := text_problem(text):
            raise InputError(f"the turn {problem}")
        yield from self._answer(text)

    def undo(self) -> bool:
        """Take back the last exchange; return whether there was one.

        The next answer is sampled anew, even if the person says the same again.
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
        """Return the outcome of the dialogue so far, if the model is the user's side.

        Raises:
            ValueError: the model is the policy, which has no outcome.
        """

    @abc.abstractmethod
    def _answer(self, text: str | None) -> Iterator[str]:
        """Yield fragments of the model's next turn; then add both turns to the dialogue.

        Every call samples by a new identity.

        Args:
            text: the person's turn before it; None if there is none.
        """

    def _go_to(self, dialogue: Dialogue) -> None:
        self.dialogue, self.last = dialogue, None
        self._forget()

    @abc.abstractmethod
    def _forget(self) -> None:
        """Drop the state held for turns that were taken back."""
