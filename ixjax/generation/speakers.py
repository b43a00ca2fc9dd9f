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
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ixjax.dialogue.chat import View
from ixjax.dialogue.token_bytes import token_bytes
from ixjax.dialogue.types import (
    Dialogue,
    OutcomeReading,
    Role,
    UserCondition,
    Utterance,
)
from ixjax.generation.account import Account
from ixjax.generation.config import EngineConfig
from ixjax.generation.contexts import Turns
from ixjax.generation.engine import Engine
from ixjax.generation.outcomes import DECIMALS, OUTCOME_TOKENS, Outcomes, ReadOut
from ixjax.generation.rows import Rows, held, with_rows_of
from ixjax.generation.sampling import SamplingConfig
from ixjax.generation.stops import compile_stops, cut
from ixjax.generation.turns import SILENCE
from ixjax.models import Transformer


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
        self._outcomes = Outcomes(self.engine, view, readout, self.turns)
        # Longest context that still has room for one more turn and an outcome line.
        self._limit = model.config.max_length - sampling.max_new_tokens - OUTCOME_TOKENS
        if self._limit < 1:
            raise ValueError(
                f"max_new_tokens ({sampling.max_new_tokens}) leaves no room in a context of "
                f"{model.config.max_length} tokens"
            )

    def empty(self, rows: int) -> Rows:
        """See `Speaker.empty`."""
        return Rows.of(self.engine.empty(rows, adapters=self.adapter))

    def start(self, dialogues: Sequence[Dialogue]) -> Rows:
        """See `Speaker.start`."""
        return self.restart(self.empty(len(dialogues)), dialogues)

    def restart(self, state: Rows, dialogues: Sequence[Dialogue | None]) -> Rows:
        """Other dialogues in place of those of a state, which is consumed; None leaves a row."""
        given = {row: d for row, d in enumerate(dialogues) if d is not None}
        return self.read(self.reset(state, given))

    def reset(
        self, state: Rows, dialogues: Mapping[int, Dialogue], *, held: Sequence[int] = ()
    ) -> Rows:
        """As `restart`, of dialogues by row, but that the rows have yet to read them.

        Of the rows `held`, what they hold already of their new dialogue is not read again.
        """
        rows = dataclasses.replace(
            state,
            dialogues=list(state.dialogues),
            lines=list(state.lines),
            identities=list(state.identities),
            unread=list(state.unread),
        )
        lengths: dict[int, int] = {}
        for row, dialogue in dialogues.items():
            tokens = self._render(dialogue)
            # One token is read at least: what is sampled next depends on it.
            before = state.contexts.tokens[row] if row in held else ()
            lengths[row] = _common_beginning(before, tokens[:-1])
            rows.unread[row] = tokens[lengths[row] :]
            rows.dialogues[row], rows.lines[row] = dialogue, None
            rows.identities[row] = (zlib.crc32(json.dumps(dialogue.to_json()).encode()),)
        return dataclasses.replace(rows, contexts=self.engine.shorten(state.contexts, lengths))

    def read(self, state: Rows, rows: Sequence[int] | np.ndarray | None = None) -> Rows:
        """Let these rows read what they have yet to read; default all. The state is consumed."""
        chosen = set(range(len(state.unread)) if rows is None else map(int, rows))
        due = [u if row in chosen else () for row, u in enumerate(state.unread)]
        if not any(due):
            return state
        left = [() if row in chosen else u for row, u in enumerate(state.unread)]
        contexts = self.engine.extend(state.contexts, due)
        return dataclasses.replace(state, contexts=contexts, unread=left)

    def speak(
        self, state: Rows, identities: np.ndarray, active: np.ndarray
    ) -> tuple[Rows, list[Utterance | None]]:
        """See `Speaker.speak`."""
        rows = np.flatnonzero(active)
        starts, drawn_by = state.contexts.lengths[rows], np.asarray(identities)[rows]
        turns = self.turns(drawn_by, [self.longest_turn(identity) for identity in drawn_by])
        contexts, decoded = self.engine.decode(
            state.contexts, dataclasses.replace(turns, rows=rows)
        )
        state = dataclasses.replace(state, contexts=contexts)
        logprobs = [sum(row) for row in decoded.logprobs]
        state, said = self.settle(
            state, rows.tolist(), starts.tolist(), decoded.tokens, logprobs, drawn_by.tolist()
        )
        utterances: list[Utterance | None] = [None] * len(active)
        for row, utterance in zip(rows, said, strict=True):
            utterances[row] = utterance
        return self.read(state), utterances

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
        rows: Sequence[int],
        starts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        logprobs: Sequence[float],
        identities: Sequence[Sequence[int]],
    ) -> tuple[Rows, list[Utterance]]:
        """Make utterances of whole turns.

        Args:
            state: rows that have read their turns as they were sampled; consumed.
            rows: N of them, whose turns are over.
            starts: N numbers of tokens that they held before.
            tokens: N turns.
            logprobs: N sums of their tokens' log-probabilities.
            identities: N times what they were drawn by.

        Returns:
            As `speak`, of these rows alone; but those whose utterance is not what was sampled have
            yet to read it.
        """
        utterances: list[Utterance] = []
        dialogues, lines = list(state.dialogues), list(state.lines)
        drawn_by, unread = list(state.identities), list(state.unread)
        lengths: dict[int, int] = {}
        for row, start, turn, logprob, identity in zip(
            rows, starts, tokens, logprobs, identities, strict=True
        ):
            dialogue = held(dialogues[row], row)
            said, lines[row], kept = self._parse(turn)
            mean = round(float(logprob) / max(len(turn), 1), DECIMALS)
            utterances.append(dataclasses.replace(said, mean_logprob=mean))
            drawn_by[row], lengths[row] = tuple(identity), start + (kept or 0)
            if said.text:
                dialogues[row] = after = dialogue.said(self.view.role, said.text)
                if kept is None:  # not what was sampled: read as the other side hears it
                    lengths[row], unread[row] = 0, self._render(after)
        # Behind the utterance lies at most a closing line, which the outcome is read without.
        contexts = self.engine.shorten(state.contexts, lengths)
        return Rows(contexts, dialogues, lines, drawn_by, unread), utterances

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
        heard = {row: text for row, text in enumerate(texts) if text is not None}
        return self.read(self.hear(state, heard))

    def hear(self, state: Rows, texts: Mapping[int, str]) -> Rows:
        """As `listen`, of turns by row, but that the rows have yet to read what was said."""
        other = _other(self.view.role)
        dialogues, unread = list(state.dialogues), list(state.unread)
        lengths: dict[int, int] = {}
        for row, text in texts.items():
            before = held(dialogues[row], row)
            new = self.view.continuation(before, text)
            dialogues[row] = after = before.said(other, text)
            length = len(state.contexts.tokens[row]) + len(unread[row])
            if new is None or length + len(new) > self._limit:
                lengths[row], unread[row] = 0, self._render(after)
            else:
                unread[row] = [*unread[row], *new]
        contexts = self.engine.shorten(state.contexts, lengths)
        return dataclasses.replace(state, contexts=contexts, dialogues=dialogues, unread=unread)

    def warm_up(
        self,
        pools: Sequence[int],
        conditions: Sequence[UserCondition],
        *,
        identity_parts: int,
        moves: Sequence[int] = (),
    ) -> None:
        """Compile all that speaking, listening and reading outcomes will need.

        Args:
            pools: numbers of rows of the states that will be spoken from and to.
            conditions: whose outcome lines will be scored.
            identity_parts: k of the identities.
            moves: numbers of rows of the states that rows will be copied within.
        """
        warm_up = functools.partial(self.engine.warm_up, end_ids=self.view.template.end_ids)
        for rows, parts, lines in self._outcomes.drawn_shapes(pools):
            warm_up([rows], identity_parts=parts, copies=lines)
        scored = self._outcomes.scored_shapes(conditions)
        warm_up(pools, identity_parts=identity_parts, moves=moves, scored=scored)

    def _render(self, dialogue: Dialogue) -> list[int]:
        context = self.view.context(dialogue, max_tokens=self._limit)
        self.dropped_turns += context.dropped_turns
        return list(context.tokens)

    def fork(self, state: Rows, rows: np.ndarray) -> Rows:
        """See `Speaker.fork`."""
        contexts = self.engine.fork(state.contexts, rows)
        return with_rows_of(Rows.of(contexts), range(len(rows)), state, rows)

    def store(self, state: Rows, rows: np.ndarray, source: Rows, source_rows: np.ndarray) -> Rows:
        """See `Speaker.store`."""
        contexts = self.engine.store(state.contexts, rows, source.contexts, source_rows)
        stored = with_rows_of(state, rows, source, source_rows)
        return dataclasses.replace(stored, contexts=contexts)

    def move(self, state: Rows, rows: Sequence[int], source_rows: Sequence[int]) -> Rows:
        """Overwrite `rows` with `source_rows` of the same state, which is consumed."""
        contexts = self.engine.move(state.contexts, rows, source_rows)
        moved = with_rows_of(state, rows, state, source_rows)
        return dataclasses.replace(moved, contexts=contexts)

    def outcomes(self, state: Rows, active: np.ndarray) -> list[OutcomeReading | None]:
        """Engagement of each active row by the configured read-out (docs/algorithm.md).

        Raises:
            ValueError: this speaker is the policy, which has no outcome.
        """
        return self._outcomes.read(state, active)


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


def _common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _other(role: Role) -> Role:
    return "user" if role == "policy" else "policy"
