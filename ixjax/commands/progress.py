"""Progress of a stage: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

LINE_SECONDS = 10.0  # between lines without a terminal


class ProgressReporter:
    """An `ixjax.pipeline.Reporter` that draws on a console.

    Args:
        console: where to draw.
        quiet: draw nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False):
        self._console = Console(quiet=True) if quiet else console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage, self._unit, self._total = "", "", None
        self._count, self._earlier = 0, 0
        self._started, self._last_line = 0.0, 0.0

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """See `ixjax.pipeline.Reporter`."""
        self.close()
        self._stage, self._unit, self._total = stage, unit, total
        self._count, self._earlier, self._started = 0, 0, time.monotonic()
        self._last_line = self._started
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<22}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}{task.fields[left]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, rate="", left="", figures="")

    def advance(self, count: int = 1, *, earlier: int = 0, **metrics: float) -> None:
        """See `ixjax.pipeline.Reporter`."""
        self._count += count
        self._earlier += earlier
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                advance=count + earlier,
                rate=self._rate(),
                left=self._left(),
                figures=_figures(metrics),
            )
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            of = f"/{self._total}" if self._total else ""
            self._console.print(
                f"{self._stage}: {self._earlier + self._count}{of} {self._unit}, {self._rate()}"
                f"{self._left()}  {_figures(metrics)}",
                highlight=False,
                markup=False,
            )

    def finish(self, **facts: Any) -> None:
        """See `ixjax.pipeline.Reporter`."""
        self.close()
        seconds = time.monotonic() - self._started
        shown = {name: value for name, value in facts.items() if isinstance(value, (int, float))}
        self._console.print(
            f"{self._stage:<22} {seconds:6.1f} s  {_figures(shown)}", highlight=False, markup=False
        )

    def note(self, text: str) -> None:
        """See `ixjax.pipeline.Reporter`."""
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self._count / seconds:.2g} {self._unit}/s"

    def _left(self) -> str:
        if not self._total or not self._count:
            return ""
        missing = max(0, self._total - self._earlier - self._count)
        seconds = (time.monotonic() - self._started) * missing / self._count
        return f", {_span(seconds)} left"


def _span(seconds: float) -> str:
    """Return seconds in a readable unit."""
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _figures(metrics: dict[str, Any]) -> str:
    known = {name: value for name, value in metrics.items() if value is not None}
    return "  ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
        for name, value in known.items()
    )
