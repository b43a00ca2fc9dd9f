"""What dialogues have come to, read from a model that plays the user.

Either every closing line that is possible is scored behind the dialogue (`expected`), or the line
that the model wrote itself is read (`sampled`); docs/algorithm.md, "Engagement".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ixjax.dialogue.chat import View
from ixjax.dialogue.types import Outcome, OutcomeReading, UserCondition
from ixjax.generation.buckets import bucket, filled
from ixjax.generation.contexts import Turns
from ixjax.generation.engine import Engine
from ixjax.generation.rows import Rows, held
from ixjax.io import InputError

ReadOut = Literal["expected", "sampled"]

OUTCOME_TOKENS = 32  # room kept in every context for the marker and one closing line
LINE_PARTS = 8  # of what a closing line is drawn by; a turn has fewer
LINE = 1  # the last of them
# Of what models are read for. On a CPU the last bits of what is computed for a row depend on which
# part of a batch which thread was given; so they are not told.
DECIMALS = 4


class Outcomes:
    """Reads outcomes from the contexts of one speaker.

    Args:
        engine: the speaker's.
        view: of the user's side.
        readout: `expected` or `sampled`.
        turns: how this side's turns are drawn, from identities `[S, k]` and limits.
    """

    def __init__(
        self,
        engine: Engine,
        view: View,
        readout: ReadOut,
        turns: Callable[[np.ndarray, np.ndarray], Turns],
    ):
        self._engine, self._view, self._readout, self._turns = engine, view, readout, turns

    def read(self, state: Rows, active: np.ndarray) -> list[OutcomeReading | None]:
        """Engagement of each active row; contexts hold the whole dialogue.

        Raises:
            ValueError: this speaker is the policy, which has no outcome.
        """
        if self._view.role != "user":
            raise ValueError("only the user's side has an outcome; this speaker is the policy")
        if self._readout == "sampled":
            return self._sampled(state, active)
        return self._expected(state, active)

    def _expected(self, state: Rows, active: np.ndarray) -> list[OutcomeReading | None]:
        scenario = self._view.scenario
        readings: list[OutcomeReading | None] = [None] * len(active)
        rows = [int(row) for row in np.flatnonzero(active)]
        if not rows:
            return readings
        conditions = [held(state.dialogues[row], row).condition for row in rows]
        possible, prefixes, tails = zip(*map(self._closing, conditions), strict=True)
        most = max(map(len, tails))  # conditions may differ in how many outcomes they have
        tails = [[*lines, *[[]] * (most - len(lines))] for lines in tails]
        scores = self._engine.score(state.contexts, prefixes, tails, rows)
        for i, row in enumerate(rows):
            outcomes = possible[i]
            released = [scenario.released(conditions[i], o.value) for o in outcomes]
            readings[row] = _expectation(scores[i, : len(outcomes)], outcomes, released)
        return readings

    def _closing(
        self, condition: UserCondition
    ) -> tuple[list[Outcome], list[int], list[list[int]]]:
        """The possible outcomes; the tokens that all their lines begin with; the rest of each."""
        possible = self._view.scenario.outcome_lines(condition)
        lines = self.line_tokens([line for line, _ in possible])
        shared = _common_prefix(lines)
        prefix = [*self._view.template.marker_ids, *lines[0][:shared]]
        return [outcome for _, outcome in possible], prefix, [line[shared:] for line in lines]

    def line_tokens(self, lines: Sequence[str]) -> list[list[int]]:
        """Closing lines with their end token.

        Raises:
            InputError: one does not fit into the room that every context keeps for it.
        """
        template = self._view.template
        tokens = [[*template.encode(line), template.end_ids[0]] for line in lines]
        longest = max(range(len(lines)), key=lambda i: len(tokens[i]))
        room = OUTCOME_TOKENS - len(template.marker_ids)
        if len(tokens[longest]) > room:
            raise InputError(
                f"the outcome line {lines[longest]!r} has {len(tokens[longest])} tokens; contexts "
                f"keep room for {room}: shorten the scenario's outcome lines"
            )
        return tokens

    def _sampled(self, state: Rows, active: np.ndarray) -> list[OutcomeReading | None]:
        lines = self.drawn_lines(state, active)
        readings: list[OutcomeReading | None] = [None] * len(active)
        for row in map(int, np.flatnonzero(active)):
            condition = held(state.dialogues[row], row).condition
            readings[row] = _reading(self._view.scenario.read_outcome(condition, lines[row] or ""))
        return readings

    def drawn_lines(self, state: Rows, active: np.ndarray) -> list[str | None]:
        """Lines as generated; a row that was cut before it closed has its line drawn now."""
        lines, template = list(state.lines), self._view.template
        cut_off = [int(row) for row in np.flatnonzero(active) if lines[row] is None]
        room = OUTCOME_TOKENS - len(template.marker_ids)
        size = self._line_rows(len(lines))  # always as many, so that nothing compiles anew
        for start in range(0, len(cut_off), size):
            rows = cut_off[start : start + size]
            everyone = filled(rows, size)
            contexts = self._engine.fork(state.contexts, everyone)
            contexts = self._engine.extend(contexts, [template.marker_ids] * size)
            turns = self._turns(
                _line_identities([state.identities[row] for row in everyone]),
                np.where(np.arange(size) < len(rows), room, 0),
            )
            _, decoded = self._engine.decode(contexts, dataclasses.replace(turns, stops=0))
            for row, tokens in zip(rows, decoded.tokens, strict=False):
                lines[row] = template.decode(tokens)
        return lines

    def _line_rows(self, rows: int) -> int:
        """Closing lines that are drawn at once."""
        return min(self._engine.config.rows, bucket(rows, smallest=1))

    def scored_shapes(self, conditions: Sequence[UserCondition]) -> list[tuple[int, int, int]]:
        """(tokens of the prefix, lines, tokens of the longest) that will be scored."""
        if self._view.role != "user" or self._readout != "expected" or not conditions:
            return []
        found = set()
        for condition in conditions:
            _, prefix, tails = self._closing(condition)
            found.add((len(prefix), len(tails), max(map(len, tails))))
        return sorted({*found, tuple(max(column) for column in zip(*found, strict=True))})

    def drawn_shapes(self, pools: Sequence[int]) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """(rows, parts of an identity, copies) with which lines will be drawn from such pools."""
        if self._view.role != "user" or self._readout != "sampled":
            return []
        sizes = {self._line_rows(rows) for rows in pools}
        return [(rows, LINE_PARTS, [(rows, pool) for pool in pools]) for rows in sizes]


def _common_prefix(lines: Sequence[Sequence[int]]) -> int:
    """Tokens that all lines begin with; at least one token of each is left to tell them apart."""
    shortest = min(len(line) for line in lines) - 1
    same = (len({line[i] for line in lines}) == 1 for i in range(shortest))
    return next((i for i, equal in enumerate(same) if not equal), shortest)


def _expectation(
    scores: np.ndarray, outcomes: Sequence[Outcome], released: Sequence[bool]
) -> OutcomeReading:
    """The mean over the possible closing lines: g = sum_i softmax(log p)_i g_i."""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    weights /= weights.sum()
    means = np.array(
        [
            [outcome.engagement for outcome in outcomes],
            [outcome.value for outcome in outcomes],
            [float(full) for full in released],
        ]
    )
    engagement, value, full = (means @ weights).round(DECIMALS).tolist()
    return OutcomeReading(engagement=engagement, value=value, released=full)


def _reading(outcome: Outcome | None) -> OutcomeReading:
    """A line that nothing can be read from has no engagement: never 0 silently."""
    if outcome is None:
        return OutcomeReading(engagement=math.nan, value=math.nan)
    return OutcomeReading(engagement=outcome.engagement, value=outcome.value)


def _line_identities(identities: Sequence[tuple[int, ...]]) -> np.ndarray:
    """`[S, LINE_PARTS]`: a closing line is drawn by what the turn before it was drawn by.

    The last part is none that a turn has, so that the line's random numbers are its own.
    """
    longest = max(map(len, identities))
    if longest >= LINE_PARTS:
        raise ValueError(f"an identity has {longest} parts; expected {LINE_PARTS - 1} at the most")
    padded = [(*parts, *(0,) * (LINE_PARTS - 1 - len(parts)), LINE) for parts in identities]
    return np.array(padded, np.uint32)
