"""What a reader did to a corpus, in numbers that add up; and the cleaning that readers share."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from ixjax.dialogue.types import Role, Turn, text_problem


@dataclasses.dataclass
class ReadingAccount:
    """Counts of one reading: dialogues read = kept + dropped (over all reasons).

    read: dialogues found.
    kept: dialogues that went on.
    dropped: dialogues left out, by reason.
    turns: what happened to turns, by what (merged, cut off).
    outcomes: dialogues kept without an outcome, by reason.
    """

    read: int = 0
    kept: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    turns: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def rows(self) -> list[tuple[str, int]]:
        """Label and count of every line of the printed account."""
        return [
            ("dialogues read", self.read),
            *((f"dialogues dropped: {why}", n) for why, n in sorted(self.dropped.items())),
            ("dialogues kept", self.kept),
            *((f"no outcome: {why}", n) for why, n in sorted(self.outcomes.items())),
            *((f"turns {what}", n) for what, n in sorted(self.turns.items())),
        ]


def merge_turns(said: Sequence[tuple[Role, str]], account: ReadingAccount) -> tuple[Turn, ...]:
    """Join what one side said in a row, with single spaces; empty texts vanish."""
    merged: list[tuple[Role, str]] = []
    for role, raw in said:
        text = " ".join(raw.split())
        if not text:
            account.turns["empty, left out"] += 1
        elif merged and merged[-1][0] == role:
            account.turns["merged into the one before"] += 1
            merged[-1] = (role, f"{merged[-1][1]} {text}")
        else:
            merged.append((role, text))
    return tuple(Turn(role, text) for role, text in merged)


def is_readable(text: object) -> bool:
    """Whether a text has no NUL and no lone surrogate (empty ones are merged away later)."""
    return isinstance(text, str) and (not text.strip() or text_problem(text) is None)


def has_both_sides(turns: Sequence[Turn]) -> bool:
    """A dialogue takes two."""
    return {turn.role for turn in turns} == {"policy", "user"}
