"""A policy that is a table and a user whose world is small enough to enumerate.

Both implement the speakers' protocol in plain Python. A turn is a function of its identity and the
dialogue, and they check how they are used: a participant that was closed is refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ixjax.dialogue.types import (
    Dialogue,
    Outcome,
    OutcomeReading,
    Turn,
    UserCondition,
    Utterance,
)
from ixjax.generation import Task


class Double:
    """A speaker that counts what is asked of it."""

    participant: ClassVar[type[Side]]

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, dialogue: Dialogue, *, near: Any = None) -> Any:
        self.calls.append("begin" if near is None else "begin near")
        return self.participant(self, dialogue)


class Side:
    """One side of one dialogue; refuses to be used once it was closed."""

    def __init__(self, speaker: Any, dialogue: Dialogue):
        self._speaker, self._dialogue, self.closed = speaker, dialogue, False

    @property
    def speaker(self) -> Any:
        assert not self.closed, "this participant was closed by an earlier call"
        return self._speaker

    @property
    def dialogue(self) -> Dialogue:
        return self._dialogue

    def close(self) -> None:
        self.speaker.calls.append("close")
        self.closed = True

    def fork(self, count: int) -> Task[list[Any]]:
        yield from ()
        self.speaker.calls.append("fork")
        return [self.copy() for _ in range(count)]

    def copy(self) -> Any:
        return type(self)(self._speaker, self._dialogue)


def draw(identity: Sequence[int]) -> np.random.Generator:
    return np.random.default_rng([int(part) & 0xFFFFFFFF for part in identity])


class TableSide(Side):
    def speak(self, identity: Sequence[int]) -> Task[Utterance]:
        yield from ()
        self.speaker.calls.append("speak")
        table = self.speaker.table(self._dialogue)
        choice = draw(identity).choice(len(table), p=list(table.values()))
        text = list(table)[choice]
        self._dialogue = self._dialogue.said("policy", text or "...")
        return Utterance(text, num_tokens=2, mean_logprob=math.log(table[text]) / 2)

    def hear(self, text: str) -> None:
        self._dialogue = self.speaker and self._dialogue.said("user", text)


class TablePolicy(Double):
    """Says `text` with the probability that `table(dialogue)` gives it."""

    participant = TableSide

    def __init__(self, table: Callable[[Dialogue], dict[str, float]]):
        super().__init__()
        self.table = table


class MoodSide(Side):
    """The words of a dialogue, and the mood that the user keeps to itself."""

    def __init__(self, speaker: MoodUser, dialogue: Dialogue, mood: int | None = None):
        super().__init__(speaker, dialogue)
        self.mood = self._told() if mood is None else mood

    def _told(self) -> int:
        """The mood as the user told it last; before that the condition's."""
        told = [re.fullmatch(r"my mood is (\d+)", turn.text) for turn in self.dialogue.turns]
        moods = [int(match[1]) for match in told if match]
        return moods[-1] if moods else int(self.dialogue.condition.attributes.get("mood", 0))

    def copy(self) -> MoodSide:
        return MoodSide(self._speaker, self._dialogue, self.mood)

    def speak(self, identity: Sequence[int]) -> Task[Utterance]:
        yield from ()
        user, chance = self.speaker, draw(identity)
        user.calls.append("speak")
        if self._dialogue.turns:
            lift = user.LIFT.get(self._dialogue.turns[-1].text, 0.0)
            self.mood += int(chance.random() < lift)
        ended = bool(chance.random() < user.leaving)
        text = "" if ended and user.silent_exit else f"my mood is {self.mood}"
        self._dialogue = self._dialogue.said("user", text) if text else self._dialogue
        return Utterance(text, ended=ended, num_tokens=4)

    def hear(self, text: str) -> None:
        self._dialogue = self.speaker and self._dialogue.said("policy", text)

    def outcome(self) -> Task[OutcomeReading]:
        yield from ()
        self.speaker.calls.append("outcome")
        mute = str(self._dialogue.condition.attributes.get("mute", ""))
        if mute == "always" or (mute and any(t.text == mute for t in self._dialogue.turns)):
            return OutcomeReading(math.nan, math.nan)
        engagement = min(self.mood, MoodUser.TOP) / MoodUser.TOP
        return OutcomeReading(engagement, engagement)


class MoodUser(Double):
    """A user in a known mood: "good" lifts it often, anything else seldom; it may leave.

    The mood starts at the condition's `mood`. After each response it rises by one with the
    probability LIFT; then the user leaves with probability `leaving`. Its engagement is
    `mood / TOP`; unreadable where the condition says `mute`.
    """

    participant = MoodSide
    LIFT: ClassVar[dict[str, float]] = {"good": 0.8, "odd": 0.5, "bad": 0.1}
    TOP = 4

    def __init__(self, leaving: float = 0.2, *, silent_exit: bool = False):
        super().__init__()
        self.leaving, self.silent_exit = leaving, silent_exit

    def expected(
        self, mood: int, response: str | None, table: dict[str, float], turns_left: int
    ) -> float:
        """Exact expected engagement of `response` (None: of what `table` says) and of what
        follows, if `table` says all later responses; `turns_left` policy turns, this included."""
        if turns_left == 0:
            return min(mood, self.TOP) / self.TOP
        if response is None:
            return sum(p * self.expected(mood, a, table, turns_left) for a, p in table.items())
        lift = self.LIFT.get(response, 0.0)
        return sum(
            chance
            * (
                self.leaving * min(after, self.TOP) / self.TOP
                + (1 - self.leaving) * self.expected(after, None, table, turns_left - 1)
            )
            for chance, after in ((lift, mood + 1), (1 - lift, mood))
        )


@dataclasses.dataclass(frozen=True)
class MoodScenario:
    name: str = "mood"
    policy_opens: bool = False
    policy_prompt: str = "Lift the mood."
    outcome_pattern: re.Pattern[str] = re.compile(r"mood (\d)")
    outcome_unit: str = "mood"

    def simulator_prompt(self, condition: UserCondition) -> str:
        return f"Your mood is {condition.attributes['mood']}."

    def outcome_lines(self, condition: UserCondition) -> list[tuple[str, Outcome]]:
        return [(f"mood {i}", Outcome(i, i / MoodUser.TOP)) for i in range(MoodUser.TOP + 1)]

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        return f"mood {outcome.value:.0f}"

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        found = self.outcome_pattern.search(line)
        return found and Outcome(int(found[1]), int(found[1]) / MoodUser.TOP)

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        return outcome_value == MoodUser.TOP


EVEN = {"good": 0.25, "odd": 0.25, "bad": 0.5}


def even_policy() -> TablePolicy:
    return TablePolicy(lambda dialogue: EVEN)


def roots(count: int, **attributes: Any) -> list[Dialogue]:
    """Dialogues that the user has opened; the mood differs from one to the next."""
    return [
        Dialogue(
            f"d{i}",
            UserCondition(f"c{i}", {"mood": i % 3, **attributes}),
            turns=(Turn("user", f"hello from {i}"),),
        )
        for i in range(count)
    ]
