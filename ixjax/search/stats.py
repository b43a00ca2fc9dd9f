"""Time of a search, by activity."""

from __future__ import annotations

import collections
import dataclasses


@dataclasses.dataclass
class SearchStats:
    """Seconds of a search by activity.

    seconds: by the kind of effect that the driver served.
    total: all seconds; the rest is the host's bookkeeping.
    """

    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    total: float = 0.0

    @property
    def trees(self) -> float:
        """Return the seconds of tree arithmetic: selection, new nodes, back-propagation."""
        return self.seconds["trees"]

    @property
    def play(self) -> float:
        """Return the seconds in which both speakers read, decoded and scored turns."""
        return self.seconds["turns"] + self.seconds["outcomes"]

    @property
    def host(self) -> float:
        """Return the seconds that are neither play nor trees."""
        return self.total - self.play - self.trees

    def report(self) -> dict[str, float]:
        """Return the seconds, and each part's share of them."""
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
