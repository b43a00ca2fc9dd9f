"""`ixjax pipeline`: Run all stages in order, from the corpus to the comparison."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands import dpo, evaluate, prepare, search, sft
from ixjax.io import InputError

SUMMARY = "Run all stages in order, from the corpus to the comparison."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Run every stage that is not finished and print its summary.

    Raises:
        InputError: several processes should share the pipeline.
    """
    if run.config.processes.count > 1:
        raise InputError(
            f"processes.count is {run.config.processes.count}; expected 1 for the pipeline: only "
            "`ixjax search` can be shared. Run the stages one by one"
        )
    for stage in (prepare, sft, search, dpo, evaluate):
        stage.execute(run, reporter, console)
