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


def fork(cache: KVCache, rows: jax.Array) -> KVCache:
    """A new cache whose row i is a copy of row `rows[i]`."""
    return KVCache(cache.keys[:, rows], cache.values[:, rows], cache.lengths[rows])


def store(cache: KVCache, rows: jax.Array, source: KVCache) -> KVCache:
    """Overwrite row `rows[i]` with row i of `source`; a row number out of range is left out."""
    return KVCache(
        cache.keys.at[:, rows].set(source.keys, mode="drop"),
        cache.values.at[:, rows].set(source.values, mode="drop"),
        cache.lengths.at[rows].set(source.lengths, mode="drop"),
    )
