"""KV cache rows: one row per live context, each contiguous from column 0.

A cache may have any number of rows. What computes works on a batch: some rows, copied out up to
the columns that they need (`take`), whose new tokens are then written behind their ends (`append`).
So a compiled pass knows nothing of how many contexts there are, and a row's layout depends on its
own tokens alone: forking, storing and shortening one are plain copies.

Keys lie in blocks of `BLOCK` columns, in which columns come last. Attention then reads both keys
and values from end to end; on a CPU, where it waits for memory, it takes less than half the time
that it takes with keys as values lie.

Axes: L layers, S cache rows, R rows of a batch, K KV heads, T columns, J = T / BLOCK blocks,
D head size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ixjax.generation.buckets import SMALLEST_SPAN
from ixjax.models import ModelConfig
from ixjax.parallel import partition_spec

BLOCK = SMALLEST_SPAN  # columns
SIDE = 64  # tokens of a turn that stand apart from what was read before it
AXES = (None, "rows", "kv_heads", None, None, None)  # of keys; values have one less


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of what each row has read, and what is to be expected behind it.

    keys: `[L, S, K, J, D, BLOCK]`, rotated; columns at and behind a row's length are garbage.
    values: `[L, S, K, T, D]`, likewise.
    lengths: `[S]` int32 tokens in each row.
    logits: `[S, V]` float32 behind each row's last token.
    """

    keys: jax.Array  # [L, S, K, J, D, BLOCK]
    values: jax.Array  # [L, S, K, T, D]
    lengths: jax.Array  # [S]
    logits: jax.Array  # [S, V]

    @property
    def rows(self) -> int:
        """S."""
        return self.lengths.shape[0]

    @property
    def columns(self) -> int:
        """T."""
        return self.values.shape[3]


