"""Counts of dialogues read, kept and dropped, and the checks that readers share."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from ixjax.dialogue.types import Role, Turn, text_problem
from ixjax.io import InputError


@dataclasses.dataclass
class ReadingAccount:
    """Counts of one reading: dialogues read = kept + dropped (over all reasons).

    read: dialogues found.
    kept: dialogues returned.
    dropped: dialogues left out, by reason.
    turns: turns changed, by change (merged, cut off).
    outcomes: dialogues kept without an outcome, by reason.
    """

    read: int = 0
    kept: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    turns: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def rows(self) -> list[tuple[str, int]]:
        """Return label and count of every line of the printed account."""
        return [
            ("dialogues read", self.read),
            *((f"dialogues dropped: {why}", n) for why, n in sorted(self.dropped.items())),
            ("dialogues kept", self.kept),
            *((f"no outcome: {why}", n) for why, n in sorted(self.outcomes.items())),
            *((f"turns {what}", n) for what, n in sorted(self.turns.items())),
        ]


def merge_turns(said: Sequence[tuple[Role, str]], account: ReadingAccount) -> tuple[Turn, ...]:
    """Join consecutive turns of one side with single spaces; empty texts are left out."""
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


def check_characters(where: str, name: str, text: str) -> None:
    """Refuse a text with a NUL or a lone surrogate; `merge_turns` leaves out empty texts.

    Raises:
        InputError: names the field and the character.
    """
    problem = text_problem(text) if text.strip() else None
    if problem is not None:
        raise InputError(f"{where}: {name} {problem}; expected plain Unicode text")


def kind(value: Any) -> str:
    """Return the type of a JSON value, for errors."""
    return "null" if value is None else type(value).__name__


def has_both_sides(turns: Sequence[Turn]) -> bool:
    """Return whether both sides speak."""
    return {turn.role for turn in turns} == {"policy", "user"}
