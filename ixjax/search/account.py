"""Where the time of a search goes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Literal

Part = Literal["trees", "play", "total"]


@dataclasses.dataclass
class SearchAccount:
    """Seconds of a search by what they were spent on.

    trees: selecting leaves, adding nodes, back-propagating.
    play: the two speakers' turns, and what the scheduler does between them.
    total: all of it; the rest is the host's bookkeeping.
    """

    trees: float = 0.0
    play: float = 0.0
    total: float = 0.0

    @contextlib.contextmanager
    def clock(self, part: Part) -> Iterator[None]:
        """Time that is spent on a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.perf_counter() - start)

    @property
    def host(self) -> float:
        """Seconds that are neither play nor trees."""
        return self.total - self.play - self.trees

    def report(self) -> dict[str, float]:
        """Seconds, and the shares of the whole."""
        whole = max(self.total, 1e-9)
        return {
            "seconds": self.total,
            "play_share": self.play / whole,
            "trees_share": self.trees / whole,
            "host_share": self.host / whole,
        }

    def __str__(self) -> str:
        report = self.report()
        shares = (
            f"{part} {100 * report[f'{part}_share']:.1f} %" for part in ("play", "trees", "host")
        )
        return f"{self.total:.1f} s; {', '.join(shares)}"
