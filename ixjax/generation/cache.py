"""The KV cache: a pool of blocks, and batches of rows that a forward pass attends to.

A context's keys and values are stored in blocks of `BLOCK` columns, so memory grows with the tokens
stored, rounded up to a block, and contexts with a common beginning share its blocks. The host
records which context holds which blocks (`ixjax.generation.blocks`); this module has the arrays.

A pass reads its rows in one of two layouts. `contiguous` copies a row's blocks into a batch of
consecutive columns when the row enters it: XLA's CPU backend gathers element by element, so blocks
are moved as whole slices, once. `paged` reads the blocks through a table of block numbers in every
layer, without a copy. Both give the same numbers.

`write` stores new tokens in some columns of a block and fills the others from a source block. If
that is another block, the write copies a shared block before its first change.

Keys are stored with columns last, so attention reads both keys and values contiguously; on a CPU,
where attention is memory-bound, this takes less than half the time.

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
AXES = (None, "rows", "kv_heads", None, None, None)  # of a batch's keys; of blocks without J


def num_blocks(tokens: int) -> int:
    """Return the number of blocks that store `tokens` tokens."""
    return -(-tokens // BLOCK)


class Layer(NamedTuple):
    """Keys and values of one layer, or with a leading axis L of all of them.

    keys: blocks `[P, K, D, BLOCK]`; a batch `[R, K, J, D, BLOCK]`; new tokens `[R, K, D, n]`.
    values: `[P, K, BLOCK, D]`; `[R, K, T, D]`; `[R, K, n, D]`.
    """

    keys: jax.Array
    values: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The tokens that the rows of a pass have read. Table and lengths are NumPy arrays on the host.

    past: contiguous: a list of L layers, or one `Layer` of stacked arrays to scan over; paged: the
        whole pool; None if no row has read anything.
    table: `[R, J]` int32 block numbers of each row in the paged layout; None if contiguous.
    lengths: `[R]` int32 tokens that each row has read; columns from there on are masked.
    """

    past: list[Layer] | Layer | None
    table: jax.Array | None
    lengths: jax.Array  # [R]

    @property
    def span(self) -> int:
        """Return T."""
        if self.past is None:
            return 0
        if self.table is not None:
            return self.table.shape[1] * BLOCK
        layer = self.past[0] if isinstance(self.past, list) else self.past
        return layer.values.shape[-2]


class Copies(NamedTuple):
    """Blocks to copy into a batch: block `blocks[i]` becomes block `places[i]` of row `rows[i]`."""

    rows: jax.Array  # [M]
    places: jax.Array  # [M]
    blocks: jax.Array  # [M]
    number: ArrayLike  # of the M that count


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


