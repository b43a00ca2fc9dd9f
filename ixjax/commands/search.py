"""`ixjax search`: Search simulated dialogues with i×MCTS and extract preference pairs."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_search

SUMMARY = "Search simulated dialogues with i×MCTS and extract preference pairs."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Run the stage and print its summary."""
    print_search(console, pipeline.search(run, reporter))
