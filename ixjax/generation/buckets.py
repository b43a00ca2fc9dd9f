"""Work of any size, padded to a short list of shapes.

Three sizes are rounded up: the columns of the cache that attention reads (`span`), the new tokens
of a row (`piece`), and the rows that share a pass. Of a span the surplus is masked; how a row is
padded otherwise depends on what it is given itself and on how many rows its contexts have, and
never on what its neighbours are given.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ixjax.padding import bucket, pad, round_up

__all__ = ["bucket", "pad", "round_up"]

PIECES = (16, 32, 128)  # new tokens of a row in one pass; what is longer is read in several
SMALLEST_SPAN = 64
FEW = 8  # a pass over few rows has 1/8 of the rows of a full one
# From here on XLA's CPU backend computes a row in one way, whatever the number of rows: in smaller
# passes a row's last bits would tell how many others were read with it. They do tell whether its
# contexts have rows for so many tokens at all: a pass has no more rows than they.
FEWEST_TOKENS = 128
# From so many elements on it computes exponentials in one way: of attention to fewer columns the
# last bits would tell how long the longest row of a batch is.
FEWEST_WEIGHTS = 4096


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that are read in one pass, `size` of them with padding, `piece` tokens each.

    full: whether nothing would be gained by waiting for more rows.
    """

    rows: list[int]
    size: int
    piece: int
    full: bool


def spans(columns: int) -> list[int]:
    """Numbers of columns that attention reads.

    0, then steps of `SMALLEST_SPAN`; from four of those on, of an eighth to a quarter of the whole.
    """
    found = [0]
    while found[-1] < columns:
        step = max(bucket(found[-1] + 1) // 8, SMALLEST_SPAN)
        found.append(min(found[-1] + step, columns))
    return found


def span_of(longest: int, columns: int) -> int:
    """The columns to read so that `longest` tokens are covered."""
    return next(span for span in spans(columns) if span >= longest)


def piece_of(count: int) -> int:
    """The size of the pass that reads the next of `count` new tokens.

    The largest is taken only where it is filled: what is left over is read in smaller ones, since
    one pass more costs less than a piece that is mostly padding.
    """
    small, middle, large = PIECES
    return large if count >= large else middle if count > small else small


def pass_sizes(piece: int, *, prefill_tokens: int, most_rows: int) -> list[int]:
    """Rows of a pass over pieces of this size: of a full one, and of one over few rows."""
    # Of the shortest pieces it has no more rows than of the next: turns that short are not many.
    full = min(max(prefill_tokens // max(piece, PIECES[1]), 1), bucket(most_rows, smallest=1))
    few = max(full // FEW, FEWEST_TOKENS // piece)
    return [full, few] if few < full else [full]


def group(
    counts: Mapping[int, int], lengths: Mapping[int, int], *, prefill_tokens: int, most_rows: int
) -> list[Group]:
    """Rows that are to read something, put together by the size of their next piece.

    Args:
        counts: tokens that rows are still to read, 1 or more, by row.
        lengths: tokens that they hold, by row: rows of like length share a pass.
        prefill_tokens: of a pass.
        most_rows: no pass needs more.
    """
    groups = []
    for piece, begun in itertools.product(PIECES, (False, True)):
        # Rows that hold nothing have passes of their own, in which nothing is attended to before
        # what is read: in others their last bits would differ.
        rows = [
            row
            for row, count in counts.items()
            if piece_of(count) == piece and (lengths[row] > 0) == begun
        ]
        rows.sort(key=lambda row: (lengths[row], row))
        full, few = (pass_sizes(piece, prefill_tokens=prefill_tokens, most_rows=most_rows) * 2)[:2]
        while rows:
            size = full if len(rows) > full // 2 else few
            groups.append(Group(rows[:size], size, piece, full=len(rows) >= full))
            rows = rows[size:]
    return groups


def filled(values: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """`[size]` int32: the values, then the first of them again (0 where there is none)."""
    out = np.full(size, values[0] if len(values) else 0, np.int32)
    out[: min(len(values), size)] = values[:size]
    return out
