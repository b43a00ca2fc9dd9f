"""Blocks are copied and written exactly, in both layouts; the reference is NumPy indexing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ixjax.generation import cache as kv
from ixjax.models import ModelConfig
from ixjax.parallel import MeshConfig, make_mesh

CONFIG = ModelConfig(
    vocab_size=7,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=8,
    max_length=6,
)
BLOCKS, ROWS, SPAN = 8, 4, 192
# Blocks are moved as slices on one CPU device, and indexed elsewhere.
MESHES = [None, make_mesh(MeshConfig(data=4, tensor=2))]
by_mesh = pytest.mark.parametrize("mesh", MESHES, ids=["one", "eight"])


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pool() -> list[kv.Layer]:
    keys, values = normal(0, 2, BLOCKS, 1, 4, kv.BLOCK), normal(1, 2, BLOCKS, 1, kv.BLOCK, 4)
    return [kv.Layer(*layer) for layer in zip(keys, values, strict=True)]


def copies(*entries: tuple[int, int, int]) -> kv.Copies:
    """Entries (row, place, block), filled up with zeros as the engine does."""
    padded = np.zeros((3, ROWS * 3), np.int32)
    padded[:, : len(entries)] = np.array(entries).T
    return kv.Copies(*padded, number=np.int32(len(entries)))


def assert_holds(past: list[kv.Layer], blocks: list[kv.Layer], entries) -> None:
    """Each entry's block is at its place in its row, and nothing else is anywhere."""
    for layer, stored in zip(past, blocks, strict=True):
        keys = np.zeros((ROWS, 1, 3, 4, kv.BLOCK), np.float32)
        values = np.zeros((ROWS, 1, SPAN, 4), np.float32)
        for row, place, block in entries:
            keys[row, :, place] = stored.keys[block]
            values[row, :, place * kv.BLOCK : (place + 1) * kv.BLOCK] = stored.values[block]
        np.testing.assert_array_equal(layer.keys, keys)
        np.testing.assert_array_equal(layer.values, values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_empty_pool_has_the_shape_of_the_model(dtype):
    empty = kv.allocate(dataclasses.replace(CONFIG, compute_dtype=dtype), BLOCKS)
    assert len(empty) == 2
    for layer in empty:
        assert layer.keys.shape == (BLOCKS, 1, 4, 64)
        assert layer.values.shape == (BLOCKS, 1, 64, 4)
        assert layer.keys.dtype == layer.values.dtype == dtype


def test_blocks_and_heads_are_split_over_a_mesh_where_that_goes_evenly():
    mesh = MESHES[1]
    (even, _) = kv.allocate(dataclasses.replace(CONFIG, num_kv_heads=2), 8, mesh=mesh)
    assert even.keys.sharding.shard_shape(even.keys.shape) == (2, 1, 4, 64)
    (odd, _) = kv.allocate(CONFIG, 3, mesh=mesh)  # nor does one head
    assert odd.keys.sharding.is_fully_replicated


@by_mesh
def test_a_pool_that_grows_keeps_its_blocks(mesh):
    before = jax.tree.map(np.asarray, pool())
    after = kv.grow(pool(), more=4, mesh=mesh)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[:BLOCKS], old)
        assert not np.asarray(new[BLOCKS:]).any()
        assert len(new) == BLOCKS + 4


@by_mesh
def test_a_batch_is_a_copy_of_blocks_and_rows_are_entered_over_it(mesh):
    entries = [(0, 0, 3), (0, 1, 5), (2, 0, 3), (3, 0, 7), (3, 1, 1), (3, 2, 0)]
    blocks = pool()
    past = kv.gather(blocks, copies(*entries), rows=ROWS, span=SPAN, mesh=mesh)
    assert kv.Batch(past, None, np.zeros(ROWS)).of(0).span == SPAN
    assert_holds(past, blocks, entries)
    entered = [(2, 0, 6), (2, 1, 2)]
    past = kv.enter(past, blocks, copies(*entered), mesh=mesh)
    kept = [entry for entry in entries if entry[0] != 2]
    assert_holds(past, blocks, [*kept, *entered])
    np.testing.assert_array_equal(blocks[0].keys, pool()[0].keys)  # the pool is not consumed


def test_rows_that_have_read_nothing_have_no_columns():
    past = kv.Batch(None, None, np.zeros(ROWS)).of(1)
    assert past.span == 0
    assert past.read() is None


@pytest.mark.parametrize("layer", [0, 1])
def test_blocks_that_are_read_in_place_are_those_of_a_copied_batch(layer):
    entries = [
        (row, place, (3 * row + place) % BLOCKS) for row in range(ROWS) for place in range(3)
    ]
    table = np.array([block for _, _, block in entries]).reshape(ROWS, 3)
    blocks = pool()
    past = kv.Batch(blocks, table, np.zeros(ROWS)).of(layer)
    found = past.read()
    copied = kv.gather(blocks, copies(*entries), rows=ROWS, span=SPAN)[layer]
    np.testing.assert_array_equal(found.keys, copied.keys)
    np.testing.assert_array_equal(found.values, copied.values)
    assert past.span == SPAN


WRITES = [  # (row, first, source, block, offset, columns)
    (0, 0, 2, 2, 0, 40),  # a whole row of new tokens, at a block's start
    (1, 0, 4, 5, 50, 14),  # to a block's end, copied from a shared block
    (1, 14, 6, 6, 0, 9),  # and on at the start of the next
    (3, 31, 7, 7, 20, 9),  # a row's last new tokens
]


@by_mesh
@pytest.mark.parametrize("width", [40, 64, 100])
def test_new_tokens_are_written_to_columns_of_blocks(mesh, width):
    expected = jax.tree.map(np.array, pool())
    keys, values = normal(2, 2, ROWS, 1, 4, width), normal(3, 2, ROWS, 1, width, 4)
    new = [kv.Layer(*layer) for layer in zip(keys, values, strict=True)]
    entries = [*WRITES, (2, 70, 0, 1, 3, 25)] if width == 100 else WRITES
    for row, first, source, block, offset, columns in entries:
        there, here = slice(first, first + columns), slice(offset, offset + columns)
        for layer, tokens in zip(expected, new, strict=True):
            layer.keys[block] = layer.keys[source]
            layer.values[block] = layer.values[source]
            layer.keys[block, :, :, here] = tokens.keys[row, :, :, there]
            layer.values[block, :, here] = tokens.values[row, :, there]
    padded = np.zeros((6, 12), np.int32)  # padding would write block 0
    padded[:, : len(entries)] = np.array(entries).T
    after = kv.write(pool(), new, kv.Writes(*padded, number=np.int32(len(entries))), mesh=mesh)
    for found, layer in zip(after, expected, strict=True):
        np.testing.assert_array_equal(found.keys, layer.keys)
        np.testing.assert_array_equal(found.values, layer.values)


@by_mesh
def test_a_turn_buffer_has_room_for_a_turn_in_each_row(mesh):
    buffer = kv.turn_buffer(CONFIG, ROWS, mesh=mesh)
    for layer in buffer:
        assert layer.keys.shape == (ROWS, 1, 4, kv.TURN)
        assert layer.values.shape == (ROWS, 1, kv.TURN, 4)
