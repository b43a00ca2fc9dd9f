"""What a `ModelSpeaker` holds of many dialogues."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.types import Dialogue
from ixjax.generation.contexts import Contexts


@dataclasses.dataclass(frozen=True)
class Rows:
    """State of a `ModelSpeaker`.

    contexts: what the engine holds.
    dialogues: `[S]` the dialogue of each row, None for an empty one.
    lines: `[S]` the outcome line that closed the row, as generated.
    identities: `[S]` what the row's last turn was drawn by.
    unread: `[S]` tokens that the row has yet to read before it can be spoken from.
    """

    contexts: Contexts
    dialogues: list[Dialogue | None]
    lines: list[str | None]
    identities: list[tuple[int, ...]]
    unread: list[Sequence[int]]

    @classmethod
    def of(cls, contexts: Contexts) -> Rows:
        """Rows without a dialogue, whatever the contexts hold."""
        rows = len(contexts.tokens)
        return cls(contexts, [None] * rows, [None] * rows, [()] * rows, [()] * rows)


def with_rows_of(
    state: Rows,
    rows: Sequence[int] | np.ndarray,
    source: Rows,
    source_rows: Sequence[int] | np.ndarray,
) -> Rows:
    """The host's part of a state with some rows as they are in another."""
    parts = {}
    for name in ("dialogues", "lines", "identities", "unread"):
        values = parts[name] = list(getattr(state, name))
        for row, source_row in zip(rows, source_rows, strict=True):
            values[row] = getattr(source, name)[source_row]
    return dataclasses.replace(state, **parts)


def held(dialogue: Dialogue | None, row: int) -> Dialogue:
    """The dialogue of a row that is played; an empty row can't be."""
    if dialogue is None:
        raise ValueError(f"row {row} holds no dialogue; start one, or store into it, first")
    return dialogue
