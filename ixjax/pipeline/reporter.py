"""Progress of a stage, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Reporter(Protocol):
    """Receives the progress of a stage; `ixjax.commands.progress` draws it."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begin work of `total` units."""
        ...

    def advance(self, count: int = 1, *, earlier: int = 0, **metrics: float) -> None:
        """Count finished units.

        Args:
            count: units finished since the last call.
            earlier: units that earlier starts of the stage finished; the speed excludes them.
            metrics: the latest figures.
        """
        ...

    def finish(self, **facts: Any) -> None:
        """End the work."""
        ...

    def note(self, text: str) -> None:
        """Show a line."""
        ...


class SilentReporter:
    """A `Reporter` for programs that show no progress."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """See `Reporter`."""

    def advance(self, count: int = 1, *, earlier: int = 0, **metrics: float) -> None:
        """See `Reporter`."""

    def finish(self, **facts: Any) -> None:
        """See `Reporter`."""

    def note(self, text: str) -> None:
        """See `Reporter`."""


def report_step(
    reporter: Reporter, what: str, metrics: dict[str, Any], *, shown: Sequence[str]
) -> None:
    """Report a training step, and once that an interrupted training continues.

    Args:
        reporter: receives it.
        what: the training.
        metrics: as the trainer reports them; `resumed_at` is removed.
        shown: names of the metrics to show.
    """
    earlier = metrics.pop("resumed_at", 0)
    if earlier:
        reporter.note(f"{what}: continued after step {earlier} of {metrics['steps']}")
    figures = {name: metrics[name] for name in shown if metrics.get(name) is not None}
    reporter.advance(metrics["steps_since"] - earlier, earlier=earlier, **figures)
