"""The KV cache: a pool of blocks, and batches of rows that a forward pass attends to.

A context's keys and values are stored in blocks of `BLOCK` columns, so memory grows with the tokens
stored, rounded up to a block, and contexts with a common beginning share its blocks. The host
records which context holds which blocks (`ixjax.generation.blocks`); this module has the arrays.

A pass reads its rows in one of two layouts. `contiguous` copies a row's blocks into consecutive
columns: XLA's CPU backend gathers element by element, so blocks are moved as whole slices. A decode
batch is copied when a row enters it, and a pass that reads copies one layer at a time. `paged`
reads the blocks through a table of block numbers, without a copy. Both give the same numbers.

`write` stores new tokens in some columns of a block and fills the others from a source block. If
that is another block, the write copies a shared block before its first change.

Keys are stored with columns last, so attention reads both keys and values contiguously; on a CPU,
where attention is memory-bound, this takes less than half the time.

Pool, decode batch and turn buffer are lists of L layers: a program for one layer is compiled once
for all of them, and a loop over tokens slices no stacked arrays.

Axes: L layers, P blocks of the pool, R rows of a batch, K KV heads, T columns, J = T / BLOCK
blocks of a row, D head size, M moved blocks, n new tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike

from ixjax.models import ModelConfig
from ixjax.parallel import partition_spec

BLOCK = 64  # columns
TURN = 64  # columns of the turn buffer: tokens of a turn that are not yet written to blocks
AXES = ("rows", "kv_heads", None, None, None)  # of a batch's keys; of blocks without J


def num_blocks(tokens: int) -> int:
    """Return the number of blocks that store `tokens` tokens."""
    return -(-tokens // BLOCK)


class Layer(NamedTuple):
    """Keys and values of one layer.

    keys: blocks `[P, K, D, BLOCK]`; a batch `[R, K, J, D, BLOCK]`; new tokens `[R, K, D, n]`.
    values: `[P, K, BLOCK, D]`; `[R, K, T, D]`; `[R, K, n, D]`.
    """

    keys: jax.Array
    values: jax.Array


class Copies(NamedTuple):
    """Blocks to copy into a batch: block `blocks[i]` becomes block `places[i]` of row `rows[i]`."""

    rows: jax.Array  # [M]
    places: jax.Array  # [M]
    blocks: jax.Array  # [M]
    number: ArrayLike  # of the M that count


class Past(NamedTuple):
    """The tokens that the rows of a pass have read, in one layer.

    stored: of a decode batch, or of the pool; None if no row has read anything.
    blocks: see `Batch`.
    lengths: see `Batch`.
    """

    stored: Layer | None
    blocks: jax.Array | Copies | None
    lengths: jax.Array  # [R]

    @property
    def span(self) -> int:
        """Return T."""
        if self.stored is None:
            return 0
        if self.blocks is None:
            return self.stored.values.shape[-2]
        if isinstance(self.blocks, Copies):
            return len(self.blocks.rows) // len(self.lengths) * BLOCK
        return self.blocks.shape[1] * BLOCK

    def read(self) -> Layer | None:
        """Return keys `[R, K, J, D, BLOCK]` and values `[R, K, T, D]`."""
        if self.stored is None or self.blocks is None:
            return self.stored
        if isinstance(self.blocks, Copies):
            empty = _empty(self.stored, len(self.lengths), self.span)
            return _copy_slices(empty, self.stored, self.blocks)
        keys = self.stored.keys[self.blocks].swapaxes(1, 2)
        values = self.stored.values[self.blocks].swapaxes(1, 2)  # [R, K, J, BLOCK, D]
        return Layer(keys, values.reshape(*values.shape[:2], -1, values.shape[-1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The tokens that the rows of a pass have read.

    Blocks and lengths are NumPy arrays on the host.

    past: of a contiguous decode batch, or the pool; None if no row has read anything.
    blocks: of the pool: to copy, or as a table `[R, J]` int32 of each row's block numbers.
    lengths: `[R]` int32 tokens that each row has read; columns from there on are masked.
    """

    past: list[Layer] | None
    blocks: jax.Array | Copies | None
    lengths: jax.Array  # [R]

    def of(self, number: int) -> Past:
        """Return one layer."""
        stored = self.past[number] if self.past else None
        return Past(stored, self.blocks, self.lengths)


class Writes(NamedTuple):
    """New tokens to write into blocks.

    Columns `offsets[i]` to `offsets[i] + counts[i]` of block `blocks[i]` become the tokens from
    `firsts[i]` on of row `rows[i]`; its other columns become those of block `sources[i]`. No two
    entries write one block, and no entry reads a block that an earlier one writes.
    """

    rows: jax.Array  # [M]
    firsts: jax.Array  # [M]
    sources: jax.Array  # [M]
    blocks: jax.Array  # [M]
    offsets: jax.Array  # [M]
    counts: jax.Array  # [M]
    number: ArrayLike  # of the M that count


