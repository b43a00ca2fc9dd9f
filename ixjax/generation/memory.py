"""What two speakers hold in a device's memory while they play, from shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ixjax.generation import cache as kv
from ixjax.generation.buckets import PIECES, bucket, pass_sizes
from ixjax.generation.config import EngineConfig
from ixjax.generation.executor import columns_of
from ixjax.generation.scheduler import rows_in_play
from ixjax.models import ModelConfig
from ixjax.models.placement import describe_sharding, device_share
from ixjax.parallel import AnyMesh

SIDES = 2  # policy and user, a model and an engine each


@dataclasses.dataclass(frozen=True)
class PlayMemory:
    """Bytes on one device, of both speakers."""

    weights: int
    """Parameters of all models."""
    copies: int
    """Their engines' own copies of the blocks, where they take them apart."""
    cache: int
    """Rows of dialogues in play and of contexts that are kept: keys, values and logits."""
    batches: int
    """Rows that are decoded, copied out of the cache, and what they are saying."""
    reading: int
    """The larger of the passes that read: its rows, and the attention scores of a layer."""

    @property
    def peak(self) -> int:
        """All of it."""
        return self.weights + self.copies + self.cache + self.batches + self.reading


def play_memory(
    config: ModelConfig,
    mesh: AnyMesh,
    engine: EngineConfig,
    *,
    games: int,
    kept: int,
    apart: bool,
    models: int = SIDES,
) -> PlayMemory:
    """Bytes that two speakers with a model each take while they play.

    Args:
        config: of both models.
        mesh: real or abstract.
        engine: sizes of its batches.
        games: dialogues that are wanted side by side.
        kept: contexts that are kept to come back to.
        apart: whether the engine takes the blocks apart (few layers, or an attention kernel).
        models: that are there, with an engine each; two of them play.
    """
    placement, columns = describe_sharding(config, mesh), columns_of(config, engine)
    blocks = sum(w.device_bytes for w in placement.weights if w.name.startswith("layers."))
    rows = rows_in_play(engine, games, shared=False) + kept
    size = min(engine.rows, bucket(rows, smallest=1))
    return PlayMemory(
        weights=models * placement.weight_bytes,
        copies=models * blocks if apart else 0,
        cache=SIDES * cache_bytes(config, mesh, rows, columns),
        batches=SIDES * cache_bytes(config, mesh, size, columns + kv.SIDE),
        reading=_reading_bytes(config, mesh, engine, rows, columns),
    )


def cache_bytes(config: ModelConfig, mesh: AnyMesh, rows: int, columns: int) -> int:
    """Bytes that a cache of so many rows and columns takes on one device."""
    share, parts = device_share(config, mesh), mesh.shape["data"] * mesh.shape["fsdp"]
    share = dataclasses.replace(share, vocab_size=config.vocab_size)  # rows' logits are whole
    if rows % parts == 0:  # else they lie on every device, see `parallel.partition_spec`
        rows //= parts
    return _bytes(jax.eval_shape(lambda: kv.allocate(share, rows, columns)))


def _reading_bytes(
    config: ModelConfig, mesh: AnyMesh, engine: EngineConfig, rows: int, columns: int
) -> int:
    """Of the pass over the shortest pieces, which has the most rows."""
    size = pass_sizes(PIECES[0], prefill_tokens=engine.prefill_tokens, most_rows=rows)[0]
    share = device_share(config, mesh)
    scores = 4 * size * PIECES[0] * share.num_heads * (columns + PIECES[0])
    return cache_bytes(config, mesh, size, columns) + 2 * scores  # and the softmax of them


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
