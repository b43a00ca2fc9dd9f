"""`ixjax prepare`: Read the corpus, split it without leakage, train the tokenizer."""

from __future__ import annotations

from rich.console import Console

from ixjax import pipeline
from ixjax.commands.summary import print_prepare

SUMMARY = "Read the corpus, split it without leakage, train the tokenizer."


def execute(run: pipeline.Run, reporter: pipeline.Reporter, console: Console) -> None:
    """Run the stage and print its summary."""
    print_prepare(console, pipeline.prepare(run, reporter))
