"""A policy that is a table and a user whose world is small enough to enumerate.

Both implement the speakers' protocol in plain Python. What they say is a function of the identity
they are given and of their row, and they check how they are used: a state that was consumed is
refused, and so is a turn out of order.
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


class State:
    """Rows of a double; refuses to be used again once it was consumed."""

    def __init__(self, rows: Sequence[Any]):
        self._rows: list[Any] | None = list(rows)

    @property
    def rows(self) -> list[Any]:
        assert self._rows is not None, "this state was consumed by an earlier call"
        return self._rows

    def consume(self) -> list[Any]:
        rows = self.rows
        self._rows = None
        return rows


class Rows:
    """What both doubles share: rows are dialogues as far as this side knows them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []  # method, rows

    def empty(self, rows: int) -> State:
        self.calls.append(("empty", rows))
        return State([None] * rows)

    def fork(self, state: State, rows: np.ndarray) -> State:
        self.calls.append(("fork", len(rows)))
        return State([state.rows[row] for row in rows])

    def store(
        self, state: State, rows: np.ndarray, source: State, source_rows: np.ndarray
    ) -> State:
        kept = state.consume()
        assert len(rows) == len(source_rows) == len(set(rows.tolist()))
        for row, source_row in zip(rows, source_rows, strict=True):
            kept[row] = source.rows[source_row]
        return State(kept)


def draw(identity: np.ndarray) -> np.random.Generator:
    return np.random.default_rng([int(part) for part in identity])


class TablePolicy(Rows):
    """Says `text` with the probability that `table(dialogue)` gives it."""

    def __init__(self, table: Callable[[Dialogue], dict[str, float]]):
        super().__init__()
        self.table = table

    def start(self, dialogues: Sequence[Dialogue]) -> State:
        self.calls.append(("start", len(dialogues)))
        return State(dialogues)

    def speak(
        self, state: State, identities: np.ndarray, active: np.ndarray
    ) -> tuple[State, list[Utterance | None]]:
        self.calls.append(("speak", len(active)))
        rows = state.consume()
        said: list[Utterance | None] = [None] * len(rows)
        for i in np.flatnonzero(active):
            table = self.table(rows[i])
            choice = draw(identities[i]).choice(len(table), p=list(table.values()))
            text = list(table)[choice]
            logprob = math.log(table[text]) / 2
            said[i] = Utterance(text, num_tokens=2, mean_logprob=logprob)
            rows[i] = rows[i].said("policy", text or "...")
        return State(rows), said

    def listen(self, state: State, texts: Sequence[str | None]) -> State:
        rows = state.consume()
        return State(
            [
                row if text is None else row.said("user", text)
                for row, text in zip(rows, texts, strict=True)
            ]
        )


@dataclasses.dataclass(frozen=True)
class Guest:
    """A row of `MoodUser`: the words and what the user keeps to itself."""

    dialogue: Dialogue
    mood: int


class MoodUser(Rows):
    """A user in a known mood: "good" lifts it often, anything else seldom; it may leave.

    The mood starts at the condition's `mood`. After each response it rises by one with the
    probability LIFT; then the user leaves with probability `leaving`. Its engagement is
    `mood / TOP`; unreadable where the condition says `mute`.
    """

    LIFT: ClassVar[dict[str, float]] = {"good": 0.8, "odd": 0.5, "bad": 0.1}
    TOP = 4

    def __init__(self, leaving: float = 0.2, *, silent_exit: bool = False):
        super().__init__()
        self.leaving, self.silent_exit = leaving, silent_exit

    def start(self, dialogues: Sequence[Dialogue]) -> State:
        self.calls.append(("start", len(dialogues)))
        return State([Guest(dialogue, self._mood(dialogue)) for dialogue in dialogues])

    def _mood(self, dialogue: Dialogue) -> int:
        """As the user told it last; before that the condition's."""
        told = [re.fullmatch(r"my mood is (\d+)", turn.text) for turn in dialogue.turns]
        moods = [int(match[1]) for match in told if match]
        return moods[-1] if moods else int(dialogue.condition.attributes.get("mood", 0))

    def speak(
        self, state: State, identities: np.ndarray, active: np.ndarray
    ) -> tuple[State, list[Utterance | None]]:
        self.calls.append(("speak", len(active)))
        rows = state.consume()
        said: list[Utterance | None] = [None] * len(rows)
        for i in np.flatnonzero(active):
            guest, chance = rows[i], draw(identities[i])
            mood = guest.mood
            if guest.dialogue.turns:
                mood += int(chance.random() < self.LIFT.get(guest.dialogue.turns[-1].text, 0.0))
            ended = bool(chance.random() < self.leaving)
            text = "" if ended and self.silent_exit else f"my mood is {mood}"
            said[i] = Utterance(text, ended=ended, num_tokens=4)
            dialogue = guest.dialogue.said("user", text) if text else guest.dialogue
            rows[i] = Guest(dialogue, mood)
        return State(rows), said

    def listen(self, state: State, texts: Sequence[str | None]) -> State:
        rows = state.consume()
        return State(
            [
                row if text is None else Guest(row.dialogue.said("policy", text), row.mood)
                for row, text in zip(rows, texts, strict=True)
            ]
        )

    def outcomes(self, state: State, active: np.ndarray) -> list[OutcomeReading | None]:
        self.calls.append(("outcomes", len(active)))
        return [self._read(row) if on else None for row, on in zip(state.rows, active, strict=True)]

    def _read(self, guest: Guest) -> OutcomeReading:
        mute = str(guest.dialogue.condition.attributes.get("mute", ""))
        if mute == "always" or (mute and any(t.text == mute for t in guest.dialogue.turns)):
            return OutcomeReading(math.nan, math.nan)
        engagement = min(guest.mood, self.TOP) / self.TOP
        return OutcomeReading(engagement, engagement)

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
