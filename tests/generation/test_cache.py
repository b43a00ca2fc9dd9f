"""Cache rows are copied, written and dropped exactly; the reference is NumPy indexing."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ixjax.generation import cache as kv
from ixjax.models import ModelConfig

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
ROWS, COLUMNS = 4, 9


def filled(rows: int, lengths: list[int], seed: int) -> kv.KVCache:
    keys, values = np.random.default_rng(seed).normal(size=(2, 2, rows, 1, COLUMNS, 4))
    return kv.KVCache(
        jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32), jnp.asarray(lengths)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_empty_cache_has_the_shape_of_the_model(dtype):
    cache = kv.allocate(dataclasses.replace(CONFIG, compute_dtype=dtype), ROWS, COLUMNS)
    assert cache.keys.shape == cache.values.shape == (2, ROWS, 1, COLUMNS, 4)
    assert (cache.rows, cache.columns, cache.keys.dtype) == (ROWS, COLUMNS, dtype)
    np.testing.assert_array_equal(cache.lengths, np.zeros(ROWS))


def test_new_tokens_are_written_behind_each_row():
    cache = filled(ROWS, [0, 2, 5, 6], seed=0)
    keys, values = np.random.default_rng(1).normal(size=(2, 2, ROWS, 1, 3, 4)).astype(np.float32)
    counts = np.array([3, 0, 1, 2])
    after = kv.write(cache, keys, values, counts)
    np.testing.assert_array_equal(after.lengths, [3, 2, 6, 8])
    for found, before, new in [
        (after.keys, cache.keys, keys),
        (after.values, cache.values, values),
    ]:
        for row, (start, count) in enumerate(zip([0, 2, 5, 6], counts, strict=True)):
            np.testing.assert_array_equal(found[:, row, :, :start], before[:, row, :, :start])
            written = found[:, row, :, start : start + count]
            np.testing.assert_array_equal(written, new[:, row, :, :count])


def test_new_tokens_are_written_behind_some_rows_alone():
    cache = filled(ROWS, [0, 2, 5, 6], seed=0)
    keys, values = np.random.default_rng(1).normal(size=(2, 2, 3, 1, 3, 4)).astype(np.float32)
    rows, counts = jnp.array([2, 0, 1]), jnp.array([1, 3, 2])
    after = kv.write_rows(cache, rows, keys, values, counts, 2)  # the third is padding
    np.testing.assert_array_equal(after.lengths, [3, 2, 6, 6])
    np.testing.assert_array_equal(after.keys[:, 2, :, 5:6], keys[:, 0, :, :1])
    np.testing.assert_array_equal(after.keys[:, 2, :, :5], cache.keys[:, 2, :, :5])
    np.testing.assert_array_equal(after.values[:, 0, :, :3], values[:, 1])
    np.testing.assert_array_equal(after.values[:, [1, 3]], cache.values[:, [1, 3]])


@pytest.mark.parametrize("span", [4, COLUMNS])
def test_fork_copies_rows(span):
    cache = filled(ROWS, [1, 2, 3, 4], seed=2)
    rows = jnp.array([3, 0, 3])
    forked = kv.fork(cache, rows, span=span)
    assert forked.keys.shape == (2, 3, 1, COLUMNS, 4)
    for copy, source in ((forked.keys, cache.keys), (forked.values, cache.values)):
        np.testing.assert_array_equal(copy[:, :, :, :span], np.asarray(source)[:, rows, :, :span])
    np.testing.assert_array_equal(forked.lengths, [4, 1, 4])
    taken = kv.take_rows(cache.keys, rows, span=span)
    np.testing.assert_array_equal(taken, np.asarray(cache.keys)[:, rows, :, :span])


def test_copying_overwrites_the_named_rows_and_leaves_out_the_padding():
    cache, source = filled(ROWS, [1, 2, 3, 4], seed=3), filled(3, [7, 8, 9], seed=4)
    rows, sources = jnp.array([2, 0, 1]), jnp.array([0, 2, 1])
    copied = kv.copy_rows(cache, rows, source, sources, 2, span=COLUMNS)
    np.testing.assert_array_equal(copied.lengths, [9, 2, 7, 4])
    expected = np.array(cache.keys)
    expected[:, [2, 0]] = np.asarray(source.keys)[:, [0, 2]]
    np.testing.assert_array_equal(copied.keys, expected)
    np.testing.assert_array_equal(copied.values[:, [1, 3]], cache.values[:, [1, 3]])
