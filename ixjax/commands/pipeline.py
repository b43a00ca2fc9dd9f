"""`ixjax pipeline`: All stages in turn, from the corpus to the comparison."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands import dpo, evaluate, prepare, search, sft

SUMMARY = "All stages in turn, from the corpus to the comparison."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Do every stage and print its summary; what is finished is not done again."""
    for stage in (prepare, sft, search, dpo, evaluate):
        stage.execute(run, reporter, console)
