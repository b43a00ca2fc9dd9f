"""The engine: token ids in, token ids out, over rows of a KV cache.

Three operations share one forward pass. `extend` reads new tokens into rows (prefill and appending
a turn are the same thing), `decode` samples turns, and `score` gives the log-probability of given
continuations without keeping them. The engine knows no text and no roles;
`ixjax.generation.speakers` does.

Contexts may be any number of rows. The engine works on batches of a fixed number of them, so that
few shapes are ever compiled (`ixjax.generation.buckets`) and a row that has nothing to do costs
nothing. What is compiled lies in `ixjax.generation.passes`.

Axes: S cache rows, R rows of a batch, V vocabulary, C candidates.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ixjax.generation import attention, passes
from ixjax.generation import cache as kv
from ixjax.generation.account import Account
from ixjax.generation.buckets import (
    PIECES,
    SMALLEST_SPAN,
    bucket,
    filled,
    group,
    pad,
    round_up,
    span_of,
)
from ixjax.generation.config import EngineConfig
from ixjax.generation.resident import ResidentBatch
from ixjax.generation.sampling import RowSampling, SamplingConfig
from ixjax.generation.stops import START, StopTable, stack_stops, state_after
from ixjax.models import FULL_UNROLL_LAYERS, Transformer

NO_TOKEN = -1

_versions = itertools.count()  # of weights, in this process


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Rows of live contexts: what the device holds, and what the host knows of it.

    cache: keys, values and logits; those of a row whose turn ended are garbage.
    tokens: S tuples, what each row has read.
    adapters: `[S]` the adapter that each row is read with (-1: the base alone).
    version: the weights that it was made with.
    """

    cache: kv.KVCache
    tokens: tuple[tuple[int, ...], ...]
    adapters: np.ndarray  # [S]
    version: int

    @property
    def lengths(self) -> np.ndarray:
        """`[S]` tokens in each row."""
        return np.array([len(row) for row in self.tokens])

    @property
    def logits(self) -> jax.Array:
        """`[S, V]` float32 behind each row's last token."""
        return self.cache.logits


