"""The report: all sections in order."""

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
    """Write the report of a run, or a comparison of several.

    Args:
        roots: run directories.
        to: folder to write to; default: the first run.
        limits: bounds on the data in the page.

    Returns:
        The page and the Markdown file: `report.html` and `report.md`; for several runs
        `comparison.html` and `comparison.md`.

    Raises:
        InputError: a run does not exist, or one of its files is damaged.
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
    """Return all sections."""
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
