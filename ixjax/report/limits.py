"""Limits that keep the page of a large run quick to open."""

from __future__ import annotations

import dataclasses

from ixjax.io import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on the data in the page."""

    trees: int = 24
    """Trees in the explorer: the first of the search."""
    nodes: int = 40_000
    """Nodes of all these trees together; the first tree is always included."""
    conditions: int = 12
    """Held-out conditions with dialogues: the first of the evaluation."""

    def __post_init__(self) -> None:
        """Refuse limits below 1."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise InputError(f"limits.{field.name} is {value}; expected 1 or more")