def stacked(layers: list[Layer] | Layer) -> Layer:
    """Return layers in a list, or stacked already, as one `Layer` of `[L, ...]`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *layers) if isinstance(layers, list) else layers


def allocate(
    config: ModelConfig,
    blocks: int,
    *,
    mesh: Mesh | None = None,
    device: NamedSharding | None = None,
) -> Layer:
    """Return an empty pool, stacked over layers.

    Args:
        config: of the model.
        blocks: P.
        mesh: the devices if there are several: blocks are split over its batch axes and KV heads
            over `tensor`, if the sizes divide evenly.
        device: the placement of the weights if they are on a single device. Another placement of
            these arrays would compile every pass a second time.
    """
    shape = (config.num_layers, blocks, config.num_kv_heads)
    size = config.head_dim

    def zeros(*last: int) -> jax.Array:
        split = mesh and NamedSharding(mesh, partition_spec(AXES[:5], (*shape, *last), mesh))
        return jnp.zeros((*shape, *last), config.compute_dtype, device=split or device)

    return Layer(zeros(size, BLOCK), zeros(BLOCK, size))


@functools.partial(jax.jit, static_argnames=("more", "mesh"))
def grow(pool: Layer, *, more: int, mesh: Mesh | None = None) -> Layer:
    """Return the pool with `more` empty blocks at its end.

    The pool is not donated: a larger array cannot reuse its memory.
    """

    def longer(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)])

    return _placed(Layer(*map(longer, pool)), mesh)


@functools.partial(jax.jit, static_argnames=("rows", "span", "unstacked", "mesh"))
def gather(
    pool: Layer, copies: Copies, *, rows: int, span: int, unstacked: bool, mesh: Mesh | None = None
) -> list[Layer] | Layer | None:
    """Copy blocks into a new contiguous batch; return its `Batch.past`.

    Args:
        pool: still valid afterwards.
        copies: all of rows below R and of places below J.
        rows: R.
        span: T, a multiple of `BLOCK`.
        unstacked: whether layers are separate arrays, so that a loop over tokens needs no slices.
        mesh: the devices if there are several.
    """
    if not span:
        return None
    depth, _, heads, size, _ = pool.keys.shape
    layers = 1 if unstacked else depth
    shape, blocks = (layers, rows, heads), span // BLOCK
    empty = Layer(
        jnp.zeros((*shape, blocks, size, BLOCK), pool.keys.dtype),
        jnp.zeros((*shape, span, size), pool.values.dtype),
    )
    copied = [_copy(empty, pool, copies, first, mesh) for first in range(0, depth, layers)]
    return [jax.tree.map(lambda x: x[0], layer) for layer in copied] if unstacked else copied[0]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="past")
def enter(past: Any, pool: Layer, copies: Copies, *, mesh: Mesh | None = None) -> Any:
    """Copy blocks into rows of a contiguous batch; return its `Batch.past`. Consumes `past`."""
    if not isinstance(past, list):
        return _copy(past, pool, copies, 0, mesh)
    stacked = [jax.tree.map(lambda x: x[None], layer) for layer in past]
    copied = [_copy(layer, pool, copies, first, mesh) for first, layer in enumerate(stacked)]
    return [jax.tree.map(lambda x: x[0], layer) for layer in copied]


def in_place(pool: Layer, layer: int | jax.Array, table: jax.Array) -> Layer:
    """Return one layer of a paged batch: keys `[R, K, J, D, BLOCK]`, values `[R, K, T, D]`."""
    keys = pool.keys[layer, table].swapaxes(1, 2)
    values = pool.values[layer, table].swapaxes(1, 2)  # [R, K, J, BLOCK, D]
    return Layer(keys, values.reshape(*values.shape[:2], -1, values.shape[-1]))


def turn_buffer(
    config: ModelConfig,
    rows: int,
    *,
    unstacked: bool,
    mesh: Mesh | None = None,
    device: NamedSharding | None = None,
) -> list[Layer] | Layer:
    """Return an empty buffer for the `TURN` newest tokens of the turn that each row is decoding.

    Keys `[R, K, D, TURN]` and values `[R, K, TURN, D]` of each layer, in a list if `unstacked`,
    else stacked. For `mesh` and `device` see `allocate`.
    """
    size, depth = config.head_dim, config.num_layers
    leading = (rows, config.num_kv_heads) if unstacked else (depth, rows, config.num_kv_heads)
    axes = AXES[1:] if unstacked else AXES

    def empty(*last: int) -> jax.Array:
        shape = (*leading, *last)
        split = mesh and NamedSharding(mesh, partition_spec(axes[: len(shape)], shape, mesh))
        return jnp.zeros(shape, config.compute_dtype, device=split or device)

    layers = [Layer(empty(size, TURN), empty(TURN, size)) for _ in range(depth if unstacked else 1)]
    return layers if unstacked else layers[0]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="pool")
def write(pool: Layer, new: Any, writes: Writes, *, mesh: Mesh | None = None) -> Layer:
    """Write new tokens into blocks; return the pool. Consumes `pool`.

    Args:
        pool: the blocks.
        new: keys `[L, R, K, D, n]` and values `[L, R, K, n, D]`, or a list of L layers.
        writes: which tokens go where.
        mesh: the devices if there are several.
    """
    new = stacked(new)
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
            start = [0, writes.rows[i], *[0] * (fresh.ndim - 2)]
            start[axis] = windows[i]
            size = [fresh.shape[0], 1, *fresh.shape[2:]]
            size[axis] = width
            return jax.lax.dynamic_slice(fresh, start, size)

        def block(i: Any, x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, writes.sources[i], 1, axis=1)

        if _slice_by_slice(mesh):

            def one(i: jax.Array, x: jax.Array) -> jax.Array:
                found = merged(i, block(i, x), window(i), axis)
                return jax.lax.dynamic_update_slice_in_dim(x, found, writes.blocks[i], axis=1)

            return jax.lax.fori_loop(0, writes.number, one, x)
        entries = jnp.arange(len(writes.rows))
        found = jax.vmap(lambda i: merged(i, block(i, x), window(i), axis)[:, 0])(entries)
        into = jnp.where(entries < writes.number, writes.blocks, x.shape[1])
        return x.at[:, into].set(found.swapaxes(0, 1), mode="drop")

    return _placed(Layer(put(pool.keys, new.keys, -1), put(pool.values, new.values, -2)), mesh)


def _slice_by_slice(mesh: Mesh | None) -> bool:
    """Return whether to move blocks as whole slices: XLA's CPU backend gathers by element."""
    return mesh is None and jax.default_backend() == "cpu"


