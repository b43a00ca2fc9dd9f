"""The engine: token ids in, token ids out, over rows of a KV cache.

Three operations share one forward pass. `extend` reads up to n new tokens per row (prefill and
appending a turn are the same thing), `decode` samples a turn per row until each has ended, and
`score` gives the log-probability of given continuations without keeping them. The engine knows
no text and no roles; `ixjax.generation.speakers` does.

Shapes are static: token counts are padded to powers of two, and attention reads the cache up to
one that covers the longest row. What is compiled lies in `ixjax.generation.passes`.

Axes: S cache rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ixjax.generation import cache as kv
from ixjax.generation import passes
from ixjax.generation.sampling import RowSampling, SamplingConfig
from ixjax.models import Transformer

SMALLEST_BUCKET = 4
SMALLEST_SPAN = 64
CHUNK_TOKENS = 64  # most tokens read at once on top of a row that holds some already
NO_TOKEN = -1

_versions = itertools.count()  # of weights, in this process


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Rows of live contexts: what the device holds, and what the host knows of it.

    cache: keys and values.
    logits: `[S, V]` float32 after each row's last read token; garbage for a row whose turn ended.
    tokens: S tuples, what each row has read.
    adapters: `[S]` the adapter that each row is read with (-1: the base alone).
    version: the weights that it was made with.
    """

    cache: kv.KVCache
    logits: jax.Array  # [S, V]
    tokens: tuple[tuple[int, ...], ...]
    adapters: np.ndarray  # [S]
    version: int

    @property
    def lengths(self) -> np.ndarray:
        """`[S]` tokens in each row."""
        return np.array([len(row) for row in self.tokens])


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What `decode` sampled.

    tokens: `[S, n]`; row s holds `counts[s]` tokens, then garbage. An end token is included.
    counts: `[S]` tokens sampled, the end token included; 0 for inactive rows.
    logprobs: `[S, n]` log-probability of each token under the full softmax.
    """

    tokens: np.ndarray  # [S, n]
    counts: np.ndarray  # [S]
    logprobs: np.ndarray  # [S, n]


class Engine:
    """Reads and samples for one model.

    Args:
        model: the decoder; its parameters may be sharded over a mesh.
        max_new_tokens: longest turn that `decode` will be asked for.
    """

    def __init__(self, model: Transformer, *, max_new_tokens: int):
        self.config = model.config
        self.max_new_tokens = max_new_tokens
        # Behind a full row there is room for one padded chunk or turn (see cache.write).
        self._room = max(CHUNK_TOKENS, max_new_tokens)
        self._columns = self.config.max_length + self._room
        self.update(model)

    def update(self, model: Transformer) -> None:
        """Take other weights of the same shape; contexts made with the former are refused.

        Raises:
            ValueError: the model has another shape.
        """
        if model.config != self.config:
            raise ValueError(f"this engine was made for {self.config}, not for {model.config}")
        self._graph, self._params = nnx.split(model)
        self._version = next(_versions)

    @property
    def columns(self) -> int:
        """T: tokens that a row has room for, padding included."""
        return self._columns

    def empty(self, rows: int, *, adapters: Sequence[int] | int = 0) -> Contexts:
        """Rows that have read nothing.

        Args:
            rows: S.
            adapters: the adapter of each row, or of all; -1: the base alone.
        """
        logits = jnp.zeros((rows, self.config.vocab_size), jnp.float32)
        cache = kv.allocate(self.config, rows, self._columns)
        chosen = np.broadcast_to(np.asarray(adapters, np.int32), (rows,))
        return Contexts(cache, logits, ((),) * rows, chosen, self._version)

    def extend(self, contexts: Contexts, tokens: Sequence[Sequence[int]]) -> Contexts:
        """Read `tokens[s]` into row s (an empty sequence leaves it as it is).

        The given contexts are consumed. What is long is read in chunks. Where half of the rows
        or fewer are given anything, only those take part.

        Raises:
            ValueError: a row would outgrow the model's `max_length`, or the contexts were made
                with other weights.
        """
        self._check(contexts)
        counts = np.array([len(t) for t in tokens])
        before = contexts.lengths
        if (before + counts).max() > self.config.max_length:
            row = int((before + counts).argmax())
            raise ValueError(
                f"row {row} holds {before[row]} tokens and was given {counts[row]} "
                f"more; the model's max_length is {self.config.max_length}"
            )
        limit = CHUNK_TOKENS if before.any() else self._columns
        size = min(bucket(int(counts.max())), limit)
        for start in range(0, int(counts.max()), size):
            contexts = self._extend_chunk(contexts, [t[start : start + size] for t in tokens], size)
        return contexts

    def _extend_chunk(
        self, contexts: Contexts, chunk: Sequence[Sequence[int]], size: int
    ) -> Contexts:
        given = [row for row, part in enumerate(chunk) if part]
        few = bucket(len(given))
        if few <= len(chunk) // 2:
            rows = np.array(given + [given[0]] * (few - len(given)), np.int32)
            padded, counts = pad([chunk[row] for row in rows], size)
            cache, logits = passes.extend_rows(
                self._graph,
                self._params,
                contexts.cache,
                contexts.logits,
                rows,
                np.int32(len(given)),
                padded,
                counts,
                contexts.adapters[rows],
                span=self._span([contexts.tokens[row] for row in given]),
            )
        else:
            padded, counts = pad(chunk, size)
            cache, logits = passes.extend(
                self._graph,
                self._params,
                contexts.cache,
                contexts.logits,
                padded,
                counts,
                contexts.adapters,
                span=self._span(contexts.tokens),
            )
        tokens = _joined(contexts.tokens, chunk)
        return dataclasses.replace(contexts, cache=cache, logits=logits, tokens=tokens)

    def decode(
        self,
        contexts: Contexts,
        *,
        sampling: SamplingConfig | Sequence[SamplingConfig],
        seed: int,
        identities: np.ndarray,
        limits: Sequence[int] | np.ndarray,
        end_ids: Sequence[int] | Sequence[Sequence[int]],
        offsets: Sequence[int] | np.ndarray | None = None,
        steps: int | None = None,
    ) -> tuple[Contexts, Decoded]:
        """Sample a turn, or a part of it, for each row, from its logits on.

        The given contexts are consumed. Sampled tokens are read into the row, the end token that
        closed it is not. A row that was stopped by its limit alone can be decoded on.

        Args:
            contexts: rows whose logits are fresh.
            sampling: temperature and the like, one for all rows or one each; its own
                `max_new_tokens` is not used.
            seed: of the run.
            identities: `[S, k]` uint32, what each row is (see `sampling.identity_keys`).
            limits: `[S]` tokens sampled at most; a row with 0 neither samples nor grows.
            end_ids: tokens that end a turn, for all rows or for each.
            offsets: `[S]` tokens of its turn that a row has sampled before; default 0.
            steps: static bound of `limits`; default the engine's `max_new_tokens`.

        Raises:
            ValueError: a limit is more than `steps`, or `steps` more than rows have room for; the
                contexts were made with other weights.
        """
        self._check(contexts)
        rows = len(contexts.tokens)
        limits, steps = np.asarray(limits, np.int32), steps or self.max_new_tokens
        if limits.max() > steps or steps > self._room:
            raise ValueError(
                f"{max(int(limits.max()), steps)} tokens were asked for; this engine was made for "
                f"turns of at most {self._room}, this call for {steps}"
            )
        configs = [sampling] * rows if isinstance(sampling, SamplingConfig) else sampling
        draws = passes.Draws(
            seed=jax.random.key(seed),
            identities=np.asarray(identities, np.uint32),
            offsets=np.zeros(rows, np.int32) if offsets is None else np.asarray(offsets, np.int32),
            limits=limits,
            end_ids=_end_ids(end_ids, rows),
            rows=RowSampling.of(configs),
            seen=self._seen(contexts, configs),
        )
        cache, logits, sampled = passes.decode(
            self._graph,
            self._params,
            contexts.cache,
            contexts.logits,
            contexts.adapters,
            draws,
            span=self._span(contexts.tokens),
            steps=steps,
        )
        tokens, logprobs, counts, kept = jax.device_get(sampled)
        read = [row[:n].tolist() for row, n in zip(tokens, kept, strict=True)]
        contexts = dataclasses.replace(
            contexts, cache=cache, logits=logits, tokens=_joined(contexts.tokens, read)
        )
        return contexts, Decoded(tokens, counts, logprobs)

    def score(
        self,
        contexts: Contexts,
        prefixes: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[Sequence[int]]],
    ) -> np.ndarray:
        """Log-probability of each candidate continuation after a forced prefix; nothing is kept.

        Args:
            contexts: the rows; still valid afterwards.
            prefixes: S token sequences of at least one token, read but not scored.
            candidates: S rows of C token sequences each.

        Returns:
            `[S, C]` float32 sums of token log-probabilities.
        """
        self._check(contexts)
        prefix, prefix_counts = pad(prefixes, bucket(max(map(len, prefixes))))
        longest = max(len(c) for row in candidates for c in row)
        size = bucket(longest)
        padded = [pad(column, size) for column in zip(*candidates, strict=True)]
        tails, tail_counts = (np.stack(part) for part in zip(*padded, strict=True))
        scores = passes.score(
            self._graph,
            self._params,
            contexts.cache,
            prefix,
            prefix_counts,
            tails,
            tail_counts,
            contexts.adapters,
            span=self._span(contexts.tokens),
        )
        return np.asarray(scores)

    def fork(self, contexts: Contexts, rows: np.ndarray) -> Contexts:
        """Row i of the result is a copy of row `rows[i]`; the source stays valid."""
        rows = np.asarray(rows, np.int32)
        tokens = tuple(contexts.tokens[row] for row in rows)
        cache, logits = passes.fork(contexts.cache, contexts.logits, rows, span=self._span(tokens))
        return Contexts(cache, logits, tokens, contexts.adapters[rows], contexts.version)

    def store(
        self, contexts: Contexts, rows: np.ndarray, source: Contexts, source_rows: np.ndarray
    ) -> Contexts:
        """Overwrite `rows` with `source_rows` of `source`. The target is consumed.

        Raises:
            ValueError: the two were not made with the same weights.
        """
        self._check(contexts)
        self._check(source)
        number = len(rows)
        if not number:
            return contexts
        size = bucket(number)
        cache, logits = passes.copy_rows(
            contexts.cache,
            contexts.logits,
            np.resize(np.asarray(rows, np.int32), size),
            source.cache,
            source.logits,
            np.resize(np.asarray(source_rows, np.int32), size),
            np.int32(number),
            span=self._span([source.tokens[row] for row in source_rows]),
        )
        tokens, adapters = list(contexts.tokens), contexts.adapters.copy()
        for row, source_row in zip(rows, source_rows, strict=True):
            tokens[row], adapters[row] = source.tokens[source_row], source.adapters[source_row]
        return Contexts(cache, logits, tuple(tokens), adapters, contexts.version)

    def shorten(self, contexts: Contexts, lengths: np.ndarray) -> Contexts:
        """Forget every token of row s behind `lengths[s]`; its logits are stale."""
        tokens = tuple(row[:length] for row, length in zip(contexts.tokens, lengths, strict=True))
        kept = jnp.asarray([len(row) for row in tokens], jnp.int32)
        cache = dataclasses.replace(contexts.cache, lengths=kept)
        return dataclasses.replace(contexts, cache=cache, tokens=tokens)

    def _check(self, contexts: Contexts) -> None:
        if contexts.version != self._version:
            raise ValueError(
                f"these contexts were made with weights {contexts.version}, the engine holds "
                f"weights {self._version}: read them anew"
            )

    def _seen(self, contexts: Contexts, configs: Sequence[SamplingConfig]) -> np.ndarray:
        """`[S, V]` bool: tokens that rows with a repetition penalty hold."""
        seen = np.zeros((len(configs), self.config.vocab_size), bool)
        for row, config in enumerate(configs):
            if config.repetition_penalty != 1:
                seen[row, list(contexts.tokens[row])] = True
        return seen

    def _span(self, tokens: Sequence[tuple[int, ...]]) -> int:
        """Columns that hold all of these rows: 0 where they have read nothing."""
        longest = max(map(len, tokens))
        if longest == 0:
            return 0
        spans = (SMALLEST_SPAN << power for power in itertools.count())
        return min(next(span for span in spans if span >= longest), self._columns)


def bucket(size: int) -> int:
    """The power of two, `SMALLEST_BUCKET` or more, that holds `size` tokens."""
    return max(SMALLEST_BUCKET, 1 << max(size - 1, 0).bit_length())


def pad(
    sequences: Sequence[Sequence[int]], size: int, fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad to `[S, size]` int32; also the `[S]` int32 true lengths."""
    padded = np.full((len(sequences), size), fill, np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded, np.array([len(s) for s in sequences], np.int32)


def _joined(
    tokens: tuple[tuple[int, ...], ...], new: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    return tuple((*row, *more) if more else row for row, more in zip(tokens, new, strict=True))


def _end_ids(end_ids: Sequence[int] | Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """`[S, E]`, filled up with a token that no row samples."""
    per_row = any(isinstance(ids, Sequence) for ids in end_ids)
    each: Any = end_ids if per_row else [end_ids] * rows
    return pad(each, bucket(max(map(len, each))), NO_TOKEN)[0]
