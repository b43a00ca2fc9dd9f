"""Play: a policy talks to a user under held-out conditions, many dialogues at once.

The draws of either side are a function of (condition, sample, turn, speaker) and of its seed, never
of a position in a batch. So all methods meet the same user draws under the same condition, which
makes their differences paired, and the batch size changes nothing (docs/algorithm.md,
"Evaluation").
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ixjax import generation, io
from ixjax.dialogue.types import Dialogue, UserCondition, Utterance
from ixjax.generation import Rollout, Speaker, User
from ixjax.generation.turns import POLICY, USER, hashed, words
from ixjax.io import NO_EFFECT, InputError


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How the methods are compared."""

    conditions: int = 128
    """Held-out conditions, the first ones; all if there are fewer."""
    samples: int = 1
    """Dialogues per condition, with separate draws; methods are paired sample by sample."""
    batch: int = dataclasses.field(default=64, metadata=NO_EFFECT)
    """Most dialogues played at once."""
    max_turns: int = 8
    """Policy turns after which a dialogue is over."""
    bootstrap: int = 2000
    """Bootstrap resamples for each 95 % interval."""
    candidates: int = 4
    """Best of n: responses sampled per turn."""
    rollouts: int = 1
    """Best of n: rollouts from each response."""
    think: int = 4
    """i×MCTS at inference: iterations before each turn; 0 leaves the method out."""
    fidelity_dialogues: int = 64
    """Held-out human dialogues for the simulators' fidelity, the first ones."""

    def __post_init__(self) -> None:
        """Refuse counts below 1; `think` may be 0."""
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name != "think")
            if value < least:
                raise InputError(f"evaluation.{field.name} is {value}; expected {least} or more")


@dataclasses.dataclass(frozen=True)
class Played:
    """One dialogue of the evaluation.

    condition: id of the condition.
    sample: which of the condition's dialogues.
    dialogue: its turns, the root's included.
    engagement: in [0, 1], from the user's read-out; nan if unreadable.
    value: in the scenario's unit; nan if unreadable.
    released: probability of a full success; None if the read-out has no probabilities.
    ended: whether the user closed the dialogue before `max_turns`.
    response_tokens: tokens of each played policy turn, oldest first.
    """

    condition: str
    sample: int
    dialogue: Dialogue
    engagement: float
    value: float
    released: float | None
    ended: bool
    response_tokens: tuple[int, ...]

    @property
    def turns(self) -> int:
        """Return the number of policy turns played."""
        return len(self.response_tokens)

    @property
    def responses(self) -> list[str]:
        """Return the policy's turns, without the human ones of the root."""
        said = [turn.text for turn in self.dialogue.turns if turn.role == "policy"]
        return said[len(said) - self.turns :]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; unreadable figures are null."""
        return {
            "condition": self.condition,
            "sample": self.sample,
            "dialogue": self.dialogue.to_json(),
            "engagement": _or_null(self.engagement),
            "value": _or_null(self.value),
            "released": self.released,
            "ended": self.ended,
            "response_tokens": list(self.response_tokens),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Played:
        """Return the dialogue that `to_json` wrote.

        Raises:
            InputError: a field is missing or of another type.
        """
        try:
            dialogue = Dialogue.from_json(record["dialogue"])
            if not isinstance(record["condition"], str):
                raise TypeError(f"condition is {record['condition']!r}, not a string")
            condition = UserCondition(record["condition"], dialogue.condition.attributes)
            return cls(
                condition=record["condition"],
                sample=record["sample"],
                dialogue=dataclasses.replace(dialogue, condition=condition),
                engagement=_or_nan(record["engagement"]),
                value=_or_nan(record["value"]),
                released=record["released"],
                ended=record["ended"],
                response_tokens=tuple(record["response_tokens"]),
            )
        except KeyError as error:
            raise InputError(f"{error} is missing; expected a dialogue of an evaluation") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{error}; expected a dialogue of an evaluation") from None


def read_played(path: str | Path) -> list[Played]:
    """Read the dialogues of one method with one user.

    Raises:
        InputError: there is no such file, or a line is not a dialogue of an evaluation.
    """
    found = []
    for number, record in io.read_numbered_jsonl(path, schema=io.PLAYED_SCHEMA):
        try:
            found.append(Played.from_json(record))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return found


def play(
    policy: Speaker, user: User, roots: Sequence[Dialogue], *, config: EvaluationConfig
) -> list[Played]:
    """Play `config.samples` dialogues between policy and user under each condition.

    Args:
        policy: moves first.
        user: answers, may leave, and reads the outcome.
        roots: the beginning of each dialogue; each has another condition.
        config: uses `samples`, `batch` and `max_turns`; the caller applies `conditions`.

    Returns:
        One for each root and sample; samples of a root are adjacent.

    Raises:
        InputError: there is no root.
        ValueError: several roots have a condition of the same id.
    """
    if not roots:
        raise InputError("there is no held-out condition; expected one or more to evaluate under")
    name, count = collections.Counter(root.condition.id for root in roots).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} roots have the condition id {name!r}; expected different ids")
    rows = [(root, sample) for root in roots for sample in range(config.samples)]
    finished = generation.play(
        policy,
        user,
        [(root, (hashed(root.condition.id), sample)) for root, sample in rows],
        max_turns=config.max_turns,
        rows=config.batch,
    )
    return [_played(*row, found) for row, found in zip(rows, finished, strict=True)]


def _played(root: Dialogue, sample: int, found: Rollout) -> Played:
    dialogue, reading = root, found.reading
    for response, reaction in zip(found.said[POLICY], found.said[USER], strict=True):
        dialogue = _exchange(dialogue, response, reaction)
    return Played(
        condition=root.condition.id,
        sample=sample,
        dialogue=dialogue,
        engagement=reading.engagement,
        value=reading.value,
        released=reading.released,
        ended=found.ended,
        response_tokens=found.tokens(POLICY),
    )


def _exchange(dialogue: Dialogue, response: Utterance, reaction: Utterance) -> Dialogue:
    """Append both turns; a user who left without a word has no turn."""
    dialogue = dialogue.said("policy", words(response))
    if reaction.ended and not reaction.text:
        return dialogue
    return dialogue.said("user", words(reaction))


def _or_null(value: float) -> float | None:
    """Return None for nan, which JSON lacks."""
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
