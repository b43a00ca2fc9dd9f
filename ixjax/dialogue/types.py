"""The types of a dialogue: a user's condition, alternating turns, and the outcome.

Two roles speak: the `policy` (the model to be aligned; supporter, persuader) and the `user`
(seeker, persuadee; played by the simulator). All types are immutable; the module imports no jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Role = Literal["policy", "user"]
ROLES: tuple[Role, ...] = ("policy", "user")


@dataclasses.dataclass(frozen=True)
class Turn:
    """The words of one side up to the other's next turn."""

    role: Role
    text: str

    def __post_init__(self) -> None:
        """Refuse an unknown role and texts that no tokenizer or JSON file can hold."""
        if self.role not in ROLES:
            raise ValueError(f"role is {self.role!r}; expected 'policy' or 'user'")
        problem = text_problem(self.text)
        if problem:
            raise ValueError(f"text {problem}; expected a text")


def text_problem(text: Any) -> str | None:
    """Return why this can't be the text of a turn, or None."""
    if not isinstance(text, str):
        return "is null" if text is None else f"is {text!r:.40}"
    if not text.strip():
        return "is empty"
    if "\x00" in text:
        return f"holds a NUL character at {text.index(chr(0))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate (U+{ord(text[error.start]):04X}) at {error.start}"
    return None


@dataclasses.dataclass(frozen=True)
class UserCondition:
    """The simulated user's facts about itself; the policy never sees them."""

    id: str
    attributes: Mapping[str, str | int | float]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a dialogue.

    value: in the scenario's unit (final intensity, dollars).
    engagement: in [0, 1].
    """

    value: float
    engagement: float

    def __post_init__(self) -> None:
        """Refuse an engagement outside its range (nan included)."""
        if not 0 <= self.engagement <= 1:
            raise ValueError(f"engagement is {self.engagement}; expected a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A dialogue, finished or in progress: roles alternate.

    groups: names that would leak between splits (a situation, a participant); dialogues that share
    a name stay in one split.
    """

    id: str
    condition: UserCondition
    turns: tuple[Turn, ...]
    outcome: Outcome | None = None
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse turns that do not alternate."""
        for i in range(1, len(self.turns)):
            if self.turns[i].role == self.turns[i - 1].role:
                raise ValueError(f"turns {i - 1} and {i} are both the {self.turns[i].role}'s")

    def said(self, role: Role, text: str) -> Dialogue:
        """Return this dialogue with one more turn and no outcome."""
        turns = (*self.turns, Turn(role, text))
        return Dialogue(self.id, self.condition, turns, groups=self.groups)

    def before(self, turn: int) -> Dialogue:
        """Return the first `turn` turns without an outcome."""
        return dataclasses.replace(self, turns=self.turns[:turn], outcome=None)

    def to_json(self) -> dict[str, Any]:
        """Return the record of docs/data-formats.md, without the condition's id."""
        return {
            "id": self.id,
            "condition": dict(self.condition.attributes),
            "turns": [{"role": turn.role, "text": turn.text} for turn in self.turns],
            "outcome": None if self.outcome is None else dataclasses.asdict(self.outcome),
            "groups": list(self.groups),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Dialogue:
        """Return the dialogue of a record from `to_json`; `corpora` reads other files."""
        outcome = record["outcome"]
        return cls(
            id=record["id"],
            condition=UserCondition(record["id"], record["condition"]),
            turns=tuple(Turn(turn["role"], turn["text"]) for turn in record["turns"]),
            outcome=None if outcome is None else Outcome(**outcome),
            groups=tuple(record.get("groups", ())),
        )


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One turn as a speaker produced it.

    text: the words; empty only if `ended`.
    ended: whether the user closed the dialogue with this turn.
    num_tokens: tokens sampled (words of a scripted speaker).
    truncated: whether the turn was cut at the token limit.
    mean_logprob: mean over its tokens, under the full softmax; None for a scripted speaker.
    """

    text: str
    ended: bool = False
    num_tokens: int = 0
    truncated: bool = False
    mean_logprob: float | None = None


@dataclasses.dataclass(frozen=True)
class OutcomeReading:
    """An outcome as the simulator predicts it; both numbers are nan if it is unreadable.

    engagement: in [0, 1], or its expectation.
    value: in the scenario's unit, or its expectation.
    released: probability of a full success; None if the reading has no probabilities.
    """

    engagement: float
    value: float
    released: float | None = None
