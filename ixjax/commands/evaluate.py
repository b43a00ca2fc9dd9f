"""`ixjax evaluate`: Play every method with every user on held-out conditions."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_evaluation

SUMMARY = "Play every method with every user on held-out conditions."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Run the stage and print its summary."""
    print_evaluation(console, pipeline.evaluate(run, reporter))
