"""The device side of the engine: weights in the form that passes take, and their cache rows.

Axes: R rows of a batch, T columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ixjax.generation import attention
from ixjax.generation import cache as kv
from ixjax.generation.attention import Implementation
from ixjax.generation.blocks import BlockPool, Context, Span
from ixjax.generation.buckets import CHUNKS, decode_spans, read_spans
from ixjax.generation.config import EngineConfig
from ixjax.generation.forward import Program, Weights
from ixjax.generation.stats import EngineStats
from ixjax.models import ModelConfig, Transformer, mesh_of
from ixjax.padding import round_up


def columns_of(model: ModelConfig) -> int:
    """Return the columns of the longest context, T."""
    return round_up(model.max_length, kv.BLOCK)


class Executor:
    """Runs the passes of one model; `use` sets the weights.

    Args:
        model: the decoder; its parameters may be sharded over a mesh.
        config: the attention kernel and the layout.
        stats: counts compilations.

    Attributes:
        attention: the chosen kernel.
        paged: whether passes read blocks in place (see `ixjax.generation.cache`).
        columns: T of the longest context.
        read_spans: T of passes that read or score.
        decode_spans: T of decode passes.
    """

    def __init__(self, model: Transformer, config: EngineConfig, stats: EngineStats):
        self.model_config, self.config, self.stats = model.config, config, stats
        mesh = mesh_of(model)
        self.mesh: Mesh | None = mesh if mesh.size > 1 else None
        devices = list(model.embedding[...].devices())
        self.attention: Implementation = attention.choose(
            config.attention, device=devices[0], config=model.config, devices=len(devices)
        )
        here = "contiguous" if devices[0].platform == "cpu" else "paged"
        self.paged = (here if config.layout == "auto" else config.layout) == "paged"
        self.columns = columns_of(model.config)
        self.read_spans = read_spans(self.columns)
        self.decode_spans = decode_spans(self.columns)

    def use(self, model: Transformer) -> None:
        """Set the weights; later ones must have the same shape."""
        sharding = model.embedding[...].sharding
        named = isinstance(sharding, NamedSharding)
        self.device = NamedSharding(sharding.mesh, PartitionSpec()) if named else None
        self._program = Program(model.config, self.attention)
        positions = self.columns + CHUNKS[-1]  # padding has positions, too
        weights = Weights.of(model, positions=positions)
        rotary = jax.device_put(weights.rotary, self.device)
        self._weights = dataclasses.replace(weights, rotary=rotary)

    def set_adapter(self, index: int, weights: Mapping[str, jax.Array]) -> None:
        """Replace an adapter; see `Weights.with_adapter`."""
        self._weights = self._weights.with_adapter(index, weights)

    def model(self) -> Transformer:
        """Return the decoder, with a copy of its blocks."""
        return self._weights.model(self.model_config)

    def run(self, function: Any, *arguments: Any, **static: Any) -> Any:
        """Call a pass with the program and the weights."""
        return self.stats.call(function, self._program, self._weights, *arguments, **static)

    def batch(
        self, pool: BlockPool, contexts: Sequence[Context | None], lengths: Any, span: int
    ) -> kv.Batch:
        """Return the rows that a pass of `extend` or `score` attends to.

        Args:
            pool: stores their blocks.
            contexts: R; None for a row that is padding.
            lengths: `[R]` tokens of each to attend to; all of them are stored.
            span: T, at least the largest length.
        """
        if not span:
            return kv.Batch(None, None, lengths)
        if self.paged or not kv.slice_by_slice(self.mesh):
            return kv.Batch(pool.arrays, block_table(contexts, lengths, span), lengths)
        copies = copies_of(dict(enumerate(contexts)), lengths, span)
        return kv.Batch(pool.arrays, copies, lengths)

    def gather(self, pool: BlockPool, copies: kv.Copies, *, rows: int, span: int) -> Any:
        """Return `Batch.past` of a new contiguous batch."""
        static = {"rows": rows, "span": span, "mesh": self.mesh}
        return self.stats.call(kv.gather, pool.arrays, copies, **static)

    def turn_buffer(self, rows: int) -> Any:
        """Return an empty turn buffer for R rows."""
        return kv.turn_buffer(self.model_config, rows, mesh=self.mesh, device=self.device)


def block_table(contexts: Sequence[Context | None], lengths: np.ndarray, span: int) -> Any:
    """Return `[R, span / BLOCK]` int32 block numbers; 0 where a row has none."""
    table = np.zeros((len(contexts), span // kv.BLOCK), np.int32)
    for row, (context, length) in enumerate(zip(contexts, lengths, strict=True)):
        if context is not None:
            blocks = context.blocks[: kv.num_blocks(int(length))]
            table[row, : len(blocks)] = blocks
    return table


def copies_of(contexts: dict[int, Context | None], lengths: np.ndarray, span: int) -> kv.Copies:
    """Return the blocks to copy into a batch of R rows, for contexts by row."""
    size = len(lengths) * span // kv.BLOCK
    found = [
        (row, place, block)
        for row, context in contexts.items()
        if context is not None
        for place, block in enumerate(context.blocks[: kv.num_blocks(int(lengths[row]))])
    ]
    return kv.Copies(*_columns(found, 3, size), number=np.int32(len(found)))


def writes_of(spans: dict[int, list[Span]], firsts: np.ndarray, width: int) -> kv.Writes:
    """Return the blocks to write for the R rows of a pass.

    Args:
        spans: from `BlockPool.extend`, by row.
        firsts: `[R]` index of the new token of each row at which its first span begins.
        width: n, tokens of a row at most.
    """
    most = width // kv.BLOCK + 2  # blocks that n columns can touch
    found = [
        (row, int(firsts[row]) + span.first, span.source, span.block, span.offset, span.columns)
        for row, row_spans in spans.items()
        for span in row_spans
    ]
    return kv.Writes(*_columns(found, 6, len(firsts) * most), number=np.int32(len(found)))


def _columns(entries: Sequence[tuple[int, ...]], fields: int, most: int) -> Any:
    """Return the fields of entries, each `[most]` int32, padded with zeros."""
    columns = np.zeros((fields, most), np.int32)
    if entries:
        columns[:, : len(entries)] = np.array(entries, np.int32).T
    return columns
