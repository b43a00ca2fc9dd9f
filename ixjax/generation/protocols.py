"""Protocols of speakers, each of which plays one side of many dialogues.

A `Speaker` is a language model over the engine (`ixjax.generation.speakers`), a scripted user or
policy in plain Python (`ixjax.dialogue.scenarios.sandbox.TrueUser`,
`ixjax.testing.ScriptedSpeaker`), or a policy that searches before it speaks
(`ixjax.search.SearchingPolicy`). `begin` returns its `Participant` in one dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ixjax.dialogue.types import Dialogue, OutcomeReading, Utterance
from ixjax.generation.driver import Task


class Participant(Protocol):
    """One side of one dialogue.

    Methods that may wait for a model return tasks (see `ixjax.generation.driver`).
    """

    @property
    def dialogue(self) -> Dialogue:
        """Return the dialogue so far."""
        ...

    def speak(self, identity: Sequence[int]) -> Task[Utterance]:
        """Sample this side's next turn, after a turn of the other side or at the start.

        Args:
            identity: uint32 numbers; the turn is a function of them, the seed and the dialogue.
        """
        ...

    def hear(self, text: str) -> None:
        """Append the other side's turn."""
        ...

    def fork(self, count: int) -> Task[list[Any]]:
        """Return `count` participants that continue from here, independent of this one."""
        ...

    def close(self) -> None:
        """Free the memory held for this dialogue; the participant is not used again."""
        ...


class UserParticipant(Participant, Protocol):
    """The user's side of one dialogue, which also reads its outcome."""

    def outcome(self) -> Task[OutcomeReading]:
        """Read the engagement after any turn of the user."""
        ...


class Speaker(Protocol):
    """One side of many dialogues."""

    def begin(self, dialogue: Dialogue, *, near: Any = None) -> Participant:
        """Take part in a dialogue.

        Args:
            dialogue: the turns so far.
            near: a participant of this speaker in a dialogue with the same beginning; its work may
                be shared.
        """
        ...


class User(Protocol):
    """The user's side of many dialogues."""

    def begin(self, dialogue: Dialogue, *, near: Any = None) -> UserParticipant:
        """See `Speaker.begin`."""
        ...
