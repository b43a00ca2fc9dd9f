"""What search and evaluation play with: one side of many dialogues at once, in words.

A speaker's contexts can be forked, stored, spoken from and spoken to. A language model is one over
the engine (`ixjax.generation.speakers`), a scripted user or policy one in plain Python
(`ixjax.dialogue.scenarios.sandbox.TrueUser`, `ixjax.testing.ScriptedSpeaker`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from ixjax.dialogue.types import Dialogue, OutcomeReading, Utterance

State = TypeVar("State")


class Speaker(Protocol[State]):
    """One side of many dialogues. A state holds one dialogue a row.

    `speak`, `listen` and `store` consume the state they are given; `fork` and `start` do not.
    """

    def empty(self, rows: int) -> State:
        """Rows that hold nothing yet, to `store` into."""
        ...

    def start(self, dialogues: Sequence[Dialogue]) -> State:
        """One row a dialogue, ready to speak if it is this side's move."""
        ...

    def speak(
        self, state: State, identities: np.ndarray, active: np.ndarray
    ) -> tuple[State, list[Utterance | None]]:
        """Sample this side's next turn for the active rows.

        Args:
            state: rows whose last turn is the other side's.
            identities: `[S, k]` uint32; what is said depends on it, the seed and the row alone.
            active: `[S]` bool.

        Returns:
            The rows, and S utterances, None for rows that are not active.
        """
        ...

    def listen(self, state: State, texts: Sequence[str | None]) -> State:
        """Append the other side's turn to each row; None leaves the row as it is."""
        ...

    def fork(self, state: State, rows: np.ndarray) -> State:
        """Row i of the result is a copy of row `rows[i]`."""
        ...

    def store(
        self, state: State, rows: np.ndarray, source: State, source_rows: np.ndarray
    ) -> State:
        """Overwrite `rows` of `state` with `source_rows` of `source`."""
        ...


class User(Speaker[State], Protocol[State]):
    """The user's side, which also knows what the dialogue has done to it."""

    def outcomes(self, state: State, active: np.ndarray) -> list[OutcomeReading | None]:
        """Read each active row's engagement, after any turn of the user's; state stays valid."""
        ...
