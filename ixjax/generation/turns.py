"""Facts about turns that all who play share: speakers, identities and what is heard of a turn.

A turn is a function of its identity: uint32 numbers for the dialogue (seed, condition, node,
sample), then the turn and the speaker. None of them is a position in a batch, so a dialogue is the
same next to any others, on any number of devices and after a restart (docs/algorithm.md, "The
tree").
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.types import OutcomeReading, Utterance

POLICY, USER = 0, 1
"""Speaker tags, the last column of an identity."""

OPENING = 0xFFFFFFFF
"""Number of the turn that a user opens with, before the policy's turn 0."""

SILENCE = "..."
"""The text that the other side hears of a turn without words."""


def as_uint32(values: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the last 32 bits of integers, so that any seed is one: -1 is 2^32 - 1."""
    return (np.asarray(values).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)


def hashed(text: str) -> int:
    """Return a condition's id as a number that is the same in every process (`hash` is not)."""
    return zlib.crc32(text.encode())


def words(utterance: Utterance) -> str:
    """Return the text that the other side hears of a turn that ends no dialogue; never empty."""
    return utterance.text or SILENCE


def engagements(readings: Sequence[OutcomeReading | None]) -> np.ndarray:
    """Return `[S]` float64 engagement; nan where it is unreadable or nothing was read."""
    return np.array([np.nan if reading is None else reading.engagement for reading in readings])
