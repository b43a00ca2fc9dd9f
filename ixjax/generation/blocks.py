"""Contexts, and the pool of blocks that their keys and values are stored in.

A `Context` is a handle: the tokens of one side of one dialogue. Its first tokens are stored as keys
and values in blocks of the pool; the rest is read when it is needed. A fork shares all blocks of
its origin. A block that several contexts hold is copied when one of them writes to it.

The pool grows up to its limit. When it is full, the least recently used contexts lose their blocks;
their tokens are read again on next use.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from ixjax.generation import cache as kv
from ixjax.generation.stats import EngineStats
from ixjax.models import ModelConfig
from ixjax.padding import quarter_bucket, round_up

SMALLEST_POOL = 32 << 20  # bytes


class Context:
    """A handle for the tokens that one side of one dialogue has read or will read.

    `Engine.new` and `Engine.fork` make it, and only that engine can use it. Its blocks are freed by
    `Engine.free`, or when it is garbage-collected.

    Attributes:
        tokens: all of them; do not change the list.
        adapter: the adapter that reads them; -1 for the base model alone.
        owner: the engine that made it.
    """

    def __init__(self, pool: BlockPool, tokens: Iterable[int], adapter: int, owner: object):
        self.tokens, self.adapter, self.owner = list(tokens), adapter, owner
        self.pool = pool
        self.blocks: list[int] = []  # block j stores columns 64 j to 64 j + 63
        self.stored = 0  # tokens whose keys and values are stored
        self.used = 0  # when, by the pool's clock
        self.pins = 0  # uses in progress; while there is one, it is not evicted

    def __len__(self) -> int:
        return len(self.tokens)

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ending():  # at exit, the modules that `release` needs may be gone
            self.pool.release(self)

    @property
    def unread(self) -> int:
        """Return the number of tokens to read before a turn is decoded.

        The last token is excluded: decoding reads it and samples from its logits.
        """
        return max(len(self.tokens) - 1 - self.stored, 0)


class Span(NamedTuple):
    """Columns of one block to write: see `cache.Writes`."""

    first: int
    source: int
    block: int
    offset: int
    columns: int


class BlockPool:
    """Blocks of keys and values for contexts of models of one shape.

    Args:
        config: of the models.
        stats: where evictions are counted.
        limit: blocks at most; 0 for no limit.
        mesh: see `cache.allocate`.
        device: see `cache.allocate`.

    Attributes:
        arrays: the keys and values; replaced by each write.
    """

    def __init__(
        self,
        config: ModelConfig,
        stats: EngineStats,
        *,
        limit: int = 0,
        mesh: Mesh | None = None,
        device: NamedSharding | None = None,
    ):
        self.config, self.limit = config, limit
        self._stats, self._mesh = stats, mesh
        self._allocate = functools.partial(kv.allocate, config, mesh=mesh, device=device)
        block = jax.tree.leaves(jax.eval_shape(lambda: kv.allocate(config, 1)))
        self._block_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in block)
        self.arrays: list[kv.Layer] | None = None
        self._free: list[int] = []
        self._holders: Counter[int] = Counter()  # contexts that hold a block
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._clock = itertools.count(1)

    @property
    def size(self) -> int:
        """Return the number of blocks."""
        return 0 if self.arrays is None else len(self.arrays[0].keys)

    @property
    def used(self) -> int:
        """Return the number of blocks that contexts hold."""
        return self.size - len(self._free)

    def new(self, tokens: Sequence[int], adapter: int, owner: object) -> Context:
        """Return a context with no stored tokens."""
        context = Context(self, tokens, adapter, owner)
        self._contexts.add(context)
        return context

    def fork(self, origin: Context) -> Context:
        """Return a context with the tokens and blocks of another."""
        context = self.new(origin.tokens, origin.adapter, origin.owner)
        context.blocks, context.stored = list(origin.blocks), origin.stored
        self._holders.update(context.blocks)
        self.touch(origin)
        self.touch(context)
        return context

    def release(self, context: Context) -> None:
        """Free all blocks of a context; it has to be read again."""
        self.shorten(context, 0)

    def shorten(self, context: Context, stored: int) -> None:
        """Forget the keys and values of all but the first `stored` tokens."""
        context.stored = min(context.stored, stored)
        kept = kv.num_blocks(context.stored)
        for block in context.blocks[kept:]:
            self._drop(block)
        del context.blocks[kept:]

    def release_all(self, owner: object) -> None:
        """Free the blocks of all contexts of one engine."""
        for context in list(self._contexts):
            if context.owner is owner:
                self.release(context)

    def update(self, function: Any, *args: Any, **static: Any) -> None:
        """Replace the arrays by `function(arrays, *args)`, which consumes them.

        If the call raises, the arrays are lost and every context has to be read again.
        """
        arrays, self.arrays = self.arrays, None
        try:
            self.arrays = self._stats.call(function, arrays, *args, mesh=self._mesh, **static)
        finally:
            if self.arrays is None:
                for context in self._contexts:
                    context.blocks, context.stored = [], 0
                self._holders.clear()
                self._free.clear()

    def touch(self, context: Context) -> None:
        """Mark a context as used now."""
        context.used = next(self._clock)

    @contextlib.contextmanager
    def pinned(self, contexts: Sequence[Context]) -> Iterator[None]:
        """Keep contexts from being evicted."""
        for context in contexts:
            context.pins += 1
        try:
            yield
        finally:
            for context in contexts:
                context.pins -= 1

    def reserve(self, tokens: int) -> None:
        """Allocate blocks for this many more tokens, within the limit."""
        blocks = self.used + kv.num_blocks(tokens)
        self._grow(min(blocks, self.limit) if self.limit else blocks)

    def extend(self, context: Context, count: int) -> list[Span]:
        """Give a context blocks for its next `count` tokens; return the columns to write.

        The caller writes them before it uses the pool again.
        """
        start, spans = context.stored, []
        self.touch(context)
        while count:
            place, offset = divmod(start, kv.BLOCK)
            written = min(count, kv.BLOCK - offset)
            block = source = context.blocks[place] if place < len(context.blocks) else None
            if block is None or self._holders[block] > 1:
                block = self._take(context)
                source = block if source is None else source
                self._put(context, place, block)
            assert source is not None
            spans.append(Span(start - context.stored, source, block, offset, written))
            start, count = start + written, count - written
        context.stored = start
        return spans

    def _put(self, context: Context, place: int, block: int) -> None:
        self._holders[block] = 1
        if place < len(context.blocks):
            self._drop(context.blocks[place])
            context.blocks[place] = block
        else:
            context.blocks.append(block)

    def _drop(self, block: int) -> None:
        self._holders[block] -= 1
        if not self._holders[block]:
            del self._holders[block]
            self._free.append(block)

    def _take(self, context: Context) -> int:
        """Return a free block, evicting contexts other than `context` if there is none."""
        if not self._free and (not self.limit or self.size < self.limit):
            self._grow(min(2 * self.size, self.limit or 2 * self.size))
        while not self._free and (oldest := self._oldest(context)):
            self.release(oldest)
            self._stats.evictions += 1
        if not self._free:  # every block is pinned: exceed the limit
            self._grow(2 * self.size)
        return self._free.pop()

    def _oldest(self, context: Context) -> Context | None:
        """Return the least recently used context that may be evicted."""
        evictable = (c for c in self._contexts if c.blocks and not c.pins and c is not context)
        return min(evictable, key=lambda c: c.used, default=None)

    def _grow(self, blocks: int) -> None:
        # Few sizes: every pass is compiled for the size of the pool.
        size = quarter_bucket(max(blocks, -(-SMALLEST_POOL // self._block_bytes)))
        blocks = self._even(max(blocks, min(size, self.limit)) if self.limit else size)
        before, more = self.size, blocks - self.size
        if more <= 0:
            return
        if self.arrays is None:
            self.arrays = self._allocate(blocks)
        else:
            self.update(kv.grow, more=more)
        self._free += range(blocks - 1, before - 1, -1)

    def _even(self, blocks: int) -> int:
        """Round a number of blocks up to a multiple of the mesh's batch axes."""
        parts = 1 if self._mesh is None else self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        return round_up(blocks, parts)
