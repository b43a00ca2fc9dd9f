"""The trees as the page's explorer reads them: columns instead of records, and a bound on them.

Which responses became pairs is found by their text below the pair's decision node: siblings of a
tree never have the same one.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from ixjax.report.blocks import Block, Gap, Section, Text, Widget
from ixjax.report.files import Record, RunFiles
from ixjax.report.layout import named
from ixjax.report.limits import Limits

# What is counted of a response: the pairs in which it was chosen, and those where it was rejected.
Marks = Mapping[tuple[str, int, str], tuple[int, int]]  # by condition, decision node, text


def explorer(runs: Sequence[RunFiles], limits: Limits) -> Section:
    """The trees of all runs, as far as the limits let them in."""
    several = len(runs) > 1
    blocks: list[Block] = []
    shown: list[dict[str, Any]] = []
    for run in runs:
        if not run.has_trees:
            text = "no whole search; `ixjax search` grows the trees."
            blocks.append(Gap(named(several, run, text)))
            continue
        trees, total = _embedded(run, limits)
        shown.append({"name": run.name, "trees": trees})
        searched = (run.facts("search") or {}).get("trees", total)
        if total != searched:
            text = f"{run.directory.all_trees.name} has {total} trees of the {searched} searched."
            blocks.append(Gap(named(several, run, text)))
        if len(trees) < total:
            text = f"{len(trees)} of {total:,} trees are in this page, the first of the search."
            blocks.append(Text(named(several, run, text)))
    if shown:
        blocks.append(
            Text(
                "Each row is what one side said: N counts the returns that arrived, Q is their "
                "mean, the engagement to expect from there. Responses that became a pair are "
                "marked. Choose a row to read the dialogue up to it."
            )
        )
        blocks.append(Widget("explorer", {"runs": shown}))
    return Section("trees", "Tree explorer", blocks)


def _embedded(run: RunFiles, limits: Limits) -> tuple[list[dict[str, Any]], int]:
    """The trees that go into the page, and how many there are."""
    marks, kept, nodes, total = pair_marks(run.pairs or []), [], 0, 0
    full = False
    for tree in run.trees():
        total += 1
        nodes += len(tree["nodes"])
        full = full or len(kept) >= limits.trees or (nodes > limits.nodes and bool(kept))
        if not full:
            kept.append(tree_columns(tree, marks))
    return kept, total


def pair_marks(pairs: Sequence[Record]) -> Marks:
    """How often each response was chosen and rejected."""
    chosen: collections.Counter[tuple[str, int, str]] = collections.Counter()
    rejected: collections.Counter[tuple[str, int, str]] = collections.Counter()
    for pair in pairs:
        chosen[pair["condition_id"], pair["node_id"], pair["chosen"]] += 1
        rejected[pair["condition_id"], pair["node_id"], pair["rejected"]] += 1
    return {key: (chosen[key], rejected[key]) for key in chosen | rejected}


def tree_columns(tree: Record, marks: Marks) -> dict[str, Any]:
    """One tree as the explorer reads it.

    Returns:
        `parent`, `text`, `visits`, `value` (`[N]`, null without a return), `policy` (whether the
        policy said it), `cut` and `over` (ids of truncated and of last nodes), and `chosen` and
        `rejected` (node id -> in how many pairs).
    """
    nodes, condition = tree["nodes"], tree["condition_id"]
    chosen, rejected = {}, {}
    for node in nodes:
        wins, losses = marks.get((condition, node["parent"], node["text"]), (0, 0))
        if wins:
            chosen[node["id"]] = wins
        if losses:
            rejected[node["id"]] = losses
    return {
        "id": condition,
        "condition": tree["root"]["condition"],
        "turns": [[turn["role"], turn["text"]] for turn in tree["root"]["turns"]],
        "parent": [node["parent"] for node in nodes],
        "text": [node["text"] for node in nodes],
        "visits": [node["visits"] for node in nodes],
        "value": [_mean(node) for node in nodes],
        "policy": [int(node["kind"] == "response") for node in nodes],
        "cut": [node["id"] for node in nodes if node["truncated"]],
        "over": [node["id"] for node in nodes if node["terminal"]],
        "chosen": chosen,
        "rejected": rejected,
    }


def _mean(node: Record) -> float | None:
    return round(node["value_sum"] / node["visits"], 4) if node["visits"] else None