def _placed(layer: Layer, mesh: Mesh | None) -> Layer:
    if mesh is None:
        return layer

    def constrained(x: jax.Array) -> jax.Array:
        spec = partition_spec(AXES[: x.ndim], x.shape, mesh)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return Layer(*map(constrained, layer))


def _copy(into: Layer, pool: Layer, copies: Copies, first: int, mesh: Mesh | None) -> Layer:
    """Copy blocks of the pool's layers, from `first` on, into a contiguous batch `[l, ...]`."""
    layers = slice(first, first + into.keys.shape[0])

    def move(x: jax.Array, blocks: jax.Array, place: Callable[[Any], tuple]) -> jax.Array:
        def one(i: jax.Array, x: jax.Array) -> jax.Array:
            size = (into.keys.shape[0], 1, *blocks.shape[2:])
            start = (first, copies.blocks[i], 0, 0, 0)
            block = jax.lax.dynamic_slice(blocks, start, size)
            at = (0, copies.rows[i], 0, *place(i))
            return jax.lax.dynamic_update_slice(x, _like(block, x), at)

        return jax.lax.fori_loop(0, copies.number, one, x)

    if _slice_by_slice(mesh):
        keys = move(into.keys, pool.keys, lambda i: (copies.places[i], 0, 0))
        values = move(into.values, pool.values, lambda i: (copies.places[i] * BLOCK, 0))
        return Layer(keys, values)
    rows = jnp.where(jnp.arange(len(copies.rows)) < copies.number, copies.rows, len(into.keys[0]))
    keys = pool.keys[layers, copies.blocks].swapaxes(0, 1)  # [M, l, K, D, BLOCK]
    values = pool.values[layers, copies.blocks].swapaxes(0, 1)
    # As `[l, R, K, J, BLOCK, D]` a block is one entry; indexed axes come first.
    by_block = into.values.reshape(*into.keys.shape[:4], BLOCK, into.values.shape[-1])
    copied = Layer(
        into.keys.at[:, rows, :, copies.places].set(keys, mode="drop"),
        by_block.at[:, rows, :, copies.places].set(values, mode="drop").reshape(into.values.shape),
    )
    return _placed(copied, mesh)


def _like(block: jax.Array, batch: jax.Array) -> jax.Array:
    """Return a block `[l, 1, K, D, BLOCK]` or `[l, 1, K, BLOCK, D]` in the rank of a batch."""
    return block[:, :, :, None] if batch.ndim == 6 else block
