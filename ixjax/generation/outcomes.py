"""Dialogue outcomes, read from a model that plays the user.

`expected` scores every possible closing line after the dialogue; `sampled` reads the line that the
model wrote. See docs/algorithm.md, "Engagement".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ixjax.dialogue.chat import View
from ixjax.dialogue.types import Outcome, OutcomeReading, UserCondition
from ixjax.generation.requests import MOST_PARTS
from ixjax.io import InputError

ReadOut = Literal["expected", "sampled"]

OUTCOME_TOKENS = 32  # room kept in every context for the marker and one closing line
LINE = 1  # last number of a closing line's identity
DECIMALS = 4  # outcomes are rounded: on a CPU their last bits depend on the batch


@dataclasses.dataclass(frozen=True)
class Closing:
    """The closing lines that a condition allows.

    outcomes: of each line.
    released: whether each is a full success.
    prefix: the marker, and the tokens that all lines begin with.
    tails: the remaining tokens of each line, its end token included.
    """

    outcomes: tuple[Outcome, ...]
    released: tuple[bool, ...]
    prefix: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        view: View,
        condition: UserCondition,
        known: dict[tuple[str, ...], list[list[int]]],
    ) -> Closing:
        """Return the closing lines of a condition.

        Args:
            view: of the user's side.
            condition: of the user.
            known: a cache of the tokens of lines; added to.

        Raises:
            InputError: a line is longer than the room that every context keeps for it.
        """
        scenario = view.scenario
        lines, outcomes = zip(*scenario.outcome_lines(condition), strict=True)
        if lines not in known:
            known[lines] = line_tokens(view, lines)
        tokens = known[lines]
        shared = _common_prefix(tokens)
        return cls(
            outcomes,
            tuple(scenario.released(condition, outcome.value) for outcome in outcomes),
            (*view.template.marker_ids, *tokens[0][:shared]),
            tuple(tuple(line[shared:]) for line in tokens),
        )

    def expectation(self, scores: np.ndarray) -> OutcomeReading:
        """Return the mean outcome: g = sum_i softmax(log p)_i g_i.

        Args:
            scores: `[C]` log-probability of each line.
        """
        weights = np.exp(scores.astype(np.float64) - scores.max())
        weights /= weights.sum()
        means = np.array(
            [
                [outcome.engagement for outcome in self.outcomes],
                [outcome.value for outcome in self.outcomes],
                [float(full) for full in self.released],
            ]
        )
        engagement, value, full = (means @ weights).round(DECIMALS).tolist()
        return OutcomeReading(engagement=engagement, value=value, released=full)


def line_tokens(view: View, lines: Sequence[str]) -> list[list[int]]:
    """Return the tokens of closing lines, each with its end token.

    Raises:
        InputError: see `Closing.of`.
    """
    template = view.template
    tokens = [[*template.encode(line), template.end_ids[0]] for line in lines]
    longest = max(range(len(lines)), key=lambda i: len(tokens[i]))
    room = line_room(view)
    if len(tokens[longest]) > room:
        raise InputError(
            f"the outcome line {lines[longest]!r} has {len(tokens[longest])} tokens; contexts "
            f"keep room for {room}. Shorten the scenario's outcome lines"
        )
    return tokens


def line_room(view: View) -> int:
    """Return the most tokens of a closing line."""
    return OUTCOME_TOKENS - len(view.template.marker_ids)


def line_identity(identity: Sequence[int]) -> tuple[int, ...]:
    """Return the identity of a closing line, from that of the turn before it.

    No turn has `LINE` as its last number, so no turn shares the line's random numbers.
    """
    if len(identity) >= MOST_PARTS:
        raise ValueError(
            f"an identity has {len(identity)} numbers; expected at most {MOST_PARTS - 1}"
        )
    return (*identity, *(0,) * (MOST_PARTS - 1 - len(identity)), LINE)


def reading_of(outcome: Outcome | None) -> OutcomeReading:
    """Return the reading of a closing line; an unreadable one has nan, never 0."""
    if outcome is None:
        return OutcomeReading(engagement=math.nan, value=math.nan)
    return OutcomeReading(engagement=outcome.engagement, value=outcome.value)


def _common_prefix(lines: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens that all lines begin with; each keeps at least one more."""
    shortest = min(len(line) for line in lines) - 1
    same = (len({line[i] for line in lines}) == 1 for i in range(shortest))
    return next((i for i, equal in enumerate(same) if not equal), shortest)
