"""Tables and sentences about one run, or about several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ixjax.report.blocks import Table
from ixjax.report.files import RunFiles


def named(several: bool, run: RunFiles, text: str) -> str:
    """A sentence about a run, which is named where there are several."""
    return f"{run.name}: {text}" if several else text


def titled(several: bool, run: RunFiles, title: str) -> str:
    """A title of something of a run, which is named where there are several."""
    return f"{title}, {run.name}" if several else title


def run_table(
    several: bool,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[tuple[RunFiles, Sequence[Any]]],
) -> Table:
    """A table of rows that any of the runs has.

    Where there are several, rows of one name stand together, and say whose they are.
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
