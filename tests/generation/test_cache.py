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
by_layers = pytest.mark.parametrize("unstacked", [True, False])


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pool() -> kv.Layer:
    return kv.Layer(normal(0, 2, BLOCKS, 1, 4, kv.BLOCK), normal(1, 2, BLOCKS, 1, kv.BLOCK, 4))


def copies(*entries: tuple[int, int, int]) -> kv.Copies:
    """Entries (row, place, block), filled up with zeros as the engine does."""
    padded = np.zeros((3, ROWS * 3), np.int32)
    padded[:, : len(entries)] = np.array(entries).T
    return kv.Copies(*padded, number=np.int32(len(entries)))


def layers(past) -> list[kv.Layer]:
    return past if isinstance(past, list) else [kv.Layer(*(x[i] for x in past)) for i in range(2)]


def assert_holds(past, blocks: kv.Layer, entries, *, unstacked: bool) -> None:
    """Each entry's block is at its place in its row, and nothing else is anywhere."""
    assert isinstance(past, list) == unstacked
    for i, layer in enumerate(layers(past)):
        keys = np.zeros((ROWS, 1, 3, 4, kv.BLOCK), np.float32)
        values = np.zeros((ROWS, 1, SPAN, 4), np.float32)
        for row, place, block in entries:
            keys[row, :, place] = blocks.keys[i, block]
            values[row, :, place * kv.BLOCK : (place + 1) * kv.BLOCK] = blocks.values[i, block]
        np.testing.assert_array_equal(layer.keys, keys)
        np.testing.assert_array_equal(layer.values, values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_empty_pool_has_the_shape_of_the_model(dtype):
    empty = kv.allocate(dataclasses.replace(CONFIG, compute_dtype=dtype), BLOCKS)
    assert empty.keys.shape == (2, BLOCKS, 1, 4, 64)
    assert empty.values.shape == (2, BLOCKS, 1, 64, 4)
    assert empty.keys.dtype == empty.values.dtype == dtype


def test_blocks_and_heads_are_split_over_a_mesh_where_that_goes_evenly():
    mesh = MESHES[1]
    even = kv.allocate(dataclasses.replace(CONFIG, num_kv_heads=2), 8, mesh=mesh)
    assert even.keys.sharding.shard_shape(even.keys.shape) == (2, 2, 1, 4, 64)
    odd = kv.allocate(CONFIG, 3, mesh=mesh)  # nor does one head
    assert odd.keys.sharding.is_fully_replicated


@by_mesh
def test_a_pool_that_grows_keeps_its_blocks(mesh):
    before = jax.tree.map(np.asarray, pool())
    after = kv.grow(pool(), more=4, mesh=mesh)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new[:, :BLOCKS], old)
        assert not np.asarray(new[:, BLOCKS:]).any()
        assert new.shape[1] == BLOCKS + 4


@by_mesh
@by_layers
def test_a_batch_is_a_copy_of_blocks_and_rows_are_entered_over_it(unstacked, mesh):
    entries = [(0, 0, 3), (0, 1, 5), (2, 0, 3), (3, 0, 7), (3, 1, 1), (3, 2, 0)]
    blocks = pool()
    past = kv.gather(blocks, copies(*entries), rows=ROWS, span=SPAN, unstacked=unstacked, mesh=mesh)
    assert kv.Batch(past, None, np.zeros(ROWS)).span == SPAN
    assert_holds(past, blocks, entries, unstacked=unstacked)
    entered = [(2, 0, 6), (2, 1, 2)]
    past = kv.enter(past, blocks, copies(*entered), mesh=mesh)
    kept = [entry for entry in entries if entry[0] != 2]
    assert_holds(past, blocks, [*kept, *entered], unstacked=unstacked)
    np.testing.assert_array_equal(blocks.keys, pool().keys)  # the pool is not consumed


def test_a_batch_of_no_columns_has_no_past():
    assert kv.gather(pool(), copies(), rows=ROWS, span=0, unstacked=True) is None
    assert kv.Batch(None, None, np.zeros(ROWS)).span == 0


@pytest.mark.parametrize("layer", [0, 1])
def test_blocks_that_are_read_in_place_are_those_of_a_copied_batch(layer):
    entries = [
        (row, place, (3 * row + place) % BLOCKS) for row in range(ROWS) for place in range(3)
    ]
    table = np.array([block for _, _, block in entries]).reshape(ROWS, 3)
    blocks = pool()
    found = kv.in_place(blocks, layer, table)
    copied = kv.gather(blocks, copies(*entries), rows=ROWS, span=SPAN, unstacked=True)[layer]
    np.testing.assert_array_equal(found.keys, copied.keys)
    np.testing.assert_array_equal(found.values, copied.values)
    assert kv.Batch(blocks, table, np.zeros(ROWS)).span == SPAN


WRITES = [  # (row, first, source, block, offset, columns)
    (0, 0, 2, 2, 0, 40),  # a whole row of new tokens, at a block's start
    (1, 0, 4, 5, 50, 14),  # to a block's end, copied from a shared block
    (1, 14, 6, 6, 0, 9),  # and on at the start of the next
    (3, 31, 7, 7, 20, 9),  # a row's last new tokens
]


@by_mesh
@by_layers
@pytest.mark.parametrize("width", [40, 64, 100])
def test_new_tokens_are_written_to_columns_of_blocks(mesh, unstacked, width):
    expected = jax.tree.map(np.array, pool())
    new = kv.Layer(normal(2, 2, ROWS, 1, 4, width), normal(3, 2, ROWS, 1, width, 4))
    entries = [*WRITES, (2, 70, 0, 1, 3, 25)] if width == 100 else WRITES
    for row, first, source, block, offset, columns in entries:
        there, here = slice(first, first + columns), slice(offset, offset + columns)
        expected.keys[:, block] = expected.keys[:, source]
        expected.values[:, block] = expected.values[:, source]
        expected.keys[:, block, :, :, here] = new.keys[:, row, :, :, there]
        expected.values[:, block, :, here] = new.values[:, row, :, there]
    padded = np.zeros((6, 12), np.int32)  # padding would write block 0
    padded[:, : len(entries)] = np.array(entries).T
    writes = kv.Writes(*padded, number=np.int32(len(entries)))
    given = [kv.Layer(*(x[i] for x in new)) for i in range(2)] if unstacked else new
    after = kv.write(pool(), given, writes, mesh=mesh)
    np.testing.assert_array_equal(after.keys, expected.keys)
    np.testing.assert_array_equal(after.values, expected.values)


@by_mesh
@by_layers
def test_a_turn_buffer_has_room_for_a_turn_in_each_row(unstacked, mesh):
    buffer = kv.turn_buffer(CONFIG, ROWS, unstacked=unstacked, mesh=mesh)
    for layer in layers(buffer):
        assert layer.keys.shape == (ROWS, 1, 4, kv.TURN)
        assert layer.values.shape == (ROWS, 1, kv.TURN, 4)
