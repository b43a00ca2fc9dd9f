"""Preferences as other tools keep them: a prompt and two responses to it, the better one first.

`ixjax.dialogue.readers.preferences` reads them from files, `ixjax.dialogue.preference_tokens` makes
tokens of them. What is no preference (two equal responses) or was there before is left out here,
and whatever is left out is counted and can be found by its line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

from ixjax.dialogue.rendering import Said
from ixjax.io import NO_EFFECT, InputError

PreferenceFormat = Literal["auto", "ixjax", "trl", "ultrafeedback", "alpaca"]
SHOWN_LINES = 10  # of each reason, in an account

DROP_RULES = (
    "several_messages",
    "empty_prompt",
    "empty_response",
    "equal_text",
    "small_margin",
    "duplicate",
    "too_long",
)
"""Why a row of a file is no pair to train on; the first that applies counts."""


@dataclasses.dataclass(frozen=True)
class PreferencesConfig:
    """A file of preferences, a source of pairs beside those of the run."""

    path: str = dataclasses.field(default="", metadata=NO_EFFECT)
    """The file, JSON lines or one JSON list; empty: none."""
    format: PreferenceFormat = "auto"
    """How to read it: ixjax (pairs.jsonl), trl, ultrafeedback, alpaca; auto: by its first row."""
    alone: bool = False
    """Align on this file alone; the run then needs no search."""
    max_prompt: int = 0
    """Most tokens of a prompt, the oldest go first; 0: what the response leaves of a context."""
    min_margin: float = 0.0
    """Least difference of the two scores (values), where the file has them."""

    def __post_init__(self) -> None:
        """Refuse settings that name nothing to read."""
        if self.format not in get_args(PreferenceFormat):
            raise InputError(
                f"preferences.format is {self.format!r}; expected one of "
                f"{', '.join(get_args(PreferenceFormat))}"
            )
        if self.alone and not self.path:
            raise InputError("preferences.alone: no file is given; set --preferences.path FILE")
        if self.max_prompt < 0:
            raise InputError(
                f"preferences.max_prompt is {self.max_prompt}; expected 1 or more, or 0 (no limit "
                "of its own)"
            )
        if not self.min_margin >= 0:
            raise InputError(f"preferences.min_margin is {self.min_margin}; expected 0 or more")
        if self.min_margin and not self.path:
            raise InputError(
                "preferences.min_margin: no file is given; set --preferences.path FILE (pairs of a "
                "search have pairs.min_margin)"
            )


class ChatPrompt(NamedTuple):
    """A conversation up to where the assistant speaks.

    system: the instructions; None: none are given.
    turns: the oldest first; `own` ones are the assistant's.
    """

    system: str | None
    turns: tuple[Said, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two responses to one prompt.

    where: file and line, for errors and accounts.
    prompt: a conversation for the chat template, or the text that the model reads as it stands.
    chosen, rejected: what the assistant says, or how the text goes on.
    margin: how much better the chosen one is, where the file says so.
    """

    where: str
    prompt: ChatPrompt | str
    chosen: str
    rejected: str
    margin: float | None = None


@dataclasses.dataclass
class PreferenceAccount:
    """What became of the rows of a file: read = kept + dropped, over all reasons.

    read: rows found.
    dropped: where the rows stand that are no pair to train on, by the first rule that applied.
    shortened: prompts that lost their oldest turns or tokens.
    dropped_turns: turns that they lost.
    cut_tokens: tokens that they lost of the oldest text that was left.
    """

    read: int = 0
    dropped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    shortened: int = 0
    dropped_turns: int = 0
    cut_tokens: int = 0

    def drop(self, rule: str, where: str) -> None:
        """Count a row that a rule of `DROP_RULES` leaves out."""
        self.dropped.setdefault(rule, []).append(where)

    def facts(self) -> dict[str, Any]:
        """The account as JSON: how many, and where the first of them stand."""
        left_out = {rule: self.dropped[rule] for rule in DROP_RULES if rule in self.dropped}
        return {
            "read": self.read,
            "kept": self.read - sum(map(len, left_out.values())),
            "dropped": {rule: len(places) for rule, places in left_out.items()},
            "dropped_at": {rule: places[:SHOWN_LINES] for rule, places in left_out.items()},
            "shortened_prompts": self.shortened,
            "dropped_turns": self.dropped_turns,
            "cut_tokens": self.cut_tokens,
        }


def sound_preferences(
    preferences: Iterable[Preference], account: PreferenceAccount, *, min_margin: float = 0.0
) -> Iterator[Preference]:
    """Those that prefer one response to another, each once.

    Args:
        preferences: in the order of the file.
        account: is filled.
        min_margin: least difference of scores, where there are any.
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
