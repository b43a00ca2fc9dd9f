"""`ixjax evaluate`: Let every method meet every user on held-out conditions."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_evaluation

SUMMARY = "Let every method meet every user on held-out conditions."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Do the stage and print its summary."""
    print_evaluation(console, pipeline.evaluate(run, reporter))