@dataclasses.dataclass(frozen=True)
class Turns:
    """What rows are to say: how it is drawn and where it ends. Each array has one entry a row.

    sampling: temperature and the like; its own `max_new_tokens` and `stop` are not used.
    seed: of the run, for all rows or for each.
    identities: `[S, k]` uint32, what each row is (see `sampling.identity_keys`).
    limits: `[S]` tokens sampled at most; a row with 0 neither samples nor grows.
    end_ids: tokens that end a turn, for all rows or for each.
    stops: which of the engine's sets of stop strings ends a turn, counted from 1; 0: none.
    said: S sequences, what each row has said of its turn before; None: nothing.
    """

    sampling: SamplingConfig | Sequence[SamplingConfig]
    seed: int | Sequence[int]
    identities: np.ndarray
    limits: Sequence[int] | np.ndarray
    end_ids: Sequence[int] | Sequence[Sequence[int]] = ()
    stops: int | Sequence[int] = 0
    said: Sequence[Sequence[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What was sampled.

    tokens: S lists; the token that ended a turn is included.
    logprobs: S lists, the log-probability of each under the full softmax.
    running: `[S]` whether the row's turn can go on: it neither ended nor reached its limit.
    ended: `[S]` whether an end token or a stop string ended it.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    running: np.ndarray  # [S]
    ended: np.ndarray  # [S]

    @property
    def counts(self) -> np.ndarray:
        """`[S]` tokens sampled, an end token included; 0 for rows that sampled none."""
        return np.array([len(row) for row in self.tokens])


class Engine:
    """Reads and samples for one model.

    Args:
        model: the decoder; its parameters may be sharded over a mesh.
        config: sizes of its batches, and the attention kernel.
        stops: sets of stop strings that rows may choose from (see `stop_set`).
        account: where its work is added up; default a new one.

    Attributes:
        attention: the implementation that was chosen.
        account: see the argument.
    """

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig | None = None,
        *,
        stops: Mapping[tuple[str, ...], StopTable] | None = None,
        account: Account | None = None,
    ):
        self.model_config = model.config
        self.config = config or EngineConfig()
        self.account = account or Account()
        self._stops = dict(stops or {})
        self._mesh = _mesh_of(model)
        devices = jax.local_devices()[:1] if self._mesh is None else self._mesh.devices.flat
        self.attention = attention.choose(
            self.config.attention,
            platform=devices[0].platform,
            config=model.config,
            devices=len(devices),
        )
        # A scan over layers is compiled as fast as one layer, but copies each layer's keys and
        # values at every step: too dear for many of them where a kernel reads them in place.
        few = model.config.num_layers <= FULL_UNROLL_LAYERS
        self._apart = few or self.attention != "xla"
        # Behind a full row there is room for one padded piece or chunk (see cache.append).
        room = max(PIECES[-1], self.config.steps)
        self.columns = round_up(model.config.max_length + room, SMALLEST_SPAN)
        tables = stack_stops([*self._stops.values()], vocab_size=model.config.vocab_size)
        self._stop_tables = jnp.asarray(tables)
        self.update(model)

    def update(self, model: Transformer) -> None:
        """Take other weights of the same shape; contexts made with the former are refused.

        Raises:
            ValueError: the model has another shape.
        """
        if model.config != self.model_config:
            raise ValueError(
                f"this engine was made for {self.model_config}, not for {model.config}"
            )
        self._program = passes.Program(nnx.graphdef(model), self.attention)
        self._weights = passes.Weights.of(model, apart=self._apart)
        self._version = next(_versions)
        self._residents: dict[int, ResidentBatch] = {}
        self._spare: dict[tuple[int, ...], Contexts] = {}

    def stop_set(self, strings: tuple[str, ...]) -> int:
        """What `Turns.stops` says of a row that these strings stop; 0 where there are none."""
        return 1 + list(self._stops).index(strings) if strings else 0

    def empty(self, rows: int, *, adapters: Sequence[int] | int = 0) -> Contexts:
        """Rows that have read nothing.

        Args:
            rows: S.
            adapters: the adapter of each row, or of all; -1: the base alone.
        """
        cache = kv.allocate(self.model_config, rows, self.columns, mesh=self._mesh)
        chosen = np.broadcast_to(np.asarray(adapters, np.int32), (rows,))
        return Contexts(cache, ((),) * rows, chosen, self._version)

    def borrow(self, adapters: Sequence[int]) -> Contexts:
        """Rows with these adapters whose content is anything, to `give_back` when done with.

        Large caches take long to allocate; rows that were given back before are handed out again.
        """
        spare = self._spare.pop(tuple(adapters), None)
        return self.empty(len(adapters), adapters=adapters) if spare is None else spare

    def give_back(self, contexts: Contexts) -> None:
        """Keep rows that nobody needs any more for the next `borrow`."""
        if contexts.version == self._version:
            self._spare[tuple(contexts.adapters.tolist())] = contexts

    def extend(self, contexts: Contexts, tokens: Sequence[Sequence[int]]) -> Contexts:
        """Read `tokens[s]` into row s (an empty sequence leaves it as it is).

        The given contexts are consumed. What is long is read in pieces.

        Raises:
            ValueError: a row would outgrow the model's `max_length`, or the contexts were made
                with other weights.
        """
        self._check(contexts)
        before, counts = contexts.lengths, np.array([len(t) for t in tokens])
        if (before + counts).max() > self.model_config.max_length:
            row = int((before + counts).argmax())
            raise ValueError(
                f"row {row} holds {before[row]} tokens and was given {counts[row]} "
                f"more; the model's max_length is {self.model_config.max_length}"
            )
        with self.account.clock("prefill"):
            left = [tuple(t) for t in tokens]
            while any(left):
                contexts, left = self._extend_pieces(contexts, left)
            jax.block_until_ready(contexts.cache.lengths)
        return contexts

    def _extend_pieces(
        self, contexts: Contexts, left: list[tuple[int, ...]]
    ) -> tuple[Contexts, list[tuple[int, ...]]]:
        """Read the next piece of every row that has something left."""
        groups = group(
            [len(tokens) for tokens in left],
            contexts.lengths.tolist(),
            prefill_tokens=self.config.prefill_tokens,
            most_rows=len(left),
        )
        read = [tokens[: PIECES[-1]] for tokens in left]
        cache = contexts.cache
        for part in groups:
            rows = filled(part.rows, part.size)
            tokens, counts = pad([read[row] for row in rows], part.piece)
            batch = self._take(cache, contexts.tokens, rows)
            new, logits = self.account.call(
                passes.extend,
                self._program,
                self._weights,
                batch,
                tokens,
                counts,
                contexts.adapters[rows],
            )
            cache = self._append(cache, part.rows, np.arange(len(rows)), new, counts, logits)
            self.account.prefill_tokens += int(counts[: len(part.rows)].sum())
            self.account.prefill_slots += part.size * part.piece
        tokens = _joined(contexts.tokens, read)
        contexts = dataclasses.replace(contexts, cache=cache, tokens=tokens)
        return contexts, [tokens[PIECES[-1] :] for tokens in left]

    def decode(self, contexts: Contexts, turns: Turns) -> tuple[Contexts, Decoded]:
        """Sample each row's turn to its end, from its logits on.

        The given contexts are consumed. Sampled tokens are read into the row, the end token that
        closed it is not. A row that was stopped by its limit alone can be decoded on. Rows that
        have ended make room for others.

        Raises:
            ValueError: a row would outgrow its room, or the contexts were made with other weights.
        """
        limits = np.array(turns.limits, np.int32)
        said = [tuple(row) for row in turns.said or [()] * len(limits)]
        tokens: list[list[int]] = [[] for _ in said]
        logprobs: list[list[float]] = [[] for _ in said]
        running, ended = limits > 0, np.zeros(len(limits), bool)
        while running.any():
            part = dataclasses.replace(
                turns,
                limits=np.where(running, limits - [len(row) for row in tokens], 0),
                said=[(*before, *row) for before, row in zip(said, tokens, strict=True)],
            )
            contexts, decoded = self.decode_chunk(contexts, part)
            for row in np.flatnonzero(running):
                tokens[row] += decoded.tokens[row]
                logprobs[row] += decoded.logprobs[row]
            running, ended = decoded.running, ended | decoded.ended
        return contexts, Decoded(tokens, logprobs, running, ended)

    def decode_chunk(
        self, contexts: Contexts, turns: Turns, *, stay: int = 0
    ) -> tuple[Contexts, Decoded]:
        """As `decode`, of `config.steps` tokens a row at most; those that it cut are `running`.

        Args:
            contexts: consumed.
            turns: what is to be said; rows beyond the first `config.rows` are put into further
                batches.
            stay: a batch pauses once no more than `stay` of its rows still run, so that others
                can take the places of those that have ended.

        Raises:
            ValueError: see `decode`.
        """
        self._check(contexts)
        limits = np.asarray(turns.limits, np.int32)
        full = np.where(limits > 0, contexts.lengths + limits, 0)
        if full.max() > self.columns:
            row = int(full.argmax())
            raise ValueError(
                f"row {row} holds {len(contexts.tokens[row])} tokens; {limits[row]} more exceed "
                f"its room of {self.columns}"
            )
        active = np.flatnonzero(limits > 0)
        size = self._batch_rows(len(limits))
        running, ended = limits > 0, np.zeros(len(limits), bool)
        tokens: list[list[int]] = [[] for _ in limits]
        logprobs: list[list[float]] = [[] for _ in limits]
        with self.account.clock("decode"):
            for start in range(0, len(active), size):
                rows = active[start : start + size]
                contexts, sampled, slots = self._decode_batch(contexts, turns, rows, size, stay)
                for row, slot in zip(rows, slots, strict=True):
                    count = int(sampled.counts[slot])
                    tokens[row] = sampled.tokens[slot, :count].tolist()
                    logprobs[row] = sampled.logprobs[slot, :count].tolist()
                    running[row] = sampled.running[slot]
                    ended[row] = sampled.kept[slot] < count
        return contexts, Decoded(tokens, logprobs, running, ended)

    def _batch_rows(self, rows: int) -> int:
        """Rows of the batches for contexts of so many rows."""
        return min(self.config.rows, bucket(rows, smallest=1))

    def _decode_batch(
        self, contexts: Contexts, turns: Turns, active: np.ndarray, size: int, stay: int
    ) -> tuple[Contexts, passes.Sampled, np.ndarray]:
        """One pass over some rows: contexts after it, what was sampled, each row's slot."""
        resident = self._residents.setdefault(
            size, ResidentBatch(size, apart=self._apart, mesh=self._mesh, account=self.account)
        )
        adapters = [int(contexts.adapters[row]) for row in active]
        keys = [(contexts.tokens[row], a) for row, a in zip(active, adapters, strict=True)]
        batch, slots = resident.place(contexts.cache, active, keys, room=self.config.steps)
        # Slots that no row is in are padding, and limited to nothing.
        row_of = np.full(size, active[0], np.int32)
        row_of[slots] = active
        new, logits, sampled = self.account.call(
            passes.decode,
            self._program,
            self._weights,
            batch,
            contexts.adapters[row_of],
            self._draws(contexts, turns, row_of, np.isin(np.arange(size), slots), stay),
            steps=self.config.steps,
        )
        cache = self._append(contexts.cache, active, slots, new, sampled.kept, logits)
        found = jax.device_get(sampled)
        tokens = list(contexts.tokens)
        for row, slot in zip(active, slots, strict=True):
            read = found.tokens[slot, : found.kept[slot]].tolist()
            tokens[row] = (*tokens[row], *read)
        keys = [(tokens[row], a) for row, a in zip(active, adapters, strict=True)]
        resident.keep(batch, new, sampled.kept, logits, slots, keys)
        self.account.decode_tokens += int(found.counts.sum())
        self.account.decode_slots += size * int(found.counts.max())
        contexts = dataclasses.replace(contexts, cache=cache, tokens=tuple(tokens))
        return contexts, found, slots

    def _draws(
        self, contexts: Contexts, turns: Turns, rows: np.ndarray, used: np.ndarray, stay: int
    ) -> passes.Draws:
        """`Turns` of some rows as the pass takes them; those that are not `used` are padding."""
        one = isinstance(turns.sampling, SamplingConfig)
        configs = [turns.sampling if one else turns.sampling[row] for row in rows]  # type: ignore
        said = [() if turns.said is None else turns.said[row] for row in rows]
        sets = _by_row(turns.stops, contexts, np.int32)[rows]
        tables = [None, *self._stops.values()]
        states = [
            START if table is None else state_after(table, before)
            for table, before in zip([tables[which] for which in sets], said, strict=True)
        ]
        limits = np.asarray(turns.limits, np.int32)[rows]
        return passes.Draws(
            seeds=_by_row(turns.seed, contexts, np.uint32)[rows],
            identities=np.asarray(turns.identities, np.uint32)[rows],
            offsets=np.array([len(before) for before in said], np.int32),
            limits=np.where(used, limits, 0),
            end_ids=_end_ids(turns.end_ids, rows),
            rows=RowSampling.of(configs),
            seen=self._seen(contexts, rows, configs),
            stop_tables=self._stop_tables,
            stop_sets=sets,
            stop_states=np.array(states, np.int32),
            stay=np.int32(stay),
        )

    def score(
        self,
        contexts: Contexts,
        prefixes: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[Sequence[int]]],
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """Log-probability of each candidate continuation after a forced prefix; nothing is kept.

        Args:
            contexts: the rows; still valid afterwards.
            prefixes: a token sequence of at least one token for each row, read but not scored.
            candidates: for each row, C token sequences.
            rows: which rows; default all S.

        Returns:
            `[len(rows), C]` float32 sums of token log-probabilities.
        """
        self._check(contexts)
        rows = np.arange(len(contexts.tokens)) if rows is None else np.asarray(rows)
        prefix, prefix_counts = pad(prefixes, bucket(max(map(len, prefixes))))
        longest = bucket(max(len(c) for row in candidates for c in row))
        padded = [pad(row, longest) for row in candidates]
        tails = np.stack([tokens for tokens, _ in padded], axis=1)  # [C, rows, n]
        tail_counts = np.stack([counts for _, counts in padded], axis=1)
        size = self._batch_rows(len(rows))
        scores = []
        with self.account.clock("score"):
            for start in range(0, len(rows), size):
                part = filled(np.arange(start, min(start + size, len(rows))), size)
                found = self.account.call(
                    passes.score,
                    self._program,
                    self._weights,
                    self._take(contexts.cache, contexts.tokens, rows[part]),
                    prefix[part],
                    prefix_counts[part],
                    tails[:, part],
                    tail_counts[:, part],
                    contexts.adapters[rows[part]],
                )
                scores.append(np.asarray(found)[: len(rows) - start])
        self.account.score_tokens += int(prefix_counts.sum() + tail_counts.sum())
        return np.concatenate(scores)

    def fork(self, contexts: Contexts, rows: Sequence[int] | np.ndarray) -> Contexts:
        """Row i of the result is a copy of row `rows[i]`; the source stays valid."""
        empty = self.empty(len(rows))
        return self.store(empty, np.arange(len(rows)), contexts, np.asarray(rows))

    def store(
        self,
        contexts: Contexts,
        rows: Sequence[int] | np.ndarray,
        source: Contexts,
        source_rows: Sequence[int] | np.ndarray,
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
        held = [source.tokens[row] for row in source_rows]
        size = bucket(number)
        cache = self.account.call(
            kv.copy_rows,
            contexts.cache,
            filled(rows, size),
            source.cache,
            filled(source_rows, size),
            np.int32(number),
            span=span_of(max(map(len, held)), self.columns),
            mesh=self._mesh,
        )
        tokens, adapters = list(contexts.tokens), contexts.adapters.copy()
        for row, source_row in zip(rows, source_rows, strict=True):
            tokens[row], adapters[row] = source.tokens[source_row], source.adapters[source_row]
        return Contexts(cache, tuple(tokens), adapters, contexts.version)

    def shorten(self, contexts: Contexts, lengths: Sequence[int] | np.ndarray) -> Contexts:
        """Forget every token of row s behind `lengths[s]`; its logits are stale."""
        tokens = tuple(row[:length] for row, length in zip(contexts.tokens, lengths, strict=True))
        if tokens == contexts.tokens:
            return contexts
        kept = jnp.asarray([len(row) for row in tokens], jnp.int32)
        kept = jax.device_put(kept, contexts.cache.lengths.sharding)
        cache = dataclasses.replace(contexts.cache, lengths=kept)
        return dataclasses.replace(contexts, cache=cache, tokens=tokens)

    def _take(
        self, cache: kv.KVCache, tokens: Sequence[tuple[int, ...]], rows: np.ndarray
    ) -> kv.Batch:
        span = span_of(max(len(tokens[row]) for row in rows), self.columns)
        return self.account.call(
            kv.take, cache, rows, span=span, apart=self._apart, mesh=self._mesh
        )

    def _append(
        self,
        cache: kv.KVCache,
        rows: Sequence[int] | np.ndarray,
        slots: np.ndarray,
        new: kv.Layer,
        counts: Any,
        logits: jax.Array,
    ) -> kv.KVCache:
        """Write what a pass read behind `rows`, which lay in its `slots`."""
        size = len(counts)
        return self.account.call(
            kv.append,
            cache,
            filled(rows, size),
            filled(slots, size),
            np.int32(len(rows)),
            new,
            counts,
            logits,
            mesh=self._mesh,
        )

    def _check(self, contexts: Contexts) -> None:
        if contexts.version != self._version:
            raise ValueError(
                f"these contexts were made with weights {contexts.version}, the engine holds "
                f"weights {self._version}: read them anew"
            )

    def _seen(
        self, contexts: Contexts, rows: np.ndarray, configs: Sequence[SamplingConfig]
    ) -> np.ndarray:
        """`[R, V]` bool: tokens that rows with a repetition penalty hold."""
        seen = np.zeros((len(rows), self.model_config.vocab_size), bool)
        for i, (row, config) in enumerate(zip(rows, configs, strict=True)):
            if config.repetition_penalty != 1:
                seen[i, list(contexts.tokens[row])] = True
        return seen


def _mesh_of(model: Transformer) -> Mesh | None:
    """The mesh that a model is sharded over; None where it lies on one device."""
    sharding = model.embedding[...].sharding
    mesh = getattr(sharding, "mesh", None)
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def _by_row(value: int | Sequence[int], contexts: Contexts, dtype: Any) -> np.ndarray:
    """`[S]`: one value for all rows, or theirs."""
    return np.broadcast_to(np.asarray(value, dtype), (len(contexts.tokens),))


def _joined(
    tokens: tuple[tuple[int, ...], ...], new: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    return tuple((*row, *more) if more else row for row, more in zip(tokens, new, strict=True))


def _end_ids(end_ids: Sequence[int] | Sequence[Sequence[int]], rows: np.ndarray) -> np.ndarray:
    """`[R, E]`, filled up with a token that no row samples."""
    per_row = any(isinstance(ids, Sequence) for ids in end_ids)
    each: Any = [end_ids[row] for row in rows] if per_row else [end_ids] * len(rows)
    return pad(each, bucket(max(map(len, each))), NO_TOKEN)[0]