class Layer(NamedTuple):
    """Keys and values of one layer `[R, ...]`, or of all of them `[L, R, ...]`.

    keys: `[..., K, J, D, BLOCK]` of a cache; `[..., K, D, n]` of new tokens.
    values: `[..., K, n, D]`.
    """

    keys: jax.Array
    values: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows of a cache, copied out.

    past: what they have read: a list of L layers, so that a loop over tokens slices nothing, or
        one `Layer` of stacked arrays, to scan over; None where no row has read anything.
    lengths: `[R]`.
    logits: `[R, V]`.
    """

    past: list[Layer] | Layer | None
    lengths: jax.Array  # [R]
    logits: jax.Array  # [R, V]

    @property
    def span(self) -> int:
        """Columns of `past`."""
        if self.past is None:
            return 0
        layer = self.past[0] if isinstance(self.past, list) else self.past
        return layer.values.shape[-2]


def allocate(
    config: ModelConfig,
    rows: int,
    columns: int,
    *,
    mesh: Mesh | None = None,
    device: NamedSharding | None = None,
) -> KVCache:
    """An empty cache of `rows` rows that hold up to `columns` (a multiple of `BLOCK`) tokens each.

    Args:
        config: of the model.
        rows: S.
        columns: T.
        mesh: the devices, where there are several: rows are split over its batch axes and KV heads
            over `tensor`, where that goes evenly.
        device: where the weights lie, where that is one device: what is computed from them lies
            there as well, and passes would be compiled a second time for what does not.
    """

    def zeros(axes: tuple[str | None, ...], shape: tuple[int, ...], dtype: str) -> jax.Array:
        split = mesh and NamedSharding(mesh, partition_spec(axes, shape, mesh))
        return jnp.zeros(shape, dtype, device=split or device)

    heads = (config.num_layers, rows, config.num_kv_heads)
    dtype = config.compute_dtype
    return KVCache(
        zeros(AXES, (*heads, columns // BLOCK, config.head_dim, BLOCK), dtype),
        zeros(AXES[:5], (*heads, columns, config.head_dim), dtype),
        zeros(("rows",), (rows,), "int32"),
        zeros(("rows", None), (rows, config.vocab_size), "float32"),
    )


@functools.partial(jax.jit, static_argnames=("span", "apart", "mesh"))
def take(
    cache: KVCache, rows: jax.Array, *, span: int, apart: bool, mesh: Mesh | None = None
) -> Batch:
    """Copy rows `rows` `[R]` out, up to column `span`; what they hold lies in front of it.

    Args:
        cache: the rows; still valid afterwards.
        rows: `[R]`.
        span: columns that are copied.
        apart: whether each layer becomes arrays of its own (see `Batch.past`).
        mesh: the devices, where there are several.
    """
    lengths, logits = cache.lengths[rows], cache.logits[rows]
    if not span:
        return Batch(None, lengths, logits)
    depth, _, heads, _, size, _ = cache.keys.shape
    layers = 1 if apart else depth
    shape = (layers, len(rows), heads)
    empty = Layer(
        jnp.zeros((*shape, span // BLOCK, size, BLOCK), cache.keys.dtype),
        jnp.zeros((*shape, span, size), cache.values.dtype),
    )
    everyone = jnp.arange(len(rows))
    copied = [
        _copy(empty, cache, everyone, rows, span=span, first=first, mesh=mesh)
        for first in range(0, depth, layers)
    ]
    past = [jax.tree.map(lambda x: x[0], layer) for layer in copied] if apart else copied[0]
    return Batch(past, lengths, logits)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="batch")
def replace_rows(
    batch: Batch,
    slots: jax.Array,
    cache: KVCache,
    rows: jax.Array,
    number: jax.Array,
    *,
    mesh: Mesh | None = None,
) -> Batch:
    """Overwrite row `slots[i]` of a batch with row `rows[i]` of a cache, for each i below `number`.

    Args:
        batch: consumed; its rows that are not named stay.
        slots: `[R]`, all different below `number`.
        cache: the rows; still valid afterwards.
        rows: `[R]`; what they hold lies in front of the batch's span.
        number: how many of the R are copied.
        mesh: the devices, where there are several.
    """
    to = _dropped(slots, number, len(batch.lengths))

    def copied(layer: Layer, first: int) -> Layer:
        return _copy(
            layer, cache, slots, rows, span=batch.span, number=number, first=first, mesh=mesh
        )

    return Batch(
        _by_layer(batch.past, copied),
        batch.lengths.at[to].set(cache.lengths[rows], mode="drop"),
        batch.logits.at[to].set(cache.logits[rows], mode="drop"),
    )


def side_buffer(
    config: ModelConfig,
    rows: int,
    *,
    apart: bool,
    mesh: Mesh | None = None,
    device: NamedSharding | None = None,
) -> list[Layer] | Layer:
    """Room for `SIDE` tokens of a turn behind each of `rows` rows of a batch.

    Keys `[R, K, D, SIDE]` and values `[R, K, SIDE, D]` of each layer: in a list where they are
    `apart`, else stacked. For `mesh` and `device` see `allocate`.
    """
    size, depth = config.head_dim, config.num_layers
    leading = (rows, config.num_kv_heads) if apart else (depth, rows, config.num_kv_heads)
    axes = AXES[1:] if apart else AXES

    def empty(*last: int) -> jax.Array:
        shape = (*leading, *last)
        split = mesh and NamedSharding(mesh, partition_spec(axes[: len(shape)], shape, mesh))
        return jnp.zeros(shape, config.compute_dtype, device=split or device)

    layers = [Layer(empty(size, SIDE), empty(SIDE, size)) for _ in range(depth if apart else 1)]
    return layers if apart else layers[0]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="side")
def fill_side(
    side: Any,
    cache: KVCache,
    slots: jax.Array,
    rows: jax.Array,
    starts: jax.Array,
    number: jax.Array,
    *,
    mesh: Mesh | None = None,
) -> Any:
    """Columns from `starts[i]` on of row `rows[i]`, into slot `slots[i]`, for i below `number`.

    Args:
        side: see `side_buffer`; consumed.
        cache: there are `SIDE` columns behind each start.
        slots: `[R]`, all different below `number`.
        rows: `[R]`.
        starts: `[R]`.
        number: how many of the R are copied.
        mesh: the devices, where there are several.
    """
    to = _dropped(slots, number, len(slots))
    columns = starts[:, None] + jnp.arange(SIDE)[None]

    def filled(layer: Layer, first: int) -> Layer:
        depth = layer.keys.shape[0]
        layers = slice(first, first + depth)
        # Indexed axes come first in what is taken.
        keys = cache.keys[layers, rows[:, None], :, columns // BLOCK, :, columns % BLOCK]
        values = cache.values[layers, rows[:, None], :, columns]
        keys, values = keys.transpose(2, 0, 3, 4, 1), values.transpose(2, 0, 3, 1, 4)
        return Layer(
            layer.keys.at[:, to].set(keys, mode="drop"),
            layer.values.at[:, to].set(values, mode="drop"),
        )

    return _by_layer(side, filled)


@functools.partial(jax.jit, static_argnames=("width", "mesh"), donate_argnames="cache")
def append(
    cache: KVCache,
    rows: jax.Array,
    slots: jax.Array,
    number: jax.Array,
    new: Any,
    counts: jax.Array,
    logits: jax.Array,
    begins: jax.Array | int = 0,
    *,
    width: int,
    mesh: Mesh | None = None,
) -> KVCache:
    """Write what a pass read behind the rows that it was given, for each i below `number`.

    `width` columns are written (the surplus is garbage behind the row's end), so the caller leaves
    as much room: a slice update that does not fit would be shifted onto what is there.

    Args:
        cache: the rows; consumed.
        rows: `[R]` of the cache, all different below `number`.
        slots: `[R]` where in the pass they were.
        number: how many of the R are written.
        new: keys `[L, R, K, D, n]` and values `[L, R, K, n, D]`, by slot; or a list of L layers.
        counts: `[R]` int32 in 0..width, by slot.
        logits: `[R, V]` the rows' new logits, by slot.
        begins: `[R]`, or of all, the column of `new` at which what is new begins, by slot; the
            columns before it are the row's last ones.
        width: columns written, of the n.
        mesh: the devices, where there are several.
    """
    to = _dropped(rows, number, cache.rows)
    new = jax.tree.map(lambda *x: jnp.stack(x), *new) if isinstance(new, list) else new
    begins = jnp.broadcast_to(begins, len(counts))[slots]
    # Where less than `width` columns follow, some that are there already are written once more.
    first = jnp.minimum(begins, new.keys.shape[-1] - width)
    starts = cache.lengths[rows] - (begins - first)
    written = Layer(cache.keys, cache.values)
    written = _write(
        written, new, rows, slots, starts, first, width=width, number=number, mesh=mesh
    )
    return KVCache(
        *written,
        cache.lengths.at[to].add(jnp.asarray(counts)[slots], mode="drop"),
        cache.logits.at[to].set(logits[slots], mode="drop"),
    )


@functools.partial(jax.jit, static_argnames=("span", "mesh"), donate_argnames="target")
def copy_rows(
    target: KVCache,
    rows: jax.Array,
    source: KVCache,
    source_rows: jax.Array,
    number: jax.Array,
    *,
    span: int,
    mesh: Mesh | None = None,
) -> KVCache:
    """Overwrite row `rows[i]` with row `source_rows[i]` of `source`, for each i below `number`.

    Args:
        target: the cache that is changed; consumed.
        rows: `[R]`, all different below `number`.
        source: a cache of as many columns.
        source_rows: `[R]`.
        number: how many of the R are copied.
        span: columns that are copied; what these rows hold lies in front of it.
        mesh: the devices, where there are several.
    """
    to = _dropped(rows, number, target.rows)
    copied = Layer(target.keys, target.values)
    copied = _copy(copied, source, rows, source_rows, span=span, number=number, mesh=mesh)
    return KVCache(
        *copied,
        target.lengths.at[to].set(source.lengths[source_rows], mode="drop"),
        target.logits.at[to].set(source.logits[source_rows], mode="drop"),
    )


@functools.partial(jax.jit, static_argnames=("span", "mesh"), donate_argnames="cache")
def move_rows(
    cache: KVCache,
    rows: jax.Array,
    source_rows: jax.Array,
    number: jax.Array,
    *,
    span: int,
    mesh: Mesh | None = None,
) -> KVCache:
    """As `copy_rows`, within one cache; no row is both written and a source."""
    to = _dropped(rows, number, cache.rows)
    # None: what is read is what is written, so that no second cache is made.
    copied = _copy(cache, None, rows, source_rows, span=span, number=number, mesh=mesh)
    return KVCache(
        *copied,
        cache.lengths.at[to].set(cache.lengths[source_rows], mode="drop"),
        cache.logits.at[to].set(cache.logits[source_rows], mode="drop"),
    )


def _dropped(rows: jax.Array, number: jax.Array | int, size: int) -> jax.Array:
    """`rows`, those from `number` on out of range, so that nothing is written there."""
    return jnp.where(jnp.arange(len(rows)) < number, rows, size)


def _by_layer(past: Any, change: Callable[[Layer, int], Layer]) -> Any:
    """A batch's layers, each changed, with the number of the first one that is handed over."""
    if not isinstance(past, list):
        return change(past, 0)
    stacked = [jax.tree.map(lambda x: x[None], layer) for layer in past]
    changed = [change(layer, first) for first, layer in enumerate(stacked)]
    return [jax.tree.map(lambda x: x[0], layer) for layer in changed]


def _row_by_row(mesh: Mesh | None) -> bool:
    """Whether rows are best moved as whole slices: XLA's CPU backend gathers by element."""
    return mesh is None and jax.default_backend() == "cpu"


def _placed(layer: Layer, mesh: Mesh | None) -> Layer:
    if mesh is None:
        return layer

    def constrained(x: jax.Array) -> jax.Array:
        spec = partition_spec(AXES[: x.ndim], x.shape, mesh)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return Layer(*map(constrained, layer))


def _copy(
    into: KVCache | Layer,
    origin: KVCache | Layer | None,
    to: jax.Array,
    source: jax.Array,
    *,
    span: int,
    number: jax.Array | int | None = None,
    first: int = 0,
    mesh: Mesh | None,
) -> Layer:
    """Columns 0 to `span` of rows `source` of a cache's layers, to rows `to` of a cache or batch.

    Args:
        into: keys and values `[l, ...]`.
        origin: a cache of L layers, of which l are copied, from `first` on; None: `into` itself.
        to: `[R]`.
        source: `[R]`.
        span: columns copied.
        number: how many of the R are copied; None: all.
        first: see `origin`.
        mesh: the devices, where there are several.
    """
    number = len(to) if number is None else number
    layers = slice(first, first + into.keys.shape[0])

    def one(x: jax.Array, y: jax.Array | None, units: int) -> jax.Array:
        if not _row_by_row(mesh):
            y = x if y is None else y
            part = y[layers, source, :, :units]
            return x.at[:, _dropped(to, number, x.shape[1]), :, :units].set(part, mode="drop")
        size = (x.shape[0], 1, x.shape[2], units, *x.shape[4:])

        def put(i: jax.Array, x: jax.Array) -> jax.Array:
            origin = x if y is None else y
            part = jax.lax.dynamic_slice(origin, (first, source[i], *(0,) * (x.ndim - 2)), size)
            return jax.lax.dynamic_update_slice(x, part, (0, to[i], *(0,) * (x.ndim - 2)))

        return jax.lax.fori_loop(0, number, put, x)

    if not span:
        return Layer(into.keys, into.values)
    keys, values = (None, None) if origin is None else (origin.keys, origin.values)
    copied = Layer(one(into.keys, keys, span // BLOCK), one(into.values, values, span))
    return _placed(copied, mesh)


def _write(
    into: Layer,
    new: Layer,
    to: jax.Array,
    source: jax.Array,
    starts: jax.Array,
    begins: jax.Array,
    *,
    width: int,
    number: jax.Array,
    mesh: Mesh | None,
) -> Layer:
    """`width` columns of rows `source` of new tokens, into rows `to` of a cache.

    Args:
        into: keys and values of a cache.
        new: keys `[L, R, K, D, n]` and values `[L, R, K, n, D]`.
        to: `[R]`.
        source: `[R]`.
        starts: `[R]` the first column that is written.
        begins: `[R]` the first of `new` that is.
        width: columns written.
        number: how many of the R are written.
        mesh: the devices, where there are several.
    """
    depth, blocks = into.keys.shape[0], into.keys.shape[3]
    if not _row_by_row(mesh):
        target = _dropped(to, number, into.keys.shape[1])[:, None]
        column = starts[:, None] + jnp.arange(width)[None]
        keys = into.keys.at[:, target, :, column // BLOCK, :, column % BLOCK]
        values = into.values.at[:, target, :, column]
        # Indexed axes come first in what is taken and set.
        taken = begins[:, None] + jnp.arange(width)[None]
        new_keys = new.keys[:, source[:, None], :, :, taken]
        new_values = new.values[:, source[:, None], :, taken]
        return _placed(
            Layer(keys.set(new_keys, mode="drop"), values.set(new_values, mode="drop")), mesh
        )

    def put_keys(i: jax.Array, keys: jax.Array) -> jax.Array:
        i, begin = i // parts, i % parts * part
        place = (0, source[i], 0, 0, begins[i] + begin)
        columns = jax.lax.dynamic_slice(new.keys, place, (depth, 1, *new.keys.shape[2:4], part))
        block, offset = jnp.divmod(starts[i] + begin, BLOCK)
        keys = _merge(keys, columns, to[i], block, offset)
        return _merge(keys, columns, to[i], jnp.minimum(block + 1, blocks - 1), offset - BLOCK)

    def put_values(i: jax.Array, values: jax.Array) -> jax.Array:
        place = (0, source[i], 0, begins[i], 0)
        size = (depth, 1, new.values.shape[2], width, new.values.shape[4])
        row = jax.lax.dynamic_slice(new.values, place, size)
        return jax.lax.dynamic_update_slice(values, row, (0, to[i], 0, starts[i], 0))

    # Parts of so many columns lie in two blocks at the most.
    part = width if width <= BLOCK else math.gcd(width, BLOCK)
    parts = width // part
    return Layer(
        jax.lax.fori_loop(0, number * parts, put_keys, into.keys),
        jax.lax.fori_loop(0, number, put_values, into.values),
    )


def _merge(
    keys: jax.Array, new: jax.Array, row: jax.Array, block: jax.Array, offset: jax.Array
) -> jax.Array:
    """Keys `[l, 1, K, D, w]`, w <= BLOCK, from column `offset` of a block on, where they lie in it.

    `offset` may be anything between -BLOCK and BLOCK: what would lie outside is left out.
    """
    width = new.shape[-1]
    begin = jnp.clip(offset, 0, BLOCK - width)  # the w columns of the block that are written
    index = begin + jnp.arange(width) - offset  # of what is new, for each of them
    place = (0, row, 0, block, 0, begin)
    old = jax.lax.dynamic_slice(keys, place, (*new.shape[:3], 1, *new.shape[3:]))
    shifted = jnp.roll(new, offset - begin, axis=-1)[:, :, :, None]
    inside = (index >= 0) & (index < width)
    return jax.lax.dynamic_update_slice(keys, jnp.where(inside, shifted, old), place)
