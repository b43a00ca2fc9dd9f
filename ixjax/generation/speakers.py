"""A language model as one side of many dialogues, in words.

`ModelSpeaker` is a `Speaker` (`ixjax.generation.protocols`) over the engine: a new turn costs its
own tokens, and the history is never read again. `ixjax.generation.scheduler` plays two of them.

A live context ends right after its speaker's own words: the end of that turn is read together
with the reply to it. So the closing outcome line can be scored behind any turn of the user's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ixjax.dialogue.chat import View
from ixjax.dialogue.token_bytes import token_bytes
from ixjax.dialogue.types import (
    Dialogue,
    Outcome,
    OutcomeReading,
    Role,
    UserCondition,
    Utterance,
)
from ixjax.generation.account import Account
from ixjax.generation.buckets import bucket, filled
from ixjax.generation.config import EngineConfig
from ixjax.generation.contexts import Contexts, Turns
from ixjax.generation.engine import Engine
from ixjax.generation.sampling import SamplingConfig
from ixjax.generation.stops import compile_stops, cut
from ixjax.generation.turns import SILENCE
from ixjax.io import InputError
from ixjax.models import Transformer

ReadOut = Literal["expected", "sampled"]

OUTCOME_TOKENS = 32  # room kept in every context for the marker and one closing line
LINE_PARTS = 8  # of what a closing line is drawn by; a turn has fewer
LINE = 1  # the last of them


@dataclasses.dataclass(frozen=True)
class Rows:
    """State of a `ModelSpeaker`.

    contexts: what the engine holds.
    dialogues: `[S]` the dialogue of each row, None for an empty one.
    lines: `[S]` the outcome line that closed the row, as generated.
    identities: `[S]` what the row's last turn was drawn by.
    """

    contexts: Contexts
    dialogues: list[Dialogue | None]
    lines: list[str | None]
    identities: list[tuple[int, ...]]


class ModelSpeaker:
    """A language model as one side of the dialogue; with `view.role == "user"` also a `User`.

    Args:
        model: the decoder.
        view: how this side sees a dialogue (scenario, role, chat template).
        sampling: how turns are drawn.
        seed: of the run.
        readout: how `outcomes` reads: `expected` scores every possible closing line after the
            forced marker (no sampling noise); `sampled` reads the line that was generated.
        engine: what reads and samples, made by `speaker_engine`; default one of its own. Speakers
            that share a base share it, each with an adapter.
        adapter: the adapter of this side.
    """

    def __init__(
        self,
        model: Transformer,
        view: View,
        sampling: SamplingConfig,
        *,
        seed: int,
        readout: ReadOut = "expected",
        engine: Engine | None = None,
        adapter: int = 0,
    ):
        self.view = view
        self.seed = seed
        self.readout = readout
        self.sampling = sampling
        self.dropped_turns = 0
        self.model = model
        self.adapter = adapter
        self.engine = engine or speaker_engine(model, view, sampling)
        self._pieces = text_bytes(view) if sampling.stop else []
        # Longest context that still has room for one more turn and an outcome line.
        self._limit = model.config.max_length - sampling.max_new_tokens - OUTCOME_TOKENS
        if self._limit < 1:
            raise ValueError(
                f"max_new_tokens ({sampling.max_new_tokens}) leaves no room in a context of "
                f"{model.config.max_length} tokens"
            )

    def empty(self, rows: int) -> Rows:
        """See `Speaker.empty`."""
        contexts = self.engine.empty(rows, adapters=self.adapter)
        return Rows(contexts, [None] * rows, [None] * rows, [()] * rows)

    def start(self, dialogues: Sequence[Dialogue]) -> Rows:
        """See `Speaker.start`."""
        return self.restart(self.empty(len(dialogues)), dialogues)

    def restart(self, state: Rows, dialogues: Sequence[Dialogue | None]) -> Rows:
        """Other dialogues in place of those of a state, which is consumed; None leaves a row."""
        return self._read(*self.reset(state, dialogues))

    def reset(
        self, state: Rows, dialogues: Sequence[Dialogue | None]
    ) -> tuple[Rows, list[list[int]]]:
        """As `restart`, but that the rows have yet to read what they are to hold."""
        held, lines, drawn_by = list(state.dialogues), list(state.lines), list(state.identities)
        lengths, tokens = state.contexts.lengths, [[] for _ in dialogues]
        for row, dialogue in enumerate(dialogues):
            if dialogue is not None:
                lengths[row], tokens[row] = 0, self._render(dialogue)
                held[row], lines[row] = dialogue, None
                drawn_by[row] = (zlib.crc32(json.dumps(dialogue.to_json()).encode()),)
        contexts = self.engine.shorten(state.contexts, lengths)
        return Rows(contexts, held, lines, drawn_by), tokens

    def speak(
        self, state: Rows, identities: np.ndarray, active: np.ndarray
    ) -> tuple[Rows, list[Utterance | None]]:
        """See `Speaker.speak`."""
        limits = [
            self.longest_turn(row) if on else 0 for row, on in zip(identities, active, strict=True)
        ]
        contexts, decoded = self.engine.decode(state.contexts, self.turns(identities, limits))
        starts, state = state.contexts.lengths, dataclasses.replace(state, contexts=contexts)
        return self.settle(state, starts, decoded.tokens, identities, active)

    def longest_turn(self, identity: Sequence[int] | np.ndarray) -> int:
        """Tokens of this turn at the most; one that reaches it is cut.

        The same for all turns; whoever wants it to differ overrides this.
        """
        return self.sampling.max_new_tokens

    def turns(self, identities: np.ndarray, limits: Sequence[int] | np.ndarray) -> Turns:
        """How this side's turns are drawn, for `Engine.decode`."""
        return Turns(
            sampling=self.sampling,
            seed=self.seed,
            identities=identities,
            limits=limits,
            end_ids=self.view.template.end_ids,
            stops=self.engine.stop_set(self.sampling.stop),
        )

    def settle(
        self,
        state: Rows,
        starts: np.ndarray,
        tokens: Sequence[Sequence[int]],
        identities: np.ndarray,
        active: np.ndarray,
    ) -> tuple[Rows, list[Utterance | None]]:
        """Make utterances of whole turns.

        Args:
            state: rows that have read their turns as they were sampled; consumed.
            starts: `[S]` tokens that each row held before.
            tokens: S turns, that of the rows `active` whole.
            identities: `[S, k]` what they were drawn by.
            active: `[S]` bool.

        Returns:
            As `speak`.
        """
        utterances: list[Utterance | None] = [None] * len(active)
        dialogues, lines = list(state.dialogues), list(state.lines)
        lengths, anew = state.contexts.lengths, [[] for _ in utterances]
        drawn_by = list(state.identities)
        for row in map(int, np.flatnonzero(active)):
            dialogue = _held(dialogues[row], row)
            said, lines[row], kept = self._parse(tokens[row])
            utterances[row] = said
            drawn_by[row] = tuple(np.asarray(identities[row]).tolist())
            lengths[row] = starts[row] + (kept or 0)
            if said.text:
                dialogues[row] = after = dialogue.said(self.view.role, said.text)
                if kept is None:  # not what was sampled: read as the other side hears it
                    lengths[row], anew[row] = 0, self._render(after)
        # Behind the utterance lies at most a closing line, which the outcome is read without.
        contexts = self.engine.shorten(state.contexts, lengths)
        return self._read(Rows(contexts, dialogues, lines, drawn_by), anew), utterances

    def _parse(self, tokens: Sequence[int]) -> tuple[Utterance, str | None, int | None]:
        """An utterance, its closing line, and the tokens that are it (None: no tokens are)."""
        stop = cut(tokens, self.sampling.stop, self._pieces) if self.sampling.stop else None
        turn = self.view.parse(tokens if stop is None else tokens[: stop[0]])
        text, kept = turn.text, turn.kept
        if stop is not None and not turn.ended:
            text = stop[1].decode(errors="ignore").strip()
            kept = kept if text == turn.text else None
        if not text and not turn.ended:
            text, kept = SILENCE, None
        ends = stop is not None or (tokens and tokens[-1] in self.view.template.end_ids)
        said = Utterance(text, ended=turn.ended, num_tokens=len(tokens), truncated=not ends)
        return said, turn.line, kept

    def listen(self, state: Rows, texts: Sequence[str | None]) -> Rows:
        """See `Speaker.listen`. A row that is full is read anew without its oldest turns."""
        return self._read(*self.hear(state, texts, [()] * len(texts)))

    def hear(
        self, state: Rows, texts: Sequence[str | None], unread: Sequence[Sequence[int]]
    ) -> tuple[Rows, list[Sequence[int]]]:
        """As `listen`, but that the rows have yet to read what was said.

        Args:
            state: consumed.
            texts: what was said; None leaves a row.
            unread: `[S]` tokens that each row has yet to read before.

        Returns:
            The state, and what each row has yet to read now.
        """
        other = _other(self.view.role)
        dialogues = list(state.dialogues)
        lengths, unread = state.contexts.lengths, list(unread)
        for row, text in enumerate(texts):
            if text is None:
                continue
            before = _held(dialogues[row], row)
            new = self.view.continuation(before, text)
            dialogues[row] = after = before.said(other, text)
            if new is None or lengths[row] + len(unread[row]) + len(new) > self._limit:
                lengths[row], unread[row] = 0, self._render(after)
            else:
                unread[row] = [*unread[row], *new]
        contexts = self.engine.shorten(state.contexts, lengths)
        return Rows(contexts, dialogues, list(state.lines), list(state.identities)), unread

    def _read(self, state: Rows, tokens: Sequence[Sequence[int]]) -> Rows:
        return dataclasses.replace(state, contexts=self.engine.extend(state.contexts, tokens))

    def warm_up(
        self,
        pools: Sequence[int],
        conditions: Sequence[UserCondition],
        *,
        identity_parts: int,
        copies: Sequence[tuple[int, int]],
    ) -> None:
        """Compile all that speaking, listening and reading outcomes will need.

        Args:
            pools: numbers of rows of the states that will be spoken from and to.
            conditions: whose outcome lines will be scored.
            identity_parts: k of the identities.
            copies: (rows of the target, rows of the source) of `store` and `fork`.
        """
        warm_up = functools.partial(self.engine.warm_up, end_ids=self.view.template.end_ids)
        scored = set()
        if self.view.role == "user" and self.readout == "expected":
            for condition in conditions:
                _, prefix, tails = self._closing(condition)
                scored.add((len(prefix), len(tails), max(map(len, tails))))
            scored.add(tuple(max(column) for column in zip(*scored, strict=True)))
        elif self.view.role == "user":
            for rows in {self._line_rows(rows) for rows in pools}:
                lines = [(rows, pool) for pool in pools]
                warm_up([rows], identity_parts=LINE_PARTS, copies=lines)
        warm_up(pools, identity_parts=identity_parts, copies=copies, scored=sorted(scored))

    def _render(self, dialogue: Dialogue) -> list[int]:
        context = self.view.context(dialogue, max_tokens=self._limit)
        self.dropped_turns += context.dropped_turns
        return list(context.tokens)

    def fork(self, state: Rows, rows: np.ndarray) -> Rows:
        """See `Speaker.fork`."""
        return Rows(
            self.engine.fork(state.contexts, rows),
            [state.dialogues[row] for row in rows],
            [state.lines[row] for row in rows],
            [state.identities[row] for row in rows],
        )

    def store(self, state: Rows, rows: np.ndarray, source: Rows, source_rows: np.ndarray) -> Rows:
        """See `Speaker.store`."""
        dialogues, lines = list(state.dialogues), list(state.lines)
        identities = list(state.identities)
        for row, source_row in zip(rows, source_rows, strict=True):
            dialogues[row], lines[row] = source.dialogues[source_row], source.lines[source_row]
            identities[row] = source.identities[source_row]
        contexts = self.engine.store(state.contexts, rows, source.contexts, source_rows)
        return Rows(contexts, dialogues, lines, identities)

    def outcomes(self, state: Rows, active: np.ndarray) -> list[OutcomeReading | None]:
        """Engagement of each active row by the configured read-out (docs/algorithm.md).

        Raises:
            ValueError: this speaker is the policy, which has no outcome.
        """
        if self.view.role != "user":
            raise ValueError("only the user's side has an outcome; this speaker is the policy")
        if self.readout == "sampled":
            return self._sampled_outcomes(state, active)
        return self._expected_outcomes(state, active)

    def _expected_outcomes(self, state: Rows, active: np.ndarray) -> list[OutcomeReading | None]:
        scenario = self.view.scenario
        readings: list[OutcomeReading | None] = [None] * len(active)
        rows = [int(row) for row in np.flatnonzero(active)]
        if not rows:
            return readings
        conditions = [_held(state.dialogues[row], row).condition for row in rows]
        possible, prefixes, tails = zip(*map(self._closing, conditions), strict=True)
        most = max(map(len, tails))  # conditions may differ in how many outcomes they have
        tails = [[*lines, *[[]] * (most - len(lines))] for lines in tails]
        scores = self.engine.score(state.contexts, prefixes, tails, rows)
        for i, row in enumerate(rows):
            outcomes = possible[i]
            released = [scenario.released(conditions[i], o.value) for o in outcomes]
            readings[row] = _expectation(scores[i, : len(outcomes)], outcomes, released)
        return readings

    def _closing(
        self, condition: UserCondition
    ) -> tuple[list[Outcome], list[int], list[list[int]]]:
        """The possible outcomes; the tokens that all their lines begin with; the rest of each."""
        possible = self.view.scenario.outcome_lines(condition)
        lines = self._line_tokens([line for line, _ in possible])
        shared = _common_prefix(lines)
        prefix = [*self.view.template.marker_ids, *lines[0][:shared]]
        return [outcome for _, outcome in possible], prefix, [line[shared:] for line in lines]

    def _line_tokens(self, lines: Sequence[str]) -> list[list[int]]:
        """Closing lines with their end token.

        Raises:
            InputError: one does not fit into the room that every context keeps for it.
        """
        template = self.view.template
        tokens = [[*template.encode(line), template.end_ids[0]] for line in lines]
        longest = max(range(len(lines)), key=lambda i: len(tokens[i]))
        room = OUTCOME_TOKENS - len(template.marker_ids)
        if len(tokens[longest]) > room:
            raise InputError(
                f"the outcome line {lines[longest]!r} has {len(tokens[longest])} tokens; contexts "
                f"keep room for {room}: shorten the scenario's outcome lines"
            )
        return tokens

    def _sampled_outcomes(self, state: Rows, active: np.ndarray) -> list[OutcomeReading | None]:
        lines = self._drawn_lines(state, active)
        readings: list[OutcomeReading | None] = [None] * len(active)
        for row in map(int, np.flatnonzero(active)):
            condition = _held(state.dialogues[row], row).condition
            readings[row] = _reading(self.view.scenario.read_outcome(condition, lines[row] or ""))
        return readings

    def _drawn_lines(self, state: Rows, active: np.ndarray) -> list[str | None]:
        """Lines as generated; a row that was cut before it closed has its line drawn now."""
        lines, template = list(state.lines), self.view.template
        cut_off = [int(row) for row in np.flatnonzero(active) if lines[row] is None]
        room = OUTCOME_TOKENS - len(template.marker_ids)
        size = self._line_rows(len(lines))  # always as many, so that nothing compiles anew
        for start in range(0, len(cut_off), size):
            rows = cut_off[start : start + size]
            everyone = filled(rows, size)
            contexts = self.engine.fork(state.contexts, everyone)
            contexts = self.engine.extend(contexts, [template.marker_ids] * size)
            turns = self.turns(
                _line_identities([state.identities[row] for row in everyone]),
                np.where(np.arange(size) < len(rows), room, 0),
            )
            _, decoded = self.engine.decode(contexts, dataclasses.replace(turns, stops=0))
            for row, tokens in zip(rows, decoded.tokens, strict=False):
                lines[row] = template.decode(tokens)
        return lines

    def _line_rows(self, rows: int) -> int:
        """Closing lines that are drawn at once."""
        return min(self.engine.config.rows, bucket(rows, smallest=1))


