"""The engine: token ids in, token ids out, over contexts that it owns.

Callers hold handles (`Context`); the engine decides where keys and values are stored. `new` and
`fork` make a context, `extend` and `decode` append to it, and `free` releases its memory. Appended
tokens are read when they are needed, in passes shared with other contexts. `decode` samples turns;
`score` returns log-probabilities of continuations and keeps nothing. The engine has no text and no
roles: those are in `ixjax.generation.speakers`.

Axes: C candidates, N contexts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jax import Array

from ixjax.generation import cache as kv
from ixjax.generation import passes, prefill
from ixjax.generation.attention import Implementation
from ixjax.generation.batch import DecodeBatch
from ixjax.generation.blocks import BlockPool, Context
from ixjax.generation.buckets import (
    CHUNKS,
    FEW,
    FEWEST_TOKENS,
    filled,
    pass_sizes,
    span_of,
)
from ixjax.generation.checks import (
    check_adapter,
    check_adapter_weights,
    check_owner,
    check_requests,
    check_room,
    check_scored,
    check_tokens,
)
from ixjax.generation.config import EngineConfig
from ixjax.generation.executor import Executor, writes_of
from ixjax.generation.requests import Request, StopSets
from ixjax.generation.stats import EngineStats
from ixjax.generation.stops import StopTable
from ixjax.models import Transformer, one_adapter
from ixjax.padding import bucket, pad

PAUSE = 1 / 8  # decoding pauses once this share of the batch has ended


class Engine:
    """Reads and samples for one model.

    Args:
        model: the decoder; its parameters may be sharded over a mesh.
        config: sizes of the batches, the attention kernel and the layout of the cache.
        stops: sets of stop strings that requests may choose from.
        stats: counts the engine's work; default a new one.
        pool: stores the contexts; default a new one. Engines of models of one shape may share one.

    Attributes:
        stats: see the argument.
        pool: see the argument.
    """

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig | None = None,
        *,
        stops: Mapping[tuple[str, ...], StopTable] | None = None,
        stats: EngineStats | None = None,
        pool: BlockPool | None = None,
    ):
        self.model_config = model.config
        self.config = config or EngineConfig()
        self.stats = stats or EngineStats()
        self._stops = StopSets(stops or {}, vocab_size=model.config.vocab_size)
        self._executor = Executor(model, self.config, self.stats)
        self._executor.use(model)
        self.pool = pool or self._new_pool()
        self._check_pool()
        self._batch = self._new_batch()

    @property
    def attention(self) -> Implementation:
        """Return the chosen attention kernel."""
        return self._executor.attention

    def __str__(self) -> str:
        config, layout = self.config, "paged" if self._executor.paged else "contiguous"
        return (
            f"attention {self.attention}, cache {layout}, decode batches of {config.rows} rows, "
            f"prefill passes of {config.prefill_tokens} tokens"
        )

    def model(self, adapter: int = 0) -> Transformer:
        """Return the decoder, with one of its adapters if it has any.

        Its blocks are copies: the engine holds them layer by layer.
        """
        model = self._executor.model()
        return model if model.config.lora is None else one_adapter(model, adapter)

    def update(self, model: Transformer) -> None:
        """Replace the weights by others of the same shape; contexts are read again on next use.

        Raises:
            ValueError: the model has another shape.
        """
        if model.config != self.model_config:
            raise ValueError(
                f"the model is {model.config}; expected one of this engine's shape, "
                f"{self.model_config}"
            )
        self._executor.use(model)
        self._batch.clear()
        self.pool.release_all(self)

    def set_adapter(self, index: int, weights: Mapping[str, Array]) -> None:
        """Replace an adapter; contexts are read again on next use.

        Args:
            index: of the adapter.
            weights: of a model with one adapter of this shape, by path: `[L, 1, ...]`.

        Raises:
            ValueError: there is no such adapter, or the weights have other names or shapes.
        """
        check_adapter_weights(index, weights, self.model_config)
        self._batch.clear()
        self._executor.set_adapter(index, weights)
        self.pool.release_all(self)

    def new(self, tokens: Sequence[int] = (), *, adapter: int = 0) -> Context:
        """Return a context of `tokens`.

        Args:
            tokens: its first tokens; they are read before they are needed.
            adapter: the adapter that reads it; -1 for the base model alone.

        Raises:
            ValueError: there is no such adapter, or see `extend`.
        """
        check_adapter(adapter, self.model_config)
        context = self.pool.new((), adapter, self)
        self.extend({context: tokens})
        return context

    def fork(self, context: Context) -> Context:
        """Return a context with the same tokens, which shares their stored keys and values."""
        check_owner(context, self)
        return self.pool.fork(context)

    def free(self, context: Context) -> None:
        """Free a context's memory; if it is used again, it is read again."""
        self.pool.release(context)

    def extend(self, tokens: Mapping[Context, Sequence[int]]) -> None:
        """Append tokens to contexts; they are read before they are needed.

        Raises:
            ValueError: a context would outgrow the model's `max_length`, a token is outside the
                vocabulary, or another engine made the context.
        """
        for context, given in tokens.items():
            check_owner(context, self)
            check_tokens(given, self.model_config)
            check_room(context, len(given), self.model_config)
        for context, given in tokens.items():
            context.tokens += map(int, given)

    def shorten(self, context: Context, length: int) -> None:
        """Cut a context to its first `length` tokens.

        Raises:
            ValueError: `length` is negative, or another engine made the context.
        """
        check_owner(context, self)
        if length < 0:
            raise ValueError(f"length is {length}; expected 0 or more")
        del context.tokens[length:]
        self.pool.shorten(context, len(context.tokens))

    def read(self, contexts: Sequence[Context]) -> None:
        """Read all tokens of these contexts but the last, which decoding and scoring read.

        Raises:
            ValueError: another engine made a context.
        """
        for context in contexts:
            check_owner(context, self)
        prefill.read(self._executor, self.pool, contexts, enough=len(contexts))

    def decode(self, requests: Sequence[Request]) -> list[Request]:
        """Decode turns to their end; if there are more than rows, some wait for a row.

        Returns:
            The requests, which hold the sampled tokens.

        Raises:
            ValueError: a request can't be met; names the field.
        """
        left = [request for request in requests if not request.done]
        while left:
            # Pausing helps only if others wait for a row.
            done = self.step(left, pause=len(left) > self.config.rows)
            left = [request for request in left if request not in done]
        return list(requests)

    def step(
        self,
        requests: Sequence[Request],
        reads: Sequence[Context] = (),
        *,
        most: int | None = None,
        pause: bool = True,
    ) -> list[Request]:
        """Read and decode until some turns are done.

        Turns in progress continue; free rows go to the dialogues with the fewest turns. A turn in
        progress that is not in `requests` is dropped.

        Args:
            requests: turns to decode, each of another context.
            reads: contexts to read, as `read` does; with requests, only until the batch is full.
            most: most tokens that a row samples; default `config.steps`.
            pause: whether to stop once an eighth of the batch has ended.

        Returns:
            The turns that are done.

        Raises:
            ValueError: see `decode`.
        """
        check_requests(requests, self, self.model_config)
        for context in reads:
            check_owner(context, self)
        batch, size = self._batch, self.config.rows
        batch.keep(set(requests))
        running = set(batch.running)
        waiting = [request for request in requests if request not in running]
        contexts = [request.context for request in waiting]
        enough = size - len(running) if requests else len(reads)
        prefill.read(self._executor, self.pool, [*contexts, *reads], enough=enough)
        if not requests:
            return []
        ready = [request for request in waiting if not request.context.unread]
        ready.sort(key=lambda request: request.turns)
        if not running and not ready:  # only `reads` filled the passes
            return []
        rows = min(len(running) + len(ready), size)
        some = rows - max(round(PAUSE * size), 1)
        with self.stats.clock("decode"):
            try:
                batch.enter(ready[: size - len(running)])
                limit = self.config.steps if most is None else min(most, self.config.steps)
                return batch.decode(stay=max(some, 0) if pause else 0, most=limit)
            except BaseException:
                batch.clear()
                raise

    def score(
        self,
        contexts: Sequence[Context],
        prefixes: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[Sequence[int]]],
    ) -> np.ndarray:
        """Return log-probabilities of continuations after a forced prefix; nothing is kept.

        Args:
            contexts: N contexts, each with at least one token.
            prefixes: N token sequences, read but not scored.
            candidates: N times C token sequences; an empty one scores 0.

        Returns:
            `[N, C]` float32 sums of token log-probabilities.

        Raises:
            ValueError: a context or its prefix is empty, a context would outgrow the model's
                `max_length`, a token is outside the vocabulary, or the numbers of prefixes and
                candidates do not match.
        """
        check_scored(contexts, prefixes, candidates, self, self.model_config)
        self.read(contexts)
        given = [[c.tokens[-1], *p] for c, p in zip(contexts, prefixes, strict=True)]
        prefix, prefix_counts = pad(given, bucket(max(map(len, given))))
        longest = bucket(max(len(tail) for tails in candidates for tail in tails))
        padded = [pad(tails, longest) for tails in candidates]
        tails = np.stack([tokens for tokens, _ in padded], axis=1)  # [C, N, n]
        tail_counts = np.stack([counts for _, counts in padded], axis=1)
        full, few = self._score_sizes()
        scores, left = [], np.arange(len(contexts))
        while len(left):
            size = full if len(left) > full // 2 else few
            part, left = left[:size], left[size:]
            rows = filled(part, size)
            lengths = np.array([len(contexts[i]) - 1 for i in rows], np.int32)
            chosen = [contexts[i] for i in rows]
            span = span_of(int(lengths.max()), self._executor.read_spans)
            with self.pool.pinned(chosen):
                self.read(chosen)  # they may have been evicted since they were read
                with self.stats.clock("score"):
                    found = self._executor.run(
                        passes.score,
                        self._executor.batch(self.pool, chosen, lengths, span),
                        prefix[rows],
                        prefix_counts[rows],
                        tails[:, rows],
                        tail_counts[:, rows],
                        np.array([context.adapter for context in chosen], np.int32),
                    )
                    scores.append(np.asarray(found)[: len(part)])
        self.stats.score_tokens += int(prefix_counts.sum() + tail_counts.sum()) - len(contexts)
        return np.concatenate(scores)

    def warm_up(
        self, *, ends: int = 1, scored: Sequence[tuple[int, int, int]] = (), tokens: int = 0
    ) -> None:
        """Compile every pass, so that nothing is compiled later.

        Args:
            ends: most `end_ids` of a request.
            scored: sizes of calls of `score`: tokens of the prefix, number of candidates, tokens of
                the longest candidate.
            tokens: tokens that the pool will hold.
        """
        self.pool.reserve(max(tokens, kv.BLOCK))
        run = self._executor

        def none(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.int32)

        def nobody(size: int, span: int) -> kv.Batch:
            return run.batch(self.pool, [None] * size, none(size), span)

        for chunk in CHUNKS:
            for size in self._pass_sizes(chunk):
                for span in run.read_spans:
                    rows = none(size, chunk), none(size), none(size)
                    new = run.run(passes.extend, nobody(size, span), *rows)
                    self.pool.update(kv.write, new, writes_of({}, none(size), chunk))
        self._batch.warm_up(ends)
        for prefix, candidates, longest in sorted(set(scored)):
            for size in self._score_sizes():
                tokens_of = none(size, bucket(prefix + 1))
                tails = none(candidates, size, bucket(longest))
                for span in run.read_spans:
                    rows = tokens_of, none(size) + 1, tails, tails[:, :, 0], none(size)
                    run.run(passes.score, nobody(size, span), *rows)

    def _new_pool(self) -> BlockPool:
        limit = kv.num_blocks(self.config.pool_tokens)
        where = {"mesh": self._executor.mesh, "device": self._executor.device}
        return BlockPool(self.model_config, self.stats, limit=limit, **where)

    def _check_pool(self) -> None:
        shape = lambda c: (c.num_layers, c.num_kv_heads, c.head_dim, c.compute_dtype)
        if shape(self.pool.config) != shape(self.model_config):
            raise ValueError(
                "the pool is for models of (layers, KV heads, head size, type) "
                f"{shape(self.pool.config)}; this one has {shape(self.model_config)}"
            )

    def _new_batch(self) -> DecodeBatch:
        return DecodeBatch(self._executor, self.pool, self._stops, self.config.rows)

    def _pass_sizes(self, chunk: int) -> list[int]:
        config = self.config
        return pass_sizes(chunk, prefill_tokens=config.prefill_tokens, rows=config.rows)

    def _score_sizes(self) -> tuple[int, int]:
        """Return the rows of a full scoring pass, and of a pass over few rows."""
        full = self.config.rows
        # The shortest prefixes and candidates are padded to `bucket(1)` tokens.
        return full, min(max(full // FEW, FEWEST_TOKENS // bucket(1)), full)
