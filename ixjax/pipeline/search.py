"""The search of all conditions, and the preference pairs of its trees."""

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
    """Search every chosen condition, then extract pairs and sample human ones.

    If processes share a search, each grows its slice of the trees, and process 0 does the rest.

    Returns:
        Counts of the trees and, in process 0, of the pairs.

    Raises:
        InputError: no tree has a pair, no outcome could be read, or trees of other processes are
            missing.
    """
    run.require("prepare", "sft/policy", "sft/simulator")
    found = {"trees": grow_trees(run, reporter)}
    if run.config.processes.index == 0:
        found["pairs"] = take_pairs(run, finished_trees(run), reporter)
    return found


def finished_trees(run: Run) -> Iterator[FinishedTree]:
    """Yield the trees of a finished search."""
    for record in io.read_jsonl(run.directory.all_trees, schema=TREE_SCHEMA):
        yield FinishedTree.from_json(record)
