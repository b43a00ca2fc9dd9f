"""How figures are written for people, in tables of the terminal and of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "n/a"
WEAK_CORRELATION = 0.1  # Spearman, of foretold and recorded outcomes


def show(value: Any) -> str:
    """A cell of a table: what is not known says so."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    # + 0.0 after rounding: no "-0.000".
    return f"{round(value, 3) + 0.0:.3f}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return UNKNOWN if value is None else f"{round(100 * value, 1) + 0.0:.1f} %"


def interval(low: float | None, high: float | None) -> str:
    """Both ends, or that it is not known."""
    return UNKNOWN if low is None or high is None else f"{show(float(low))} to {show(float(high))}"


def undecided(low: float | None, high: float | None) -> str:
    """A sentence about a win rate whose interval holds a half; nothing about another."""
    if low is None or high is None or not low <= 0.5 <= high:
        return ""
    return "The interval holds a half: neither method is shown to be better."


def is_weak(fidelity: Mapping[str, Any]) -> bool:
    """Whether a simulator knows nothing of who is helped by what.

    Args:
        fidelity: its figures, as evaluation.json has them.
    """
    error, baseline = fidelity["outcome_mae"], fidelity["outcome_mae_baseline"]
    correlation = fidelity["outcome_spearman"]
    if None in (error, baseline, correlation):
        return True
    return error >= baseline or correlation < WEAK_CORRELATION
