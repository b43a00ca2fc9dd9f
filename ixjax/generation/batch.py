"""The decode batch: which turn is decoded in which row.

A turn stays in its row from its first token to its last, so its context is copied (or its block
table made) once. Its newest tokens are in the row's turn buffer; they are written to the context's
blocks when the turn ends or the buffer is full.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ixjax.generation import cache as kv
from ixjax.generation import passes
from ixjax.generation.blocks import BlockPool
from ixjax.generation.buckets import FEWEST_WEIGHTS, span_of
from ixjax.generation.executor import Executor, block_table, copies_of, writes_of
from ixjax.generation.requests import Request, StopSets, idle_state, sampling_state


class DecodeBatch:
    """The R rows in which turns are decoded.

    Args:
        executor: runs the passes.
        pool: where contexts are stored.
        stops: sets of stop strings.
        size: R.
    """

    def __init__(self, executor: Executor, pool: BlockPool, stops: StopSets, size: int):
        self._executor, self._pool, self._stops, self.size = executor, pool, stops, size
        self._shortest = FEWEST_WEIGHTS // (size * executor.model_config.num_heads)
        self.clear()

    def clear(self) -> None:
        """Remove every turn from the batch; the tokens in the turn buffers are read again."""
        for request in getattr(self, "rows", ()):
            if request is not None:
                request.context.pins -= 1
        self.rows: list[Request | None] = [None] * self.size
        self._starts: Any = np.zeros(self.size, np.int32)  # tokens before the turn buffer
        self._fills = np.zeros(self.size, np.int32)  # columns of the turn buffer in use
        self._past: Any = None
        self._span = 0
        self._buffer: Any = None

    def warm_up(self, ends: int) -> None:
        """Compile every pass, for requests with up to `ends` end tokens; removes every turn."""
        self.clear()
        run, nobody = self._executor, np.zeros(self.size, np.int32)
        state = idle_state(self.size, ends, stops=self._stops)
        buffer = run.turn_buffer(self.size)
        for self._span in run.decode_spans[1:]:
            if not run.paged:
                copies = copies_of({}, nobody, self._span)
                self._past = run.gather(self._pool, copies, rows=self.size, span=self._span)
                self._enter(copies)
            given = self._batch(), buffer, nobody, nobody, state
            buffer, _ = run.run(passes.decode, *given, steps=run.config.steps)
        self._pool.update(kv.write, buffer, writes_of({}, nobody, kv.TURN))
        self.clear()

    @property
    def running(self) -> list[Request]:
        """Return the turns in the batch."""
        return [request for request in self.rows if request is not None]

    def keep(self, requests: Collection[Request]) -> None:
        """Take out turns that are not in `requests`, and those whose contexts have changed."""
        for row, request in enumerate(self.rows):
            if request is not None and (request not in requests or self._changed(row, request)):
                self._leave(row)

    def _changed(self, row: int, request: Request) -> bool:
        """Return whether a context was extended or evicted since its row read it."""
        context, start = request.context, self._starts[row]
        return context.stored < start or len(context) != start + self._fills[row] + 1

    def enter(self, requests: Sequence[Request]) -> None:
        """Give each turn a row; all tokens of their contexts but the last must be stored."""
        free = (row for row, request in enumerate(self.rows) if request is None)
        for row, request in zip(free, requests, strict=False):
            self.rows[row] = request
            request.context.pins += 1
            self._begin(row)
        self._copy([self.rows.index(request) for request in requests])

    def _begin(self, row: int) -> None:
        """Start a row's turn buffer with the last token of its context."""
        request = self.rows[row]
        assert request is not None
        self._starts[row], self._fills[row] = len(request.context) - 1, 0

    def _copy(self, rows: Sequence[int]) -> None:
        """Copy the contexts of these rows into the batch, in the contiguous layout."""
        longest = max(self._shortest, int(self._starts.max()))
        span = span_of(min(longest, self._executor.columns), self._executor.decode_spans)
        contexts = [request and request.context for request in self.rows]
        if self._executor.paged:
            self._span = span
        elif not span <= self._span < 2 * span:
            self._past, self._span = None, span  # free the old batch first
            copies = copies_of(dict(enumerate(contexts)), self._starts, span)
            self._past = self._executor.gather(self._pool, copies, rows=self.size, span=span)
        elif rows:
            self._enter(copies_of({row: contexts[row] for row in rows}, self._starts, self._span))

    def _enter(self, copies: kv.Copies) -> None:
        past, self._past = self._past, None
        self._past = self._executor.stats.call(
            kv.enter, past, self._pool.arrays, copies, mesh=self._executor.mesh
        )

    def _batch(self) -> kv.Batch:
        if not self._executor.paged:
            return kv.Batch(self._past, None, self._starts)
        contexts = [request and request.context for request in self.rows]
        table = block_table(contexts, self._starts, self._span)
        return kv.Batch(self._pool.arrays, table, self._starts)

    def decode(self, *, stay: int, most: int) -> list[Request]:
        """Sample in every row until few still run; return the turns that are done.

        Args:
            stay: see `SamplingState`.
            most: tokens that each row samples at most.
        """
        rows, stats = list(self.rows), self._executor.stats
        state = sampling_state(
            rows, steps=most, room=kv.TURN - self._fills, stay=stay, stops=self._stops
        )
        adapters = [0 if request is None else request.context.adapter for request in rows]
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            buffer = self._executor.turn_buffer(self.size)
        buffer, sampled = self._executor.run(
            passes.decode,
            self._batch(),
            buffer,
            self._fills,
            np.array(adapters, np.int32),
            state,
            steps=self._executor.config.steps,
        )
        tokens, logprobs, counts, ended = (np.asarray(x) for x in sampled)
        self._buffer = buffer
        self._fills = self._fills + counts
        stats.decode_tokens += int(counts.sum())
        stats.decode_slots += self.size * int(counts.max())
        done = []
        for row, request in enumerate(rows):
            if request is not None:
                self._note(request, tokens[row, : counts[row]].tolist(), logprobs[row], ended[row])
                if request.done:
                    done.append(row)
        self._store(done)
        return [request for row in done if (request := rows[row]) is not None]

    def _note(
        self, request: Request, tokens: list[int], logprobs: np.ndarray, ended: np.bool_
    ) -> None:
        """Append sampled tokens to a turn and, without its end token, to its context."""
        request.tokens += tokens
        request.logprobs += logprobs[: len(tokens)].tolist()
        request.ended = bool(ended)
        request.done = request.ended or len(request.tokens) >= request.limit
        request.context.tokens += tokens[:-1] if request.ended else tokens

    def _store(self, done: Sequence[int]) -> None:
        """Write full turn buffers and those of finished turns to blocks; free finished rows."""
        full = np.flatnonzero(self._fills >= kv.TURN).tolist()
        spans = {}
        firsts = np.zeros(self.size, np.int32)
        for row in dict.fromkeys([*done, *full]):
            request = self.rows[row]
            assert request is not None
            context = request.context
            # A context that was shortened has its first column stored already.
            firsts[row] = context.stored - self._starts[row]
            count = int(self._starts[row] + self._fills[row]) - context.stored
            spans[row] = self._pool.extend(context, count)
        if any(spans.values()):
            writes = writes_of(spans, firsts, kv.TURN)
            self._pool.update(kv.write, self._buffer, writes)
        for row in done:
            self._leave(row)
        going_on = [row for row in full if row not in done]
        for row in going_on:
            self._begin(row)
        if going_on:
            self._copy(going_on)

    def _leave(self, row: int) -> None:
        request = self.rows[row]
        if request is not None:
            request.context.pins -= 1
        self.rows[row], self._starts[row], self._fills[row] = None, 0, 0
