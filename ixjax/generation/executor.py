"""The executor: one model's compiled passes, over batches of fixed sizes.

It puts rows of a cache of any size into a batch, runs a pass over it and writes what was read back
behind the rows. It knows arrays and row numbers; whose tokens they are the engine knows.

Axes: S cache rows, R rows of a batch, V vocabulary, C candidates.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ixjax.generation import attention, passes
from ixjax.generation import cache as kv
from ixjax.generation.account import Account
from ixjax.generation.attention import Implementation
from ixjax.generation.buckets import (
    FEW,
    FEWEST_TOKENS,
    PIECES,
    SMALLEST_SPAN,
    bucket,
    filled,
    pass_sizes,
    round_up,
    spans,
)
from ixjax.generation.config import EngineConfig
from ixjax.generation.resident import Key, ResidentBatch
from ixjax.models import FULL_UNROLL_LAYERS, ModelConfig, Transformer, mesh_of


def columns_of(model: ModelConfig, config: EngineConfig) -> int:
    """Columns of a cache row: the longest context, and room behind it (see `cache.append`)."""
    room = max(PIECES[-1], config.steps)  # for one padded piece or chunk
    return round_up(model.max_length + room, SMALLEST_SPAN)


class Executor:
    """Runs the passes of one model, once it was given weights (`use`).

    Args:
        model: the decoder; its parameters may be sharded over a mesh.
        config: sizes of its batches, and the attention kernel.
        account: where compilations are counted.

    Attributes:
        attention: the implementation that was chosen.
        columns: T of the caches.
    """

    def __init__(self, model: Transformer, config: EngineConfig, account: Account):
        self.model_config, self.config, self.account = model.config, config, account
        mesh = mesh_of(model)
        self.mesh = mesh if mesh.size > 1 else None
        devices = list(model.embedding[...].devices())
        self.attention: Implementation = attention.choose(
            config.attention,
            device=devices[0],
            config=model.config,
            devices=len(devices),
        )
        # A scan over layers is compiled as fast as one layer, but copies each layer's keys and
        # values at every step: too dear for many of them where a kernel reads them in place.
        few = model.config.num_layers <= FULL_UNROLL_LAYERS
        self._apart = few or self.attention != "xla"
        self.columns = columns_of(model.config, config)

    def use(self, model: Transformer) -> None:
        """Take these weights, of the same shape as the former."""
        sharding = model.embedding[...].sharding
        named = isinstance(sharding, NamedSharding)
        self._device = NamedSharding(sharding.mesh, PartitionSpec()) if named else None
        self._program = passes.Program(model.config, nnx.graphdef(model), self.attention)
        weights = passes.Weights.of(model, apart=self._apart, positions=self.columns)
        rotary = jax.device_put(weights.rotary, self._device)
        self._weights = dataclasses.replace(weights, rotary=rotary)
        self._residents: dict[int, ResidentBatch] = {}

    def batch_rows(self, rows: int) -> int:
        """R of the batches for a cache of so many rows."""
        return min(self.config.rows, bucket(rows, smallest=1))

    def score_rows(self, rows: int) -> tuple[int, int]:
        """R of a batch that is scored, and of one of few rows."""
        full = self.batch_rows(rows)
        # The shortest prefixes and lines are padded to so many tokens.
        return full, min(max(full // FEW, FEWEST_TOKENS // bucket(1)), full)

    def allocate(self, rows: int) -> kv.KVCache:
        """An empty cache."""
        return kv.allocate(
            self.model_config, rows, self.columns, mesh=self.mesh, device=self._device
        )

    def extend(
        self,
        cache: kv.KVCache,
        rows: Sequence[int],
        tokens: np.ndarray,
        counts: np.ndarray,
        adapters: np.ndarray,
        *,
        span: int,
    ) -> kv.KVCache:
        """Read `counts[r]` of `tokens[r]` into row `rows[r]`.

        Args:
            cache: consumed.
            rows: at most R.
            tokens: `[R, n]`.
            counts: `[R]`.
            adapters: `[R]`.
            span: columns that hold what all of these rows have read.
        """
        size = len(tokens)
        batch = self._take(cache, filled(rows or [0], size), span)
        new, logits = self._call(passes.extend, batch, tokens, counts, adapters)
        return self._append(cache, rows, np.arange(size), new, counts, logits, tokens.shape[1])

    def place(
        self, cache: kv.KVCache, rows: Sequence[int], keys: Sequence[Key]
    ) -> tuple[kv.Batch, np.ndarray]:
        """A batch that holds these rows, and the slot of each; see `ResidentBatch.place`."""
        size = self.batch_rows(cache.rows)
        if size not in self._residents:
            self._residents[size] = ResidentBatch(
                size,
                functools.partial(self._side_buffer, size),
                heads=self.model_config.num_heads,
                apart=self._apart,
                mesh=self.mesh,
                account=self.account,
            )
        return self._residents[size].place(cache, rows, keys)

    def decode(
        self,
        batch: kv.Batch,
        starts: np.ndarray,
        fills: np.ndarray,
        adapters: np.ndarray,
        draws: passes.Draws,
    ) -> tuple[Any, jax.Array, passes.Sampled]:
        """Sample behind the rows of a batch that `place` gave; see `passes.decode`."""
        side = self._residents[len(starts)].give_side()
        return self._call(
            passes.decode, batch, side, starts, fills, adapters, draws, steps=self.config.steps
        )

    def keep(
        self,
        cache: kv.KVCache,
        rows: Sequence[int],
        slots: np.ndarray,
        batch: kv.Batch,
        decoded: tuple[Any, jax.Array, passes.Sampled],
        fills: np.ndarray,
        keys: Sequence[Key],
        most: int,
    ) -> kv.KVCache:
        """What was decoded, behind the rows of the cache; the batch that `place` gave goes back.

        Args:
            cache: consumed.
            rows: that were placed.
            slots: where.
            batch: from `place`.
            decoded: from `decode`.
            fills: `[R]` that `decode` was given.
            keys: what the rows hold now.
            most: tokens that any of them was given.
        """
        side, logits, sampled = decoded
        width = min(bucket(most), self.config.steps)
        cache = self._append(cache, rows, slots, side, sampled.kept, logits, width, fills)
        self._residents[len(fills)].keep(batch, side, logits, slots, keys)
        return cache

    def score(
        self,
        cache: kv.KVCache,
        rows: Sequence[int],
        prefix: np.ndarray,
        prefix_counts: np.ndarray,
        tails: np.ndarray,
        tail_counts: np.ndarray,
        adapters: np.ndarray,
        *,
        span: int,
    ) -> jax.Array:
        """`[R, C]` log-probabilities of candidates behind rows; see `passes.score`."""
        batch = self._take(cache, np.asarray(rows, np.int32), span)
        arrays = (prefix, prefix_counts, tails, tail_counts, adapters)
        return self._call(passes.score, batch, *arrays)

    def copy_rows(
        self,
        cache: kv.KVCache,
        rows: Sequence[int] | np.ndarray,
        source: kv.KVCache,
        source_rows: Sequence[int] | np.ndarray,
        *,
        span: int,
    ) -> kv.KVCache:
        """Rows of one cache, which is consumed, over those of another, in parts of one size."""
        for into, out_of, count in self._in_parts(cache, rows, source_rows):
            cache = self.account.call(
                kv.copy_rows, cache, into, source, out_of, count, span=span, mesh=self.mesh
            )
        return cache

    def move_rows(
        self,
        cache: kv.KVCache,
        rows: Sequence[int] | np.ndarray,
        source_rows: Sequence[int] | np.ndarray,
        *,
        span: int,
    ) -> kv.KVCache:
        """As `copy_rows`, within one cache, which is consumed."""
        for into, out_of, count in self._in_parts(cache, rows, source_rows):
            cache = self.account.call(
                kv.move_rows, cache, into, out_of, count, span=span, mesh=self.mesh
            )
        return cache

    def _in_parts(
        self,
        cache: kv.KVCache,
        rows: Sequence[int] | np.ndarray,
        source_rows: Sequence[int] | np.ndarray,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.int32]]:
        """Rows to write, rows to read and how many of them count, in parts of one size."""
        size = self.batch_rows(cache.rows)
        for start in range(0, max(len(rows), 1), size):
            part, source_part = rows[start : start + size], source_rows[start : start + size]
            yield filled(part, size), filled(source_part, size), np.int32(len(part))

    def warm_up_rows(self, rows: int, draws: passes.Draws) -> None:
        """Compile all that reads and speaks from a cache of so many rows.

        Args:
            rows: S.
            draws: of which none is made, in the shape of those that will be.
        """
        cache, reach = self.allocate(rows), spans(self.columns)
        sizes = functools.partial(
            pass_sizes, prefill_tokens=self.config.prefill_tokens, most_rows=rows
        )
        shapes = [(piece, size) for piece in PIECES for size in sizes(piece)]
        for span in reach:
            for piece, size in shapes:
                none = np.zeros(size, np.int32)
                tokens = np.zeros((size, piece), np.int32)
                cache = self.extend(cache, [], tokens, none, none, span=span)
        none = np.zeros(self.batch_rows(rows), np.int32)
        move = functools.partial(self.account.call, mesh=self.mesh)
        steps = self.config.steps
        widths = sorted({min(bucket(most), steps) for most in range(steps + 1)})
        side = self._side_buffer(len(none))
        # Functions are compiled for how their arguments lie, too: so what may come between two
        # passes comes here as it will.
        for span, anew, aside in itertools.product(reach[1:], (True, False), (False, True)):
            batch = self._take(cache, none, span)
            for width in [*widths, widths[0]]:
                side, logits, sampled = self._call(
                    passes.decode, batch, side, none, none, none, draws, steps=steps
                )
                cache = self._append(cache, [], none, side, sampled.kept, logits, width, none)
                batch = dataclasses.replace(batch, logits=logits)
                if anew:
                    batch = move(kv.replace_rows, batch, none, cache, none, np.int32(0))
                if aside:
                    side = move(kv.fill_side, side, cache, none, none, none, np.int32(0))

    def warm_up_score(self, rows: int, prefix: int, candidates: int, longest: int) -> None:
        """Compile scoring of so many candidates, of as many tokens, behind a cache's rows."""
        cache = self.allocate(rows)
        for size in self.score_rows(rows):
            none = np.zeros(size, np.int32)
            prefixes = np.zeros((size, bucket(prefix)), np.int32)
            tails = np.zeros((candidates, size, bucket(longest)), np.int32)
            for span in spans(self.columns):
                self.score(
                    cache, none.tolist(), prefixes, none + 1, tails, tails[:, :, 0], none, span=span
                )

    def warm_up_copies(self, target: int, source: int) -> None:
        """Compile the copying of rows between caches of so many rows."""
        into, origin = self.allocate(target), self.allocate(source)
        for span in spans(self.columns):
            into = self.copy_rows(into, [], origin, [], span=span)

    def warm_up_moves(self, rows: int) -> None:
        """Compile the copying of rows within a cache of so many."""
        cache = self.allocate(rows)
        for span in spans(self.columns):
            cache = self.move_rows(cache, [], [], span=span)

    def _side_buffer(self, rows: int) -> Any:
        config, device = self.model_config, self._device
        return kv.side_buffer(config, rows, apart=self._apart, mesh=self.mesh, device=device)

    def _call(self, function: Any, *arguments: Any, **static: Any) -> Any:
        return self.account.call(function, self._program, self._weights, *arguments, **static)

    def _take(self, cache: kv.KVCache, rows: np.ndarray, span: int) -> kv.Batch:
        return self.account.call(kv.take, cache, rows, span=span, apart=self._apart, mesh=self.mesh)

    def _append(
        self,
        cache: kv.KVCache,
        rows: Sequence[int],
        slots: np.ndarray,
        new: Any,
        counts: Any,
        logits: jax.Array,
        width: int,
        begins: np.ndarray | None = None,
    ) -> kv.KVCache:
        """Write `width` columns of what a pass read behind `rows`, which lay in its `slots`."""
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
            np.zeros(size, np.int32) if begins is None else begins,
            width=width,
            mesh=self.mesh,
        )
