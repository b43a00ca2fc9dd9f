"""`ixjax dpo`: Align the policy on human pairs, on i×MCTS pairs and on both."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_dpo

SUMMARY = "Align the policy on human pairs, on i×MCTS pairs and on both."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Run the stage and print its summary."""
    print_dpo(console, pipeline.align(run, reporter))
