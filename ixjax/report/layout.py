"""Tables and sentences about one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ixjax.report.blocks import Table
from ixjax.report.files import RunFiles


def named(several: bool, run: RunFiles, text: str) -> str:
    """Return a sentence; it names the run if there are several."""
    return f"{run.name}: {text}" if several else text


def titled(several: bool, run: RunFiles, title: str) -> str:
    """Return a title; it names the run if there are several."""
    return f"{title}, {run.name}" if several else title


def run_table(
    several: bool,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[tuple[RunFiles, Sequence[Any]]],
) -> Table:
    """Return a table of all runs' rows.

    With several runs, rows of equal name are adjacent and a column names the run.
    """
    if not several:
        return Table(caption, columns, [row for _, row in rows])
    names = list(dict.fromkeys(row[0] for _, row in rows))
    together = sorted(rows, key=lambda found: names.index(found[1][0]))
    return Table(
        caption,
        [columns[0], "run", *columns[1:]],
        [[row[0], run.name, *row[1:]] for run, row in together],
        names=2,
    )
