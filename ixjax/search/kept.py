"""Which contexts of a growing tree are kept to come back to."""

from __future__ import annotations

import math

Stamp = tuple[float, int, int]
"""When contexts were made or used: iteration, 1 or 0, and which of the iteration's it was."""

ROOT: Stamp = (math.inf, 0, 0)
"""Of the root's contexts, which never go: an expansion finds them at least."""


class KeptContexts:
    """At most `size` contexts of one tree, of which the least recently used make room for others.

    What is kept follows from the tree's own history, in whatever order the turns of an iteration
    end, so that it is the same beside any other trees. To that end there must be room for all that
    one iteration uses and makes.

    Args:
        first: of the numbers that contexts of this tree are kept at.
        size: how many.
    """

    def __init__(self, first: int, size: int):
        self._free = list(range(first, first + size))[::-1]
        self._numbers: dict[Stamp, int] = {}
        self._last_used: dict[Stamp, Stamp] = {}

    def __contains__(self, made: object) -> bool:
        return made in self._numbers

    def keep(self, made: Stamp) -> int:
        """The number for contexts that were made at a time, by which they are found again."""
        if not self._free:
            oldest = min(self._last_used, key=self._last_used.__getitem__)
            del self._last_used[oldest]
            self._free.append(self._numbers.pop(oldest))
        self._last_used[made] = made
        self._numbers[made] = self._free.pop()
        return self._numbers[made]

    def use(self, made: Stamp, now: Stamp) -> int:
        """The number of contexts that are kept, which count as used now."""
        if made != ROOT:
            self._last_used[made] = now
        return self._numbers[made]
