"""Who says what, drawn by which random numbers: small facts that everyone who plays shares.

What a speaker says is a function of an identity: uint32 numbers for what the dialogue is (seed,
condition, node, sample), then the turn and the speaker. Nothing of it is a position in a batch, so
a dialogue comes out the same whatever is played beside it, on any number of devices and after a
restart (docs/algorithm.md, "The tree").
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.types import OutcomeReading, Utterance

POLICY, USER = 0, 1
"""Speaker tags, the last column of an identity."""

IDENTITY_PARTS = 6
"""Numbers in the identity of a turn of the search: seed, condition, node, sample, turn, speaker."""

SILENCE = "..."
"""What the other side hears of a turn without a word in it."""


def as_uint32(values: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """The last 32 bits of integers, so that any seed is one: -1 is 2^32 - 1."""
    return (np.asarray(values).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)


def hashed(text: str) -> int:
    """A condition's id as a number that is the same in every process (`hash` is not)."""
    return zlib.crc32(text.encode())


def words(utterance: Utterance) -> str:
    """What the other side hears of a turn after which the dialogue goes on; never empty."""
    return utterance.text or SILENCE


def engagements(readings: Sequence[OutcomeReading | None]) -> np.ndarray:
    """`[S]` float64 engagement; nan where it is unreadable and where nothing was read."""
    return np.array([np.nan if reading is None else reading.engagement for reading in readings])
