"""Formats of figures in tables, of the terminal and of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "n/a"
WEAK_CORRELATION = 0.1  # Spearman, of predicted and recorded outcomes


def show(value: Any) -> str:
    """Return a table cell; None becomes `n/a`."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.3f}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """Return a share as a percentage."""
    return UNKNOWN if value is None else f"{round(100 * value, 1) + 0.0:.1f} %"


def interval(low: float | None, high: float | None) -> str:
    """Return both ends, or `n/a`."""
    return UNKNOWN if low is None or high is None else f"{show(float(low))} to {show(float(high))}"


def undecided(low: float | None, high: float | None) -> str:
    """Return a sentence if a win rate's interval includes 0.5, else an empty text."""
    if low is None or high is None or not low <= 0.5 <= high:
        return ""
    return "The interval includes 0.5: neither method is shown to be better."


def is_weak(fidelity: Mapping[str, Any]) -> bool:
    """Return whether a simulator predicts outcomes no better than their mean.

    Args:
        fidelity: its figures, from evaluation.json.
    """
    error, baseline = fidelity["outcome_mae"], fidelity["outcome_mae_baseline"]
    correlation = fidelity["outcome_spearman"]
    if None in (error, baseline, correlation):
        return True
    return error >= baseline or correlation < WEAK_CORRELATION
