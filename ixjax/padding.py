"""Sizes rounded up to a short list, so that few shapes are compiled; sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bucket(size: int, *, smallest: int = 4) -> int:
    """Return the smallest power of two that is at least `size` and at least `smallest`."""
    return max(smallest, 1 << max(size - 1, 0).bit_length())


def quarter_bucket(size: int) -> int:
    """Return the smallest of 4, 5, 6, 7 times a power of two that is at least `size`."""
    return round_up(size, max((1 << max(size - 1, 0).bit_length()) // 8, 1))


def round_up(size: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `size`."""
    return -(-size // step) * step


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of tokens that both begin with."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def pad(
    sequences: Sequence[Sequence[int]], size: int, fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad sequences to `[S, size]` int32; also return their `[S]` int32 lengths."""
    padded = np.full((len(sequences), size), fill, np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded, np.array([len(s) for s in sequences], np.int32)
