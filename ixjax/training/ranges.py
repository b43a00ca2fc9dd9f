"""Ranges of settings, checked and described in one place."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; an open end is not in the range."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        start = f"a number above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        if self.high == math.inf:
            return start
        if self.open_low or self.open_high:
            return f"{start}, {'below' if self.open_high else 'at most'} {self.high:g}"
        return f"{self.low:g} to {self.high:g}"


COUNT = Range(1)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, open_low=True)
SHARE = Range(0, 1)  # of a whole
PART = Range(0, 1, open_high=True)  # never the whole


def check_ranges(config: Any, **ranges: Range) -> None:
    """Raise unless each named field is in its range.

    Raises:
        ValueError: names the field, its value and the range.
    """
    for name, expected in ranges.items():
        value = getattr(config, name)
        if value not in expected:
            finite = "" if math.isfinite(value) else "a finite number: "
            raise ValueError(f"{name} is {value}; expected {finite}{expected}")
