"""The true user of the sandbox world as one side of many dialogues.

`TrueUser` speaks the protocol of `ixjax.generation.User`, so it can sit wherever a simulator does:
in a search, whose values can then be compared with enumeration, and in an evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.types import Dialogue, Outcome, OutcomeReading, UserCondition, Utterance

USER_STREAM = 0x75736572  # keeps what users draw apart from every other draw of the same seed


@dataclasses.dataclass(frozen=True)
class UserRow:
    """One dialogue, and the hidden state it has led to."""

    dialogue: Dialogue
    mood: world.Mood


State = Sequence[UserRow | None]


class TrueUser:
    """The user that the sandbox's dialogues were recorded with.

    A state is a list with a row for each dialogue, None for an empty one. Rows are immutable and
    every method returns a new list, so a state stays valid whatever is done with its successors.

    Args:
        seed: of the run, 0 or more; what a row says depends on (seed, identity, row) alone.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def empty(self, rows: int) -> State:
        """See `ixjax.generation.Speaker`."""
        return [None] * rows

    def start(self, dialogues: Sequence[Dialogue]) -> State:
        """See `ixjax.generation.Speaker`; the hidden state is the one that the turns tell."""
        return [UserRow(dialogue, world.mood_in(dialogue)) for dialogue in dialogues]

    def opening(self, condition: UserCondition, identity: Sequence[int]) -> str:
        """What a user of this condition opens with, as `speak` does for a row without turns."""
        row = UserRow(Dialogue(condition.id, condition, turns=()), world.initial_mood(condition))
        return self._speak(row, identity)[1].text

    def speak(
        self, state: State, identities: np.ndarray, active: np.ndarray
    ) -> tuple[State, list[Utterance | None]]:
        """See `ixjax.generation.Speaker`.

        Raises:
            ValueError: an active row is empty, over, or waits for the policy.
        """
        rows = list(state)
        said: list[Utterance | None] = [None] * len(rows)
        for i in map(int, np.flatnonzero(active)):
            rows[i], said[i] = self._speak(_held(state, i), identities[i])
        return rows, said

    def _speak(
        self, row: UserRow, identity: Sequence[int] | np.ndarray
    ) -> tuple[UserRow, Utterance]:
        possible = user_turns(row)
        # A spawn key, not more entropy: there [1, 5] and [1, 5, 0] would be the same stream.
        key = (USER_STREAM, *(int(part) for part in identity))
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))
        bounds = np.cumsum([reaction.probability for reaction in possible])
        chosen = possible[min(int(np.searchsorted(bounds, rng.random(), "right")), len(bounds) - 1)]
        said = Utterance(
            text=chosen.text,
            ended=chosen.mood.over,
            num_tokens=len(chosen.text.split()),
        )
        return UserRow(row.dialogue.said("user", chosen.text), chosen.mood), said

    def listen(self, state: State, texts: Sequence[str | None]) -> State:
        """See `ixjax.generation.Speaker`."""
        rows = list(state)
        for i, text in enumerate(texts):
            if text is not None:
                row = _held(state, i)
                rows[i] = UserRow(row.dialogue.said("policy", text), row.mood)
        return rows

    def fork(self, state: State, rows: np.ndarray) -> State:
        """See `ixjax.generation.Speaker`."""
        return [state[row] for row in rows]

    def store(
        self, state: State, rows: np.ndarray, source: State, source_rows: np.ndarray
    ) -> State:
        """See `ixjax.generation.Speaker`."""
        stored = list(state)
        for row, source_row in zip(rows, source_rows, strict=True):
            stored[row] = source[source_row]
        return stored

    def outcomes(self, state: State, active: np.ndarray) -> list[OutcomeReading | None]:
        """See `ixjax.generation.User`: the true distress, with no error."""
        readings: list[OutcomeReading | None] = [None] * len(state)
        for i in map(int, np.flatnonzero(active)):
            row = _held(state, i)
            outcome = outcome_of(row.dialogue.condition, row.mood)
            readings[i] = OutcomeReading(
                outcome.engagement, outcome.value, released=float(row.mood.distress == 1)
            )
        return readings


def _held(state: State, index: int) -> UserRow:
    row = state[index]
    if row is None:
        raise ValueError(f"row {index} of the user's state is empty; start or store it first")
    return row


def outcome_of(condition: UserCondition, mood: world.Mood) -> Outcome:
    """How a dialogue that left the user in this state turned out."""
    return Outcome(value=float(mood.distress), engagement=world.engagement(condition, mood))


def user_turns(row: UserRow) -> list[world.Reaction]:
    """Everything that the user may say next, with its probability and the state it leads to.

    Raises:
        ValueError: the dialogue is over, or it is the policy's move.
    """
    condition, turns = row.dialogue.condition, row.dialogue.turns
    if not turns:
        return [world.Reaction(p, text, row.mood) for p, text in world.openings(condition)]
    if turns[-1].role == "user" or row.mood.over:
        why = "it is over" if row.mood.over else "the policy is to move"
        raise ValueError(f"the user has nothing to say in dialogue {row.dialogue.id!r}: {why}")
    return world.reactions(world.need_of(condition), row.mood, turns[-1].text)
