"""The stages of a run, chained over its directory, each resumable."""

from typing import Any

from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.dpo import align
from ixjax.pipeline.evaluate import evaluate
from ixjax.pipeline.prepare import prepare
from ixjax.pipeline.run import Reporter, Run, open_run
from ixjax.pipeline.search import search
from ixjax.pipeline.sft import train_speakers

__all__ = [
    "Reporter",
    "Run",
    "RunConfig",
    "align",
    "evaluate",
    "open_run",
    "prepare",
    "run_all",
    "search",
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
