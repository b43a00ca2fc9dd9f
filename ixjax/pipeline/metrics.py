"""Metrics for TensorBoard and Weights & Biases, in addition to metrics.jsonl.

Both are extras of the package, imported only if a run uses them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ixjax import io

TENSORBOARD, WANDB = "tensorboard", "wandb"  # folders of a run directory
FLUSH_SECONDS = 1  # between writes of TensorBoard's events
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by setting and extra


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """Destinations of metrics besides metrics.jsonl."""

    tensorboard: bool = False
    """Write TensorBoard events to RUN/tensorboard (pip install 'ixjax[tensorboard]')."""
    wandb: str = ""
    """Log to this project of Weights & Biases (pip install 'ixjax[wandb]'); empty: none."""


class Sink(Protocol):
    """A destination of metrics."""

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Record the numbers of one report; writing may be delayed."""
        ...


def check_packages(config: MetricsConfig) -> None:
    """Raise for a sink without its package.

    Raises:
        InputError: names the package and the extra that brings it.
    """
    for setting, package in PACKAGES.items():
        if getattr(config, setting) and importlib.util.find_spec(package) is None:
            raise io.InputError(
                f"metrics.{setting}: the package {package} is not installed; "
                f"pip install 'ixjax[{setting}]', or leave --metrics.{setting} out"
            )


def open_sinks(
    config: MetricsConfig, directory: io.RunDirectory, settings: Mapping[str, Any]
) -> list[Sink]:
    """Return the sinks of a run.

    Args:
        config: names them.
        directory: of the run.
        settings: of the run, shown with its curves.

    Raises:
        InputError: see `check_packages`; or Weights & Biases can't be reached or logged in to.
    """
    check_packages(config)
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(directory.root / TENSORBOARD))
    if config.wandb:
        sinks.append(WeightsAndBiases(config.wandb, directory.root, settings))
    return sinks


class TensorBoard:
    """TensorBoard events; a curve is named STAGE/METRIC.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: Path):
        tensorboard: Any = importlib.import_module(PACKAGES["tensorboard"])
        self._writer = tensorboard.SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        self._reports: Counter[str] = Counter()

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """See `Sink`; a report without a step gets the number of earlier reports."""
        step = metrics.get("step", self._reports[stage])
        self._reports[stage] += 1
        for name, value in numbers(metrics):
            self._writer.add_scalar(f"{stage}/{name}", value, step)


class WeightsAndBiases:
    """One W&B run per run directory, continued when the run is.

    Args:
        project: its name.
        root: the run directory; local files are in its folder `wandb`.
        settings: of the run.

    Raises:
        InputError: the run can't be opened.
    """

    def __init__(self, project: str, root: Path, settings: Mapping[str, Any]):
        wandb: Any = importlib.import_module(PACKAGES["wandb"])
        try:
            self._run = wandb.init(
                project=project,
                dir=root,
                name=root.name,
                id=_run_id(root / WANDB / "run_id"),
                resume="allow",
                config=dict(settings),
                settings=wandb.Settings(console="off"),  # the terminal shows the progress bar
            )
        except wandb.Error as error:
            raise io.InputError(
                f"metrics.wandb: {str(error).rstrip('.')}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._stages: set[str] = set()

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """See `Sink`; every stage counts its own steps."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/{name}": value for name, value in numbers(metrics)})


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a report, nested ones as `engine/occupancy`."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _run_id(path: Path) -> str:
    """Return the W&B id of a run directory, drawn once: names of directories are not unique."""
    if not path.exists():
        io.write_text(path, uuid.uuid4().hex[:12])
    return io.read_text(path).strip()
