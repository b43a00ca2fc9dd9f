"""`ixjax report`: Write the report of a run, or compare runs."""

from __future__ import annotations

import dataclasses

import tyro
from rich.console import Console

from ixjax import pipeline
from ixjax.io import InputError
from ixjax.report import Limits, write_report

SUMMARY = "Write the report of a run, as an HTML page that opens from disk and as Markdown."


@dataclasses.dataclass(frozen=True)
class Settings:
    """The runs, and limits of the page."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run directories; several are compared."""
    out: str = ""
    """A run directory, as in other tools; the same as the first positional argument."""
    to: str = ""
    """The folder to write to; default: the first run."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """Bounds on the data in the page."""


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Write both files and print their paths."""
    roots = [*([settings.out] if settings.out else []), *settings.runs]
    if not roots:
        raise InputError("--out is missing; expected one or more run directories")
    page, text = write_report(roots, to=settings.to, limits=settings.limits)
    console.print(f"{page}  ({page.stat().st_size / 1e6:.1f} MB, opens from disk)")
    console.print(f"{text}")
