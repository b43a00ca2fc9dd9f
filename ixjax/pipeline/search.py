"""Conditions in; finished trees and preference pairs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ixjax import io
from ixjax.pipeline.pairs import take_pairs
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import Run
from ixjax.pipeline.trees import grow_trees
from ixjax.search import TREE_SCHEMA, FinishedTree


def search(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Search every chosen condition, then extract pairs and draw human ones.

    Where processes share a search, all but process 0 search their slice alone.

    Returns:
        Accounts of the trees and, of process 0, of the pairs.

    Raises:
        InputError: no tree gave a pair, no outcome could be read, or trees of other processes do
            not come.
    """
    run.require("prepare", "sft/policy", "sft/simulator")
    found = {"trees": grow_trees(run, reporter)}
    if run.config.processes.index == 0:
        found["pairs"] = take_pairs(run, finished_trees(run), reporter)
    return found


def finished_trees(run: Run) -> Iterator[FinishedTree]:
    """The trees of a finished search, one at a time."""
    for record in io.read_jsonl(run.directory.all_trees, schema=TREE_SCHEMA):
        yield FinishedTree.from_json(record)
