"""The true user of the sandbox world.

`TrueUser` is a `User` (`ixjax.generation.protocols`), so it can take a simulator's place: in a
search, whose values can then be compared with enumeration, and in an evaluation.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.types import Dialogue, Outcome, OutcomeReading, UserCondition, Utterance

USER_STREAM = 0x75736572  # separates the user's draws from every other draw of the same seed


class TrueUser:
    """The user that the sandbox's dialogues were recorded with.

    Args:
        seed: of the run, 0 or more; a turn is a function of (seed, identity, dialogue) alone.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def begin(self, dialogue: Dialogue, *, near: object = None) -> TrueParticipant:
        """See `ixjax.generation.User`; the turns give the hidden state."""
        return TrueParticipant(self, dialogue, world.mood_in(dialogue))

    def opening(self, condition: UserCondition, identity: Sequence[int]) -> str:
        """Return the first turn of a user of this condition."""
        return self.begin(Dialogue(condition.id, condition, turns=())).answer(identity).text


class TrueParticipant:
    """The true user in one dialogue; see `ixjax.generation.UserParticipant`.

    Args:
        user: whose draws it makes.
        dialogue: the turns so far.
        mood: the hidden state that they have led to.
    """

    def __init__(self, user: TrueUser, dialogue: Dialogue, mood: world.Mood):
        self.user, self.dialogue, self.mood = user, dialogue, mood

    def answer(self, identity: Sequence[int]) -> Utterance:
        """Say the next turn.

        Raises:
            ValueError: the dialogue is over, or it is the policy's move.
        """
        possible = user_turns(self.dialogue, self.mood)
        # A spawn key, not more entropy: there [1, 5] and [1, 5, 0] would be the same stream.
        key = (USER_STREAM, *map(int, identity))
        rng = np.random.default_rng(np.random.SeedSequence(self.user.seed, spawn_key=key))
        bounds = np.cumsum([reaction.probability for reaction in possible])
        chosen = possible[min(int(np.searchsorted(bounds, rng.random(), "right")), len(bounds) - 1)]
        self.dialogue, self.mood = self.dialogue.said("user", chosen.text), chosen.mood
        count = len(chosen.text.split())
        return Utterance(text=chosen.text, ended=chosen.mood.over, num_tokens=count)

    def speak(self, identity: Sequence[int]) -> Generator[Any, Any, Utterance]:
        """See `ixjax.generation.Participant`; waits for nothing."""
        yield from ()
        return self.answer(identity)

    def hear(self, text: str) -> None:
        """See `ixjax.generation.Participant`."""
        self.dialogue = self.dialogue.said("policy", text)

    def fork(self, count: int) -> Generator[Any, Any, list[TrueParticipant]]:
        """See `ixjax.generation.Participant`."""
        yield from ()
        return [TrueParticipant(self.user, self.dialogue, self.mood) for _ in range(count)]

    def close(self) -> None:
        """See `ixjax.generation.Participant`."""

    def outcome(self) -> Generator[Any, Any, OutcomeReading]:
        """Read the true distress, without error; see `ixjax.generation.UserParticipant`."""
        yield from ()
        outcome = outcome_of(self.dialogue.condition, self.mood)
        released = float(self.mood.distress == 1)
        return OutcomeReading(outcome.engagement, outcome.value, released=released)


def outcome_of(condition: UserCondition, mood: world.Mood) -> Outcome:
    """Return the outcome of a dialogue that left the user in this state."""
    return Outcome(value=float(mood.distress), engagement=world.engagement(condition, mood))


def user_turns(dialogue: Dialogue, mood: world.Mood) -> list[world.Reaction]:
    """Return everything that the user may say next, its probability and the state it leads to.

    Raises:
        ValueError: the dialogue is over, or it is the policy's move.
    """
    condition, turns = dialogue.condition, dialogue.turns
    if not turns:
        return [world.Reaction(p, text, mood) for p, text in world.openings(condition)]
    if turns[-1].role == "user" or mood.over:
        why = "it is over" if mood.over else "the policy is to move"
        raise ValueError(f"the user has nothing to say in dialogue {dialogue.id!r}: {why}")
    return world.reactions(world.need_of(condition), mood, turns[-1].text)
