"""Round sizes up to a short list and pad ragged sequences, so that few shapes are compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bucket(size: int, *, smallest: int = 4) -> int:
    """Return the smallest power of two that is at least `size` and at least `smallest`."""
    return max(smallest, 1 << max(size - 1, 0).bit_length())


def round_up(size: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `size`."""
    return -(-size // step) * step


def pad(
    sequences: Sequence[Sequence[int]], size: int, fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad sequences to `[S, size]` int32; also return their `[S]` int32 lengths."""
    padded = np.full((len(sequences), size), fill, np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded, np.array([len(s) for s in sequences], np.int32)
