"""The stages of a run, chained over its directory, each resumable; and its models by name."""

from typing import Any

from ixjax.pipeline.checkpoints import Checkpoint, find_checkpoint, run_checkpoints
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.dpo import align
from ixjax.pipeline.evaluate import evaluate
from ixjax.pipeline.export import export
from ixjax.pipeline.opening import open_run
from ixjax.pipeline.plan import Plan, PlanConfig, make_plan
from ixjax.pipeline.prepare import prepare
from ixjax.pipeline.rating import export_rating, score_ratings
from ixjax.pipeline.read_run import read_run, speakers
from ixjax.pipeline.run import Reporter, Run, SilentReporter
from ixjax.pipeline.search import search
from ixjax.pipeline.settings import load, presets
from ixjax.pipeline.sft import train_speakers

__all__ = [
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


def run_all(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Every stage in turn; what is finished and unchanged is not done again."""
    return {
        "prepare": prepare(run, reporter),
        "sft": train_speakers(run, reporter),
        "search": search(run, reporter),
        "dpo": align(run, reporter),
        "evaluate": evaluate(run, reporter),
    }
