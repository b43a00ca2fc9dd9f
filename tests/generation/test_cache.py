"""Cache rows are copied, written and dropped exactly; the reference is NumPy indexing."""

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
ROWS, COLUMNS, NEW = 4, 192, 40
LENGTHS = np.array([0, 20, 100, 152])  # a start, within a block, across two, at the very end
# Rows are copied as slices on one CPU device, and indexed elsewhere.
MESHES = [None, make_mesh(MeshConfig(data=4, tensor=2))]
by_mesh = pytest.mark.parametrize("mesh", MESHES, ids=["one", "eight"])


def filled(rows: int, lengths, seed: int) -> kv.KVCache:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return kv.KVCache(
        normal(2, rows, 1, COLUMNS // kv.BLOCK, 4, kv.BLOCK),
        normal(2, rows, 1, COLUMNS, 4),
        jnp.asarray(lengths, jnp.int32),
        normal(rows, 7),
    )


def new_tokens(rows: int, seed: int) -> kv.Layer:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return kv.Layer(normal(2, rows, 1, 4, NEW), normal(2, rows, 1, NEW, 4))


def by_column(keys) -> np.ndarray:
    """Keys in blocks, `[..., J, D, BLOCK]`, as `[..., T, D]`, like values."""
    keys = np.swapaxes(np.array(keys), -1, -2)
    return keys.reshape(*keys.shape[:-3], -1, keys.shape[-1])


def on_host(cache: kv.KVCache) -> dict[str, np.ndarray]:
    found = {f.name: np.array(getattr(cache, f.name)) for f in dataclasses.fields(cache)}
    return found | {"keys": by_column(cache.keys)}


def assert_equal(cache: kv.KVCache, expected: dict[str, np.ndarray]) -> None:
    for name, found in on_host(cache).items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_empty_cache_has_the_shape_of_the_model(dtype):
    cache = kv.allocate(dataclasses.replace(CONFIG, compute_dtype=dtype), ROWS, COLUMNS)
    assert cache.keys.shape == (2, ROWS, 1, 3, 4, 64)
    assert cache.values.shape == (2, ROWS, 1, COLUMNS, 4)
    assert (cache.rows, cache.columns, cache.keys.dtype) == (ROWS, COLUMNS, dtype)
    np.testing.assert_array_equal(cache.lengths, np.zeros(ROWS))


def test_rows_and_heads_are_split_over_a_mesh_where_that_goes_evenly():
    mesh = MESHES[1]
    config = dataclasses.replace(CONFIG, num_kv_heads=2)
    cache = kv.allocate(config, 8, COLUMNS, mesh=mesh)
    assert cache.keys.sharding.shard_shape(cache.keys.shape) == (2, 2, 1, 3, 4, 64)
    assert cache.logits.sharding.shard_shape(cache.logits.shape) == (2, 7)
    odd = kv.allocate(CONFIG, 3, COLUMNS, mesh=mesh)  # nor does one head
    assert odd.keys.sharding.is_fully_replicated


@by_mesh
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("span", [0, 64, COLUMNS])
def test_a_batch_is_a_copy_of_rows_up_to_a_column(span, apart, mesh):
    cache, rows = filled(ROWS, LENGTHS, seed=0), np.array([3, 0, 3])
    batch = kv.take(cache, rows, span=span, apart=apart, mesh=mesh)
    assert batch.span == span
    np.testing.assert_array_equal(batch.lengths, LENGTHS[rows])
    np.testing.assert_array_equal(batch.logits, cache.logits[rows])
    if not span:
        assert batch.past is None
        return
    for layer in range(2):
        past = batch.past[layer] if apart else kv.Layer(*(x[layer] for x in batch.past))
        keys = by_column(cache.keys)[layer, rows][:, :, :span]
        np.testing.assert_array_equal(by_column(past.keys), keys)
        np.testing.assert_array_equal(past.values, cache.values[layer, rows][:, :, :span])


@by_mesh
def test_what_a_pass_read_is_written_behind_the_named_rows(mesh):
    cache = filled(ROWS, LENGTHS, seed=0)
    expected = on_host(cache)
    new, logits = new_tokens(3, seed=1), jnp.asarray(np.arange(21.0).reshape(3, 7))
    rows, slots, counts = np.array([2, 0, 1]), np.array([1, 2, 0]), np.array([3, 40, 2])
    after = kv.append(
        cache, rows, slots, 2, new, counts, logits, width=NEW, mesh=mesh
    )  # the third is padding
    for row, slot in ((2, 1), (0, 2)):
        here = slice(LENGTHS[row], LENGTHS[row] + NEW)
        expected["keys"][:, row, :, here] = np.swapaxes(new.keys[:, slot], -1, -2)
        expected["values"][:, row, :, here] = new.values[:, slot]
        expected["logits"][row] = logits[slot]
        expected["lengths"][row] += counts[slot]
    assert_equal(after, expected)


@by_mesh
@pytest.mark.parametrize("apart", [True, False])
def test_rows_of_a_batch_are_replaced(apart, mesh):
    cache = filled(ROWS, [1, 50, 64, 88], seed=2)
    batch = kv.take(cache, np.array([0, 1, 2]), span=128, apart=apart, mesh=mesh)
    batch = kv.replace_rows(
        batch, np.array([1, 0, 0]), cache, np.array([3, 0, 0]), np.int32(1), mesh=mesh
    )
    expected = kv.take(cache, np.array([0, 3, 2]), span=128, apart=apart, mesh=mesh)
    np.testing.assert_array_equal(batch.lengths, expected.lengths)
    np.testing.assert_array_equal(batch.logits, expected.logits)
    layers = zip(batch.past, expected.past, strict=True)
    for found, wanted in layers if apart else [(batch.past, expected.past)]:
        np.testing.assert_array_equal(found.keys, wanted.keys)
        np.testing.assert_array_equal(found.values, wanted.values)


@by_mesh
@pytest.mark.parametrize("apart", [True, False])
def test_a_turn_is_put_aside_and_what_is_added_to_it_is_written_back(apart, mesh):
    """From columns within a block and across two; what is new begins anywhere."""
    cache = filled(ROWS, [30, 100, 64, 88], seed=2)
    expected = on_host(cache)
    side = kv.side_buffer(CONFIG, 3, apart=apart, mesh=mesh)
    rows, slots = np.array([1, 3, 0]), np.array([2, 0, 1])
    fills = np.array([20, 0, 40])  # by slot; the third of the rows is padding
    starts = np.array([100 - 40, 88 - 20, 0])
    side = kv.fill_side(side, cache, slots, rows, starts, np.int32(2), mesh=mesh)
    layers = side if apart else [kv.Layer(*(x[i] for x in side)) for i in range(2)]
    for i, layer in enumerate(layers):
        for row, slot, start in ((1, 2, 60), (3, 0, 68)):
            here = slice(start, start + kv.SIDE)
            np.testing.assert_array_equal(
                np.swapaxes(layer.keys[slot], -1, -2), expected["keys"][i, row][:, here]
            )
            np.testing.assert_array_equal(layer.values[slot], expected["values"][i, row][:, here])
    # Of the side buffer, whatever it holds now, the columns behind the fills are new.
    rng = np.random.default_rng(5)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), side)
    counts, logits = np.array([5, 0, 24]), cache.logits[:3] + 1
    for i in range(2):
        layer = drawn[i] if apart else kv.Layer(*(x[i] for x in drawn))
        for row, slot in ((1, 2), (3, 0)):
            begin = int(min(fills[slot], kv.SIDE - 32))
            first = int(cache.lengths[row]) - int(fills[slot]) + begin
            here, there = slice(first, first + 32), slice(begin, begin + 32)
            expected["keys"][i, row][:, here] = np.swapaxes(layer.keys[slot], -1, -2)[:, there]
            expected["values"][i, row][:, here] = layer.values[slot][:, there]
    expected["lengths"][[1, 3]] += counts[[2, 0]]
    expected["logits"][[1, 3]] = np.asarray(logits)[[2, 0]]
    after = kv.append(
        cache, rows, slots, np.int32(2), drawn, counts, logits, fills, width=32, mesh=mesh
    )
    assert_equal(after, expected)


@by_mesh
@pytest.mark.parametrize("span", [0, COLUMNS])
def test_copying_overwrites_the_named_rows_and_leaves_out_the_padding(span, mesh):
    cache, source = filled(ROWS, [1, 2, 3, 4], seed=3), filled(3, [7, 8, 9], seed=4)
    expected = on_host(cache)
    rows, sources = np.array([2, 0, 1]), np.array([0, 2, 1])
    copied = kv.copy_rows(cache, rows, source, sources, np.int32(2), span=span, mesh=mesh)
    if span:
        expected["keys"][:, [2, 0]] = by_column(source.keys)[:, [0, 2]]
        expected["values"][:, [2, 0]] = source.values[:, [0, 2]]
    expected["logits"][[2, 0]] = np.asarray(source.logits)[[0, 2]]
    expected["lengths"][[2, 0]] = [7, 9]
    assert_equal(copied, expected)
