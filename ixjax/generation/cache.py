"""KV cache rows: one row per live context, each contiguous from column 0.

A row's layout depends on its own tokens alone, never on its neighbours, so forking, storing and
shortening a row are plain copies. New tokens are attended where they were computed and written
behind the row's end once per call (per turn, not per token): on a CPU a scatter for every token
costs more than the model does.

Axes: L layers, S cache rows, K KV heads, T columns, D head size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ixjax.models import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of what each row has read.

    keys: `[L, S, K, T, D]`, rotated; columns at and behind a row's length are garbage.
    values: `[L, S, K, T, D]`.
    lengths: `[S]` int32 tokens in each row.
    """

    keys: jax.Array  # [L, S, K, T, D]
    values: jax.Array  # [L, S, K, T, D]
    lengths: jax.Array  # [S]

    @property
    def rows(self) -> int:
        """S."""
        return self.keys.shape[1]

    @property
    def columns(self) -> int:
        """T."""
        return self.keys.shape[3]


def allocate(config: ModelConfig, rows: int, columns: int) -> KVCache:
    """An empty cache of `rows` rows that hold up to `columns` tokens each."""
    shape = (config.num_layers, rows, config.num_kv_heads, columns, config.head_dim)
    dtype = config.compute_dtype
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(rows, jnp.int32))


def write(cache: KVCache, keys: jax.Array, values: jax.Array, counts: jax.Array) -> KVCache:
    """Append the first `counts[s]` of n columns to each row s.

    All n columns are written (the surplus is garbage behind the row's end), so the caller leaves
    n columns of room: a slice update that does not fit would be shifted onto what is there.

    Args:
        cache: the rows.
        keys: `[L, S, K, n, D]`.
        values: `[L, S, K, n, D]`.
        counts: `[S]` int32 in 0..n.
    """

    def put(row: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=2)

    into_rows = jax.vmap(put, in_axes=(1, 1, 0), out_axes=1)
    return KVCache(
        into_rows(cache.keys, keys, cache.lengths),
        into_rows(cache.values, values, cache.lengths),
        cache.lengths + counts,
    )


def fork(cache: KVCache, rows: jax.Array, *, span: int) -> KVCache:
    """A new cache of the same columns whose row i is a copy of row `rows[i]`.

    Args:
        cache: the source.
        rows: `[R]`.
        span: columns that are copied; what these rows hold lies in front of it.
    """
    count = rows.shape[0]

    def empty(x: jax.Array) -> jax.Array:
        return jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)

    target = KVCache(empty(cache.keys), empty(cache.values), jnp.zeros(count, jnp.int32))
    return copy_rows(target, jnp.arange(count), cache, rows, count, span=span)


def copy_rows(
    target: KVCache,
    rows: jax.Array,
    source: KVCache,
    source_rows: jax.Array,
    count: jax.Array | int,
    *,
    span: int,
) -> KVCache:
    """Overwrite row `rows[i]` of the target with row `source_rows[i]`, for each i below `count`.

    A loop of whole slices: XLA's CPU backend gathers and scatters element by element, three times
    slower.

    Args:
        target: the cache that is changed.
        rows: `[R]`.
        source: a cache of as many columns.
        source_rows: `[R]`.
        count: how many of the R are copied.
        span: columns that are copied; what these rows hold lies in front of it.
    """

    def copy(i: jax.Array, into: KVCache) -> KVCache:
        def one(x: jax.Array, y: jax.Array) -> jax.Array:
            layers, _, heads, _, size = y.shape
            part = (layers, 1, heads, span, size)
            row = jax.lax.dynamic_slice(y, (0, source_rows[i], 0, 0, 0), part)
            return jax.lax.dynamic_update_slice(x, row, (0, rows[i], 0, 0, 0))

        lengths = into.lengths.at[rows[i]].set(source.lengths[source_rows[i]])
        return KVCache(one(into.keys, source.keys), one(into.values, source.values), lengths)

    return jax.lax.fori_loop(0, count, copy, target)


def take_rows(x: jax.Array, rows: jax.Array, *, span: int) -> jax.Array:
    """`[L, R, K, span, D]`: rows `rows[i]` of keys or values, up to `span`; see `copy_rows`."""
    layers, _, heads, _, size = x.shape

    def copy(i: jax.Array, into: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice(x, (0, rows[i], 0, 0, 0), (layers, 1, heads, span, size))
        return jax.lax.dynamic_update_slice(into, row, (0, i, 0, 0, 0))

    empty = jnp.zeros((layers, rows.shape[0], heads, span, size), x.dtype)
    return jax.lax.fori_loop(0, rows.shape[0], copy, empty)


def write_rows(
    cache: KVCache,
    rows: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    counts: jax.Array,
    number: jax.Array,
) -> KVCache:
    """As `write`, of rows `rows[i]` alone, for each i below `number`.

    Args:
        cache: the rows.
        rows: `[R]`.
        keys: `[L, R, K, n, D]`.
        values: `[L, R, K, n, D]`.
        counts: `[R]` int32 in 0..n.
        number: how many of the R are written.
    """

    def put(i: jax.Array, into: KVCache) -> KVCache:
        start = into.lengths[rows[i]]

        def one(x: jax.Array, new: jax.Array) -> jax.Array:
            new = jax.lax.dynamic_slice_in_dim(new, i, 1, axis=1)
            return jax.lax.dynamic_update_slice(x, new, (0, rows[i], 0, start, 0))

        lengths = into.lengths.at[rows[i]].add(counts[i])
        return KVCache(one(into.keys, keys), one(into.values, values), lengths)

    return jax.lax.fori_loop(0, number, put, cache)
