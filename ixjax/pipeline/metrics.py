"""Where metrics go beside metrics.jsonl: TensorBoard's event files, Weights & Biases.

Both are extras of the package, and are imported only where a run asks for them.
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
FLUSH_SECONDS = 1  # between writes of TensorBoard's events; a curve is looked at while it grows
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by setting and extra


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """Where metrics go beside metrics.jsonl."""

    tensorboard: bool = False
    """Write them to RUN/tensorboard (pip install 'ixjax[tensorboard]')."""
    wandb: str = ""
    """Log to this project of Weights & Biases (pip install 'ixjax[wandb]'); empty: do not."""


class Sink(Protocol):
    """Takes the metrics that a stage reports."""

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Keep the numbers of one report; they are on disk a little later, or when all ends."""
        ...


def check_packages(config: MetricsConfig) -> None:
    """Refuse a sink whose package is missing, before there is anything to log.

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
    """The sinks that a run asks for.

    Args:
        config: which.
        directory: of the run.
        settings: of the run, to be shown beside its curves.

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
    """Event files; a curve is called STAGE/METRIC.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path):
        tensorboard: Any = importlib.import_module(PACKAGES["tensorboard"])
        self._writer = tensorboard.SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        self._reports: Counter[str] = Counter()

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """See `Sink`; a report without a step is counted."""
        step = metrics.get("step", self._reports[stage])
        self._reports[stage] += 1
        for name, value in numbers(metrics):
            self._writer.add_scalar(f"{stage}/{name}", value, step)


class WeightsAndBiases:
    """One run of a project for each run directory; it goes on where the directory does.

    Args:
        project: its name.
        root: the run directory; what is kept on this machine lies in its folder `wandb`.
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
                settings=wandb.Settings(console="off"),  # the terminal is the progress bar's
            )
        except wandb.Error as error:
            raise io.InputError(
                f"metrics.wandb: {str(error).rstrip('.')}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._stages: set[str] = set()

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """See `Sink`; every stage has steps of its own."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/{name}": value for name, value in numbers(metrics)})


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a report, those of a part under the part's name: `engine/occupancy`."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _run_id(path: Path) -> str:
    """The name of the directory's run there, drawn once: two directories may be called alike."""
    if not path.exists():
        io.write_text(path, uuid.uuid4().hex[:12])
    return io.read_text(path).strip()
