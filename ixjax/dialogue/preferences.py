"""Preferences as other tools store them: a prompt and two responses, the better one first.

`ixjax.dialogue.readers.preferences` reads them from files, `ixjax.dialogue.preference_tokens`
renders them as tokens. This module drops rows without a preference (two equal responses) and
duplicates; every dropped row is counted, and its line recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

from ixjax.dialogue.rendering import SpeakerTurn
from ixjax.io import NO_EFFECT, InputError

PreferenceFormat = Literal["auto", "ixjax", "trl", "ultrafeedback", "alpaca"]
SHOWN_LINES = 10  # lines listed for each reason in an account

DROP_RULES = (
    "several_messages",
    "empty_prompt",
    "empty_response",
    "equal_text",
    "small_margin",
    "duplicate",
    "too_long",
)
"""Reasons to drop a row of a file; the first that applies counts."""


@dataclasses.dataclass(frozen=True)
class PreferencesConfig:
    """A file of preferences, a source of pairs in addition to the search."""

    path: str = dataclasses.field(default="", metadata=NO_EFFECT)
    """The file, JSON lines or one JSON list; empty: none."""
    format: PreferenceFormat = "auto"
    """How to read it: ixjax (pairs.jsonl), trl, ultrafeedback, alpaca; auto: by its first row."""
    alone: bool = False
    """Align on this file alone; the run then needs no search."""
    max_prompt: int = 0
    """Most tokens of a prompt, the oldest are cut; 0: the context minus the longer response."""
    min_margin: float = 0.0
    """Least difference of the two scores (values), if the file has scores."""

    def __post_init__(self) -> None:
        """Refuse settings out of range, and settings that need a file without one."""
        if self.format not in get_args(PreferenceFormat):
            raise InputError(
                f"preferences.format is {self.format!r}; expected one of "
                f"{', '.join(get_args(PreferenceFormat))}"
            )
        if self.alone and not self.path:
            raise InputError(
                "preferences.alone is True; expected a file with it: set --preferences.path FILE"
            )
        if self.max_prompt < 0:
            raise InputError(
                f"preferences.max_prompt is {self.max_prompt}; expected 1 or more, or 0 (no limit)"
            )
        if not self.min_margin >= 0:
            raise InputError(f"preferences.min_margin is {self.min_margin}; expected 0 or more")
        if self.min_margin and not self.path:
            raise InputError(
                f"preferences.min_margin is {self.min_margin}; expected a file with it: set "
                "--preferences.path FILE, or --pairs.min-margin for the pairs of a search"
            )


class ChatPrompt(NamedTuple):
    """A conversation after which the assistant speaks.

    system: the instructions; None: there are none.
    turns: the oldest first; `own` turns are the assistant's.
    """

    system: str | None
    turns: tuple[SpeakerTurn, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two responses to one prompt.

    where: file and line, for errors and accounts.
    prompt: a conversation for the chat template, or a text that the model reads unchanged.
    chosen, rejected: the assistant's messages, or continuations of the text.
    margin: chosen score minus rejected score; None if the file has no scores.
    """

    where: str
    prompt: ChatPrompt | str
    chosen: str
    rejected: str
    margin: float | None = None


@dataclasses.dataclass
class PreferenceAccount:
    """Counts of the rows of a file: read = kept + dropped, over all reasons.

    read: rows found.
    dropped: file and line of each dropped row, by the first rule that applied.
    shortened: prompts that lost their oldest turns or tokens.
    dropped_turns: turns that these prompts lost.
    cut_tokens: tokens that these prompts lost within a turn or text.
    """

    read: int = 0
    dropped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    shortened: int = 0
    dropped_turns: int = 0
    cut_tokens: int = 0

    def drop(self, rule: str, where: str) -> None:
        """Count a row that a rule of `DROP_RULES` drops."""
        self.dropped.setdefault(rule, []).append(where)

    def facts(self) -> dict[str, Any]:
        """Return the account as JSON: counts, and the lines of the first rows of each reason."""
        dropped = {rule: self.dropped[rule] for rule in DROP_RULES if rule in self.dropped}
        return {
            "read": self.read,
            "kept": self.read - sum(map(len, dropped.values())),
            "dropped": {rule: len(lines) for rule, lines in dropped.items()},
            "dropped_at": {rule: lines[:SHOWN_LINES] for rule, lines in dropped.items()},
            "shortened_prompts": self.shortened,
            "dropped_turns": self.dropped_turns,
            "cut_tokens": self.cut_tokens,
        }


def sound_preferences(
    preferences: Iterable[Preference], account: PreferenceAccount, *, min_margin: float = 0.0
) -> Iterator[Preference]:
    """Yield preferences that pass `DROP_RULES`, each once.

    Args:
        preferences: in the order of the file.
        account: counts of the file, updated.
        min_margin: least difference of scores, for preferences with scores.
    """
    seen: set[tuple[Any, str, str]] = set()
    for preference in preferences:
        key = (preference.prompt, preference.chosen.strip(), preference.rejected.strip())
        rule = _broken_rule(preference, min_margin) or ("duplicate" if key in seen else None)
        if rule is None:
            seen.add(key)
            yield preference
        else:
            account.drop(rule, preference.where)


def _broken_rule(preference: Preference, min_margin: float) -> str | None:
    chosen, rejected = preference.chosen.strip(), preference.rejected.strip()
    if _is_empty(preference.prompt):
        return "empty_prompt"
    if not (chosen and rejected):
        return "empty_response"
    if chosen == rejected:
        return "equal_text"
    if preference.margin is not None and preference.margin < min_margin:
        return "small_margin"
    return None


def _is_empty(prompt: ChatPrompt | str) -> bool:
    if isinstance(prompt, str):
        return not prompt
    return not all(turn.text.strip() for turn in prompt.turns)
