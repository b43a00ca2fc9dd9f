"""The true user of the sandbox world as one side of many dialogues, and its exact expectations.

`TrueUser` speaks the protocol of `ixjax.generation.User`, so it can sit wherever a simulator does:
in a search, whose values can then be compared with enumeration, and in an evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.types import Dialogue, Outcome, OutcomeReading, Utterance

# Response texts with their probabilities, given a dialogue that waits for the policy.
PolicyDistribution = Callable[[Dialogue], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class UserRow:
    """One dialogue, and the hidden state it has led to."""

    dialogue: Dialogue
    mood: world.Mood


class TrueUser:
    """The user that the sandbox's dialogues were recorded with.

    Args:
        seed: of the run; what a row says depends on (seed, identity, row) alone.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def empty(self, rows: int) -> list[UserRow | None]:
        """See `ixjax.generation.Speaker`."""
        return [None] * rows

    def start(self, dialogues: Sequence[Dialogue]) -> list[UserRow | None]:
        """See `ixjax.generation.Speaker`."""
        return [UserRow(dialogue, world.mood_in(dialogue)) for dialogue in dialogues]

    def speak(
        self, state: Sequence[UserRow | None], identities: np.ndarray, active: np.ndarray
    ) -> tuple[list[UserRow | None], list[Utterance | None]]:
        """See `ixjax.generation.Speaker`."""
        rows, said = list(state), [None] * len(state)
        for i in np.flatnonzero(active):
            rng = np.random.default_rng([self._seed, *(int(part) for part in identities[i])])
            rows[i], said[i] = self._speak_one(rows[i], rng.random())
        return rows, said

    def _speak_one(self, row: UserRow, uniform: float) -> tuple[UserRow, Utterance]:
        possible = user_turns(row)
        bounds = np.cumsum([reaction.probability for reaction in possible])
        chosen = possible[min(int(np.searchsorted(bounds, uniform, "right")), len(possible) - 1)]
        ended = bool(row.dialogue.turns) and chosen.mood.over
        outcome = outcome_of(row.dialogue, chosen.mood) if ended else None
        said = Utterance(
            text=chosen.text, ended=ended, outcome=outcome, num_tokens=len(chosen.text.split())
        )
        return UserRow(row.dialogue.said("user", chosen.text), chosen.mood), said

    def listen(
        self, state: Sequence[UserRow | None], texts: Sequence[str | None]
    ) -> list[UserRow | None]:
        """See `ixjax.generation.Speaker`."""
        return [
            row if text is None else UserRow(row.dialogue.said("policy", text), row.mood)
            for row, text in zip(state, texts, strict=True)
        ]

    def fork(self, state: Sequence[UserRow | None], rows: np.ndarray) -> list[UserRow | None]:
        """See `ixjax.generation.Speaker`."""
        return [state[row] for row in rows]

    def store(
        self,
        state: Sequence[UserRow | None],
        rows: np.ndarray,
        source: Sequence[UserRow | None],
        source_rows: np.ndarray,
    ) -> list[UserRow | None]:
        """See `ixjax.generation.Speaker`."""
        stored = list(state)
        for row, source_row in zip(rows, source_rows, strict=True):
            stored[row] = source[source_row]
        return stored

    def outcomes(
        self, state: Sequence[UserRow | None], active: np.ndarray
    ) -> list[OutcomeReading | None]:
        """See `ixjax.generation.User`: the true distress, with no error."""
        readings: list[OutcomeReading | None] = [None] * len(state)
        for i in np.flatnonzero(active):
            outcome = outcome_of(state[i].dialogue, state[i].mood)
            readings[i] = OutcomeReading(engagement=outcome.engagement, value=outcome.value)
        return readings


def outcome_of(dialogue: Dialogue, mood: world.Mood) -> Outcome:
    """How a dialogue that left the user in this state turned out."""
    return Outcome(
        value=float(mood.distress), engagement=world.engagement(dialogue.condition, mood)
    )


def user_turns(row: UserRow) -> list[world.Reaction]:
    """Everything that the user may say next."""
    condition, turns = row.dialogue.condition, row.dialogue.turns
    if not turns:
        return [world.Reaction(p, text, row.mood) for p, text in world.openings(condition)]
    return world.reactions(world.need_of(condition), row.mood, turns[-1].text)


def expected_engagement(
    dialogue: Dialogue, policy: PolicyDistribution, *, max_turns: int
) -> float:
    """Exact expected engagement by enumeration of everything that can be said.

    Args:
        dialogue: the history; it waits for the policy.
        policy: distribution over response texts at any history.
        max_turns: policy turns that a dialogue has at most, those in `dialogue` included; one
            that is cut there has the engagement of the state it is in.
    """
    return sum(
        probability * value
        for probability, value in zip(
            policy(dialogue).values(),
            response_values(dialogue, policy, max_turns=max_turns).values(),
            strict=True,
        )
    )


def response_values(
    dialogue: Dialogue, policy: PolicyDistribution, *, max_turns: int
) -> dict[str, float]:
    """Exact expected engagement of each possible response at `dialogue`, the policy followed after.

    The cost grows exponentially with the turns left: for small subtrees.
    """
    condition, mood = dialogue.condition, world.mood_in(dialogue)
    taken = sum(turn.role == "policy" for turn in dialogue.turns)
    values = {}
    for response in policy(dialogue):
        total = 0.0
        for reaction in world.reactions(world.need_of(condition), mood, response):
            if reaction.mood.over or taken + 1 >= max_turns:
                value = world.engagement(condition, reaction.mood)
            else:
                after = dialogue.said("policy", response).said("user", reaction.text)
                value = expected_engagement(after, policy, max_turns=max_turns)
            total += reaction.probability * value
        values[response] = total
    return values