def speaker_engine(
    model: Transformer,
    view: View,
    sampling: SamplingConfig,
    config: EngineConfig | None = None,
    *,
    account: Account | None = None,
) -> Engine:
    """An engine for speakers of this view's tokenizer that draw as `sampling` says."""
    size = model.config.vocab_size
    stops = {}
    if sampling.stop:
        stops[sampling.stop] = compile_stops(sampling.stop, text_bytes(view), vocab_size=size)
    return Engine(model, config, stops=stops, account=account)


def text_bytes(view: View) -> list[bytes]:
    """The bytes of each token in a turn's text, which shows no markup."""
    template = view.template
    pieces = token_bytes(template.tokenizer)
    return [b"" if i in template.special_ids else piece for i, piece in enumerate(pieces)]


def _held(dialogue: Dialogue | None, row: int) -> Dialogue:
    """The dialogue of a row that is played; an empty row can't be."""
    if dialogue is None:
        raise ValueError(f"row {row} holds no dialogue; start one, or store into it, first")
    return dialogue


def _other(role: Role) -> Role:
    return "user" if role == "policy" else "policy"


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
    return OutcomeReading(
        engagement=float(weights @ [outcome.engagement for outcome in outcomes]),
        value=float(weights @ [outcome.value for outcome in outcomes]),
        released=float(weights @ np.array(released, np.float64)),
    )


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
