"""The stages of a run over its directory, each resumable, and its models by name."""

from typing import Any

from ixjax.pipeline.checkpoints import Checkpoint, find_checkpoint, run_checkpoints
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.dpo import align
from ixjax.pipeline.evaluate import evaluate
from ixjax.pipeline.export import export
from ixjax.pipeline.open_run import open_run
from ixjax.pipeline.plan import Plan, PlanConfig, make_plan
from ixjax.pipeline.prepare import prepare
from ixjax.pipeline.rating import export_rating, score_ratings
from ixjax.pipeline.read_run import read_run, speakers
from ixjax.pipeline.reporter import Reporter, SilentReporter
from ixjax.pipeline.run import Run
from ixjax.pipeline.search import search
from ixjax.pipeline.settings import load, presets
from ixjax.pipeline.sft import train_speakers

__all__ = [
    "COMMANDS",
    "Checkpoint",
    "Plan",
    "PlanConfig",
    "Reporter",
    "Run",
    "RunConfig",
    "SilentReporter",
    "align",
    "evaluate",
    "export",
    "export_rating",
    "find_checkpoint",
    "load",
    "make_plan",
    "open_run",
    "prepare",
    "presets",
    "read_run",
    "run_all",
    "run_checkpoints",
    "score_ratings",
    "search",
    "speakers",
    "train_speakers",
]


COMMANDS = {
    "prepare": prepare,
    "sft": train_speakers,
    "search": search,
    "dpo": align,
    "evaluate": evaluate,
}  # each runs its stages of `ixjax.pipeline.stages`


def run_all(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Run every command in turn; finished, up-to-date stages are skipped."""
    return {name: command(run, reporter) for name, command in COMMANDS.items()}
