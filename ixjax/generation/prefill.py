"""Reading: tokens of contexts that are not stored yet, in padded passes over many contexts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ixjax.generation import cache as kv
from ixjax.generation import passes
from ixjax.generation.blocks import BlockPool, Context
from ixjax.generation.buckets import Pass, filled, group, span_of
from ixjax.generation.executor import Executor, writes_of
from ixjax.padding import pad


def read(executor: Executor, pool: BlockPool, contexts: Sequence[Context], *, enough: int) -> None:
    """Read until `enough` of the contexts have nothing left to read.

    Padding costs as much as tokens, so full passes run first; contexts that do not fill one may
    wait for others.

    Args:
        executor: runs the passes.
        pool: stores the contexts.
        contexts: to read up to their last tokens; one that is given twice counts once.
        enough: contexts to read completely; if no more than this are given, all of them.
    """
    config, stats = executor.config, executor.stats
    unique = dict.fromkeys(contexts)
    left = [context for context in unique if context.unread]
    if not left:
        return
    with stats.clock("prefill"):
        for context in left:
            context.pins += 1
        try:
            while left:
                groups = group(
                    [context.unread for context in left],
                    [context.stored for context in left],
                    prefill_tokens=config.prefill_tokens,
                    rows=config.rows,
                )
                full = [part for part in groups if part.full]
                if not full and len(unique) - len(left) >= enough:
                    break
                for part in full or [max(groups, key=lambda part: len(part.rows))]:
                    _read_pass(executor, pool, [left[i] for i in part.rows], part)
                left = _unpin_read(left)
            # Wait here, so that the clock includes the passes: the next use waits anyway.
            jax.block_until_ready(pool.arrays)
        finally:
            for context in left:
                context.pins -= 1


def _unpin_read(left: Sequence[Context]) -> list[Context]:
    """Unpin contexts that are read; return the others."""
    for context in left:
        context.pins -= not context.unread
    return [context for context in left if context.unread]


def _read_pass(
    executor: Executor, pool: BlockPool, contexts: Sequence[Context], part: Pass
) -> None:
    """Read the next chunk of some contexts."""
    rows = [contexts[i] for i in filled(range(len(contexts)), part.size)]
    stored = np.array([context.stored for context in rows], np.int32)
    tokens, counts = pad(
        [c.tokens[c.stored : c.stored + min(c.unread, part.chunk)] for c in rows], part.chunk
    )
    adapters = np.array([context.adapter for context in rows], np.int32)
    span = span_of(int(stored.max()), executor.read_spans)
    past = executor.batch(pool, rows, stored, span)
    new = executor.run(passes.extend, past, tokens, counts, adapters)
    room = {row: pool.extend(c, int(counts[row])) for row, c in enumerate(contexts)}
    firsts = np.zeros(part.size, np.int32)
    pool.update(kv.write, new, writes_of(room, firsts, part.chunk))
    executor.stats.prefill_tokens += int(counts[: len(contexts)].sum())
    executor.stats.prefill_slots += part.size * part.chunk
