"""`ixjax sft`: Train policy, simulator and held-out simulator on the human dialogues."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_sft

SUMMARY = "Train policy, simulator and held-out simulator on the human dialogues."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Run the stage and print its summary."""
    print_sft(console, pipeline.train_speakers(run, reporter))
