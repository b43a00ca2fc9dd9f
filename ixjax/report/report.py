"""The report: its sections in the order in which they are read, the result first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ixjax import io
from ixjax.report.blocks import Section
from ixjax.report.cautions import cautions
from ixjax.report.cost import cost, settings
from ixjax.report.dialogues import dialogues
from ixjax.report.explorer import explorer
from ixjax.report.fidelity import fidelity
from ixjax.report.files import RunFiles, open_runs
from ixjax.report.limits import Limits
from ixjax.report.markdown import markdown
from ixjax.report.page import page
from ixjax.report.result import result
from ixjax.report.search import pairs, search
from ixjax.report.training import training

ENDS = ("html", "md")


def write_report(
    roots: Sequence[str], *, to: str = "", limits: Limits | None = None
) -> tuple[Path, Path]:
    """Write the report of a run, or of several beside each other.

    Args:
        roots: run directories.
        to: folder to write to; default: that of the first run.
        limits: how much of a large run goes into the page.

    Returns:
        The page and the Markdown file: `report.html` and `report.md`, of several runs
        `comparison.html` and `comparison.md`.

    Raises:
        InputError: there is no such run, or one of its files is damaged or another program's.
    """
    runs = open_runs(list(roots))
    sections = make_sections(runs, limits or Limits())
    title = "Comparison of runs" if len(runs) > 1 else f"Run {runs[0].name}"
    folder = Path(to or roots[0])
    paths = [folder / f"{'comparison' if len(runs) > 1 else 'report'}.{end}" for end in ENDS]
    for path, text in zip(paths, (page(title, sections), markdown(title, sections)), strict=True):
        io.write_text(path, text)
    return paths[0], paths[1]


def make_sections(runs: Sequence[RunFiles], limits: Limits) -> list[Section]:
    """All that the report says."""
    return [
        result(runs),
        cautions(runs),
        dialogues(runs, limits),
        explorer(runs, limits),
        fidelity(runs),
        search(runs),
        pairs(runs),
        training(runs),
        cost(runs),
        settings(runs),
    ]
