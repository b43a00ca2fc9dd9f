"""Sizes that passes are padded to, from a short list of shapes.

Three sizes are rounded up: the columns of the cache that attention reads (`span`), the new tokens
of a row (`chunk`), and the rows of a pass. Columns beyond a row's length are masked. How a row is
padded depends on its own tokens and on the engine's settings, never on its neighbours.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from ixjax.padding import bucket

CHUNKS = (16, 32, 128)  # new tokens of a row in one pass; more are read in several passes
SMALLEST_SPAN = 64
FEW = 8  # a pass over few rows has 1/8 of the rows of a full one
# In passes of fewer tokens, XLA's CPU backend picks a matmul by their number, and the last bits of
# a row would depend on how many others are read with it.
FEWEST_TOKENS = 128
# With fewer attention weights, it picks an exponential by their number, and the last bits of a row
# would depend on the longest row of its batch.
FEWEST_WEIGHTS = 4096


@dataclasses.dataclass(frozen=True)
class Pass:
    """Rows that are read together.

    rows: indices of the contexts.
    size: rows of the pass, padding included.
    chunk: tokens a row, padding included.
    full: whether every row of a full pass is taken.
    """

    rows: list[int]
    size: int
    chunk: int
    full: bool


def read_spans(columns: int) -> list[int]:
    """Return the numbers of columns that a pass that reads or scores may attend to.

    They double: the time of such a pass is mostly matmuls, so few programs are worth the padding.
    """
    found = [0, min(SMALLEST_SPAN, columns)]
    while found[-1] < columns:
        found.append(min(2 * found[-1], columns))
    return found


def decode_spans(columns: int) -> list[int]:
    """Return the numbers of columns that a decode pass may attend to, from 0 to `columns`.

    A step is an eighth of the next power of two, and at least `SMALLEST_SPAN`.
    """
    found = [0]
    while found[-1] < columns:
        step = max(bucket(found[-1] + 1) // 8, SMALLEST_SPAN)
        found.append(min(found[-1] + step, columns))
    return found


def span_of(longest: int, spans: Sequence[int]) -> int:
    """Return the smallest of `spans` that covers `longest` tokens."""
    return next(span for span in spans if span >= longest)


def chunk_of(count: int) -> int:
    """Return the size of the chunk that reads the next of `count` new tokens.

    The largest is chosen only if it is filled: one more pass costs less than a chunk that is mostly
    padding.
    """
    small, middle, large = CHUNKS
    return large if count >= large else middle if count > small else small


def pass_sizes(chunk: int, *, prefill_tokens: int, rows: int) -> list[int]:
    """Return the rows of a full pass over chunks of this size, and of a pass over few rows.

    Args:
        chunk: tokens a row.
        prefill_tokens: of a pass.
        rows: of the decode batch; no pass has more.
    """
    # Few turns fit the shortest chunk, so its passes have no more rows than those of the next.
    full = min(max(prefill_tokens // max(chunk, CHUNKS[1]), 1), bucket(rows, smallest=1))
    few = max(full // FEW, FEWEST_TOKENS // chunk)
    return [full, few] if few < full else [full]


def group(
    counts: Sequence[int], lengths: Sequence[int], *, prefill_tokens: int, rows: int
) -> list[Pass]:
    """Group contexts that have tokens to read by the size of their next chunk.

    Args:
        counts: `[N]` tokens to read, by context; those with 0 are left out.
        lengths: `[N]` tokens read: contexts of similar length share a pass.
        prefill_tokens: see `pass_sizes`.
        rows: see `pass_sizes`.
    """
    groups = []
    for chunk, begun in itertools.product(CHUNKS, (False, True)):
        # Empty contexts are read in passes without a past: a past would change their last bits.
        chosen = [
            i
            for i, count in enumerate(counts)
            if count and chunk_of(count) == chunk and (lengths[i] > 0) == begun
        ]
        chosen.sort(key=lambda i: (lengths[i], i))
        full, few = (pass_sizes(chunk, prefill_tokens=prefill_tokens, rows=rows) * 2)[:2]
        while chosen:
            size = full if len(chosen) > full // 2 else few
            groups.append(Pass(chosen[:size], size, chunk, full=len(chosen) >= full))
            chosen = chosen[size:]
    return groups


def filled(values: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Return `[size]` int32: the values, then the first of them again (0 if there is none)."""
    out = np.full(size, values[0] if len(values) else 0, np.int32)
    out[: min(len(values), size)] = values[:size]
    return out
