"""`ixjax pipeline`: All stages in turn, from the corpus to the comparison."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands import dpo, evaluate, prepare, search, sft
from ixjax.io import InputError

SUMMARY = "All stages in turn, from the corpus to the comparison."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Do every stage and print its summary; what is finished is not done again.

    Raises:
        InputError: several processes are to share it.
    """
    if run.config.processes.count > 1:
        raise InputError(
            f"processes.count is {run.config.processes.count}; processes share `ixjax search` "
            "alone: run the stages one by one, the others in one process"
        )
    for stage in (prepare, sft, search, dpo, evaluate):
        stage.execute(run, reporter, console)