def allocate(
    config: ModelConfig,
    blocks: int,
    *,
    mesh: Mesh | None = None,
    device: NamedSharding | None = None,
) -> list[Layer]:
    """Return an empty pool.

    Args:
        config: of the model.
        blocks: P.
        mesh: the devices if there are several: blocks are split over its batch axes and KV heads
            over `tensor`, if the sizes divide evenly.
        device: the placement of the weights if they are on a single device. Another placement of
            these arrays would compile every pass a second time.
    """
    return _zeros(config, blocks, BLOCK, mesh, device)


def grow(pool: list[Layer], *, more: int, mesh: Mesh | None = None) -> list[Layer]:
    """Return the pool with `more` empty blocks at its end. Consumes `pool`.

    A larger array cannot reuse memory, so one layer after the other is copied and freed.
    """
    for i, layer in enumerate(pool):
        pool[i] = _grow(layer, more=more, mesh=mesh)
    return pool


@functools.partial(jax.jit, static_argnames=("more", "mesh"))
def _grow(layer: Layer, *, more: int, mesh: Mesh | None) -> Layer:
    grown = (jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)]) for x in layer)
    return _placed(Layer(*grown), mesh)


def gather(
    pool: list[Layer], copies: Copies, *, rows: int, span: int, mesh: Mesh | None = None
) -> list[Layer]:
    """Copy blocks into a new contiguous decode batch.

    Args:
        pool: still valid afterwards.
        copies: all of rows below R and of places below J.
        rows: R.
        span: T, a multiple of `BLOCK`.
        mesh: the devices if there are several.
    """
    return [_gather(layer, copies, rows=rows, span=span, mesh=mesh) for layer in pool]


def enter(
    past: list[Layer], pool: list[Layer], copies: Copies, *, mesh: Mesh | None = None
) -> list[Layer]:
    """Copy blocks into rows of a contiguous decode batch and return it. Consumes `past`."""
    return [_enter(rows, layer, copies, mesh=mesh) for rows, layer in zip(past, pool, strict=True)]


@functools.partial(jax.jit, static_argnames=("rows", "span", "mesh"))
def _gather(layer: Layer, copies: Copies, *, rows: int, span: int, mesh: Mesh | None) -> Layer:
    return _copy(_empty(layer, rows, span), layer, copies, mesh)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="rows")
def _enter(rows: Layer, layer: Layer, copies: Copies, *, mesh: Mesh | None) -> Layer:
    return _copy(rows, layer, copies, mesh)


def turn_buffer(
    config: ModelConfig,
    rows: int,
    *,
    mesh: Mesh | None = None,
    device: NamedSharding | None = None,
) -> list[Layer]:
    """Return an empty buffer for the `TURN` newest tokens of the turn that each row is decoding.

    Keys `[R, K, D, TURN]` and values `[R, K, TURN, D]` of each layer. For `mesh` and `device` see
    `allocate`.
    """
    return _zeros(config, rows, TURN, mesh, device)


def _zeros(
    config: ModelConfig, rows: int, columns: int, mesh: Mesh | None, device: NamedSharding | None
) -> list[Layer]:
    def zeros(*last: int) -> jax.Array:
        shape = (rows, config.num_kv_heads, *last)
        split = mesh and NamedSharding(mesh, partition_spec(AXES[:4], shape, mesh))
        return jnp.zeros(shape, config.compute_dtype, device=split or device)

    size = config.head_dim
    return [Layer(zeros(size, columns), zeros(columns, size)) for _ in range(config.num_layers)]


def write(
    pool: list[Layer], new: list[Layer], writes: Writes, *, mesh: Mesh | None = None
) -> list[Layer]:
    """Write new tokens into blocks; return the pool. Consumes `pool`.

    Args:
        pool: the blocks.
        new: keys `[R, K, D, n]` and values `[R, K, n, D]` of each layer.
        writes: which tokens go where.
        mesh: the devices if there are several.
    """
    pairs = zip(pool, new, strict=True)
    return [_write(layer, tokens, writes, mesh=mesh) for layer, tokens in pairs]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="layer")
