"""`ixjax report`: Write what a run came to as one page, or compare runs."""

from __future__ import annotations

import dataclasses

import tyro
from rich.console import Console

from ixjax import pipeline
from ixjax.io import InputError
from ixjax.report import Limits, write_report

SUMMARY = "Write what a run came to as one page that opens from disk, and as Markdown."


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which runs, and how much of them."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run directories; several are compared."""
    out: str = ""
    """A run directory, as other tools take it: the same as naming it first."""
    to: str = ""
    """The folder to write to; default: that of the first run."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """How much of a large run goes into the page."""


def execute(settings: Settings, run: pipeline.Run | None, console: Console) -> None:
    """Write both files and say where they are."""
    roots = [*([settings.out] if settings.out else []), *settings.runs]
    if not roots:
        raise InputError("no run directory given; name one or more, or set --out RUN")
    page, text = write_report(roots, to=settings.to, limits=settings.limits)
    console.print(f"{page}  ({page.stat().st_size / 1e6:.1f} MB, opens from disk)")
    console.print(f"{text}")
