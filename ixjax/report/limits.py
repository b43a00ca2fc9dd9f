"""How much of a large run goes into the page: it stays a file that a browser opens at once."""

from __future__ import annotations

import dataclasses

from ixjax.io import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much of a large run goes into the page."""

    trees: int = 24
    """Trees in the explorer, the first ones of the search."""
    nodes: int = 40_000
    """Nodes of all these trees together; the first tree is there whatever its size."""
    conditions: int = 12
    """Held-out conditions whose dialogues can be read, the first ones of the evaluation."""

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to see."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise InputError(f"limits.{field.name} is {value}; expected 1 or more")
