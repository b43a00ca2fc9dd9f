"""Tables of one run or of several: with several, each row begins with the run's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ixjax.report.files import RunFiles


def run_column(several: bool, columns: Sequence[str]) -> list[str]:
    """The columns, `run` before them where there are several."""
    return ["run", *columns] if several else list(columns)


def run_row(several: bool, run: RunFiles, row: Sequence[Any]) -> list[Any]:
    """The row, the run's name before it where there are several."""
    return [run.name, *row] if several else list(row)


def named(several: bool, run: RunFiles, text: str) -> str:
    """A sentence about a run, which is named where there are several."""
    return f"{run.name}: {text}" if several else text
