"""Definitions shared by all players: speaker tags, identities, and the text heard of a turn.

A turn is a function of its identity: uint32 numbers for the dialogue (seed, condition, node,
sample), then the turn and the speaker. None of them is a position in a batch, so a dialogue is the
same in any batch, on any number of devices and after a restart (docs/algorithm.md, "The tree").
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
"""The text that the other side hears for a turn without words."""


def as_uint32(values: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the last 32 bits of integers, so any integer can be a seed: -1 is 2^32 - 1."""
    return (np.asarray(values).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)


def hashed(text: str) -> int:
    """Return a hash of a condition's id that is the same in every process, unlike `hash`."""
    return zlib.crc32(text.encode())


def words(utterance: Utterance) -> str:
    """Return the text that the other side hears if the dialogue continues; never empty."""
    return utterance.text or SILENCE


def engagements(readings: Sequence[OutcomeReading | None]) -> np.ndarray:
    """Return `[S]` float64 engagement; nan if it is unreadable or there is no reading."""
    return np.array([np.nan if reading is None else reading.engagement for reading in readings])