def _write(layer: Layer, new: Layer, writes: Writes, *, mesh: Mesh | None) -> Layer:
    width = min(new.keys.shape[-1], BLOCK)
    # Each entry's tokens are taken in a window of `width` and shifted to their columns.
    windows = jnp.clip(writes.firsts, 0, new.keys.shape[-1] - width)
    shifts = writes.offsets - (writes.firsts - windows)
    columns = jnp.arange(BLOCK)[None]
    begun = columns >= writes.offsets[:, None]
    written = begun & (columns < (writes.offsets + writes.counts)[:, None])  # [M, BLOCK]

    def merged(i: Any, old: jax.Array, window: jax.Array, axis: int) -> jax.Array:
        """Merge old and new columns of entry i; `axis`, from the end, is that of the columns."""
        pad = [(0, 0)] * window.ndim
        pad[axis] = (0, BLOCK - width)
        moved = jnp.roll(jnp.pad(window, pad), shifts[i], axis=axis)
        mask = written[i] if axis == -1 else written[i][:, None]
        return jnp.where(mask, moved, old)

    def put(x: jax.Array, fresh: jax.Array, axis: int) -> jax.Array:
        def window(i: Any) -> jax.Array:
            start = [writes.rows[i], 0, 0, 0]
            start[axis] = windows[i]
            size = [1, *fresh.shape[1:]]
            size[axis] = width
            return jax.lax.dynamic_slice(fresh, start, size)

        def block(i: Any, x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, writes.sources[i], 1)

        if slice_by_slice(mesh):

            def one(i: jax.Array, x: jax.Array) -> jax.Array:
                found = merged(i, block(i, x), window(i), axis)
                return jax.lax.dynamic_update_slice_in_dim(x, found, writes.blocks[i], axis=0)

            return jax.lax.fori_loop(0, writes.number, one, x)
        entries = jnp.arange(len(writes.rows))
        found = jax.vmap(lambda i: merged(i, block(i, x), window(i), axis)[0])(entries)
        into = jnp.where(entries < writes.number, writes.blocks, len(x))
        return x.at[into].set(found, mode="drop")

    return _placed(Layer(put(layer.keys, new.keys, -1), put(layer.values, new.values, -2)), mesh)


def slice_by_slice(mesh: Mesh | None) -> bool:
    """Return whether to move blocks as whole slices: XLA's CPU backend gathers by element."""
    return mesh is None and jax.default_backend() == "cpu"


def _placed(layer: Layer, mesh: Mesh | None) -> Layer:
    if mesh is None:
        return layer

    def constrained(x: jax.Array) -> jax.Array:
        spec = partition_spec(AXES[: x.ndim], x.shape, mesh)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return Layer(*map(constrained, layer))


def _empty(pool: Layer, rows: int, span: int) -> Layer:
    """Return a layer of a contiguous batch, with zeros."""
    _, heads, size, _ = pool.keys.shape
    return Layer(
        jnp.zeros((rows, heads, span // BLOCK, size, BLOCK), pool.keys.dtype),
        jnp.zeros((rows, heads, span, size), pool.values.dtype),
    )


def _copy(into: Layer, pool: Layer, copies: Copies, mesh: Mesh | None) -> Layer:
    """Copy blocks of a layer of the pool into that layer of a contiguous batch."""
    if slice_by_slice(mesh):
        return _copy_slices(into, pool, copies)
    rows = jnp.where(jnp.arange(len(copies.rows)) < copies.number, copies.rows, len(into.keys))
    # As `[R, K, J, BLOCK, D]` a block is one entry; indexed axes come first.
    by_block = into.values.reshape(*into.keys.shape[:3], BLOCK, into.values.shape[-1])
    keys, values = (x[copies.blocks] for x in pool)  # [M, K, ...]
    copied = Layer(
        into.keys.at[rows, :, copies.places].set(keys, mode="drop"),
        by_block.at[rows, :, copies.places].set(values, mode="drop").reshape(into.values.shape),
    )
    return _placed(copied, mesh)


def _copy_slices(into: Layer, pool: Layer, copies: Copies) -> Layer:
    def move(x: jax.Array, blocks: jax.Array, place: Callable[[Any], tuple]) -> jax.Array:
        def one(i: jax.Array, x: jax.Array) -> jax.Array:
            block = jax.lax.dynamic_slice_in_dim(blocks, copies.blocks[i], 1)
            block = block.reshape(1, x.shape[1], *[1] * (x.ndim - 4), *blocks.shape[2:])
            return jax.lax.dynamic_update_slice(x, block, (copies.rows[i], 0, *place(i)))

        return jax.lax.fori_loop(0, copies.number, one, x)

    keys = move(into.keys, pool.keys, lambda i: (copies.places[i], 0, 0))
    values = move(into.values, pool.values, lambda i: (copies.places[i] * BLOCK, 0))
    return Layer(keys, values)
