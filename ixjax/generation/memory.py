"""Device memory that two speakers take while they play, computed from shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ixjax.generation import cache as kv
from ixjax.generation.buckets import CHUNKS, pass_sizes
from ixjax.generation.config import EngineConfig
from ixjax.generation.executor import columns_of
from ixjax.models import ModelConfig
from ixjax.models.placement import describe_sharding, device_share
from ixjax.padding import quarter_bucket, round_up
from ixjax.parallel import AnyMesh

SIDES = 2  # policy and user, each with a model
TYPICAL = 1 / 2  # share of the most tokens that is reserved: few turns are as long as they may be
MARKUP = 16  # tokens of a chat template around a turn, an upper estimate


def dialogue_tokens(turns: int, turn: int, longest: int) -> int:
    """Return an upper estimate of the tokens stored for a dialogue.

    Args:
        turns: turns of the policy, each followed by one of the user.
        turn: most tokens of a turn.
        longest: most tokens of a context.
    """
    # The last block is partly empty.
    return min(2 * turns * (turn + MARKUP), longest) + kv.BLOCK


@dataclasses.dataclass(frozen=True)
class PlayMemory:
    """Bytes on one device, of both speakers."""

    weights: int
    """Parameters of all models."""
    copies: int
    """The blocks of one model a second time, while an engine takes them layer by layer."""
    cache: int
    """Blocks of all contexts: keys and values."""
    batches: int
    """Decode batches: contexts copied out of blocks, and turn buffers."""
    reading: int
    """The largest pass that reads: one layer of its rows, and its attention scores."""

    @property
    def peak(self) -> int:
        """Return the sum of all fields."""
        return self.weights + self.copies + self.cache + self.batches + self.reading


def play_memory(
    config: ModelConfig,
    mesh: AnyMesh,
    engine: EngineConfig,
    *,
    tokens: int,
    longest: int,
    paged: bool,
    models: int = SIDES,
) -> PlayMemory:
    """Return the bytes that two speakers take while they play.

    Args:
        config: of their models.
        mesh: real or abstract.
        engine: sizes of the batches.
        tokens: most tokens stored at once by both sides.
        longest: most tokens of a context.
        paged: whether passes read blocks in place.
        models: models in memory, each with an engine; two of them play, or one with two adapters.
    """
    placement = describe_sharding(config, mesh)
    layers = sum(w.device_bytes for w in placement.weights if w.name.startswith("layers."))
    tokens = min(tokens, engine.pool_tokens) if engine.pool_tokens else tokens
    span = 0 if paged else min(round_up(longest, kv.BLOCK), columns_of(config))
    rows = engine.rows
    return PlayMemory(
        weights=models * placement.weight_bytes,
        copies=layers,
        cache=cache_bytes(config, mesh, quarter_bucket(kv.num_blocks(tokens))),
        batches=min(models, SIDES) * cache_bytes(config, mesh, rows * (span + kv.TURN) // kv.BLOCK),
        reading=_reading_bytes(config, mesh, engine, span),
    )


def cache_bytes(config: ModelConfig, mesh: AnyMesh, blocks: int) -> int:
    """Return the bytes that `blocks` blocks take on one device."""
    share, parts = device_share(config, mesh), mesh.shape["data"] * mesh.shape["fsdp"]
    here = round_up(blocks, parts) // parts
    return _bytes(jax.eval_shape(lambda: kv.allocate(share, here)))


def _reading_bytes(config: ModelConfig, mesh: AnyMesh, engine: EngineConfig, span: int) -> int:
    """Return the bytes of the pass over the shortest chunks, which has the most rows."""
    sizes = pass_sizes(CHUNKS[0], prefill_tokens=engine.prefill_tokens, rows=engine.rows)
    share, chunk = device_share(config, mesh), CHUNKS[0]
    scores = 4 * sizes[0] * chunk * share.num_heads * (span + chunk)
    rows = cache_bytes(config, mesh, sizes[0] * span // kv.BLOCK) // config.num_layers
    return rows + 2 * scores  # scores and their softmax


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
