"""Search trees as columns, for the page's explorer.

A pair is matched to its responses by text, which is unique among siblings.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from ixjax.report.blocks import Block, Gap, Section, Text, Widget
from ixjax.report.files import Record, RunFiles
from ixjax.report.layout import named
from ixjax.report.limits import Limits

# (pairs in which a response was chosen, pairs in which it was rejected)
Marks = Mapping[tuple[str, int, str], tuple[int, int]]  # by condition, decision node, text


def explorer(runs: Sequence[RunFiles], limits: Limits) -> Section:
    """Return the trees of all runs, within the limits."""
    several = len(runs) > 1
    blocks: list[Block] = []
    shown: list[dict[str, Any]] = []
    for run in runs:
        if not run.has_trees:
            text = "no finished search; `ixjax search` grows the trees."
            blocks.append(Gap(named(several, run, text)))
            continue
        trees, total = _embedded(run, limits)
        shown.append({"name": run.name, "trees": trees})
        searched = (run.facts("search") or {}).get("trees", total)
        if total != searched:
            text = f"{run.directory.all_trees.name} has {total} of {searched} searched trees."
            blocks.append(Gap(named(several, run, text)))
        if len(trees) < total:
            text = f"This page shows the first {len(trees)} of {total:,} trees."
            blocks.append(Text(named(several, run, text)))
    if shown:
        blocks.append(
            Text(
                "Each row is one turn. N is the number of returns, Q their mean: the expected "
                "engagement after this turn. Responses in a pair are marked. Select a row to read "
                "the dialogue up to it."
            )
        )
        blocks.append(Widget("explorer", {"runs": shown}))
    return Section("trees", "Tree explorer", blocks)


def _embedded(run: RunFiles, limits: Limits) -> tuple[list[dict[str, Any]], int]:
    """Return the trees of the page, and the number of all trees."""
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
    """Return how many times each response was chosen and rejected."""
    chosen: collections.Counter[tuple[str, int, str]] = collections.Counter()
    rejected: collections.Counter[tuple[str, int, str]] = collections.Counter()
    for pair in pairs:
        chosen[pair["condition_id"], pair["node_id"], pair["chosen"]] += 1
        rejected[pair["condition_id"], pair["node_id"], pair["rejected"]] += 1
    return {key: (chosen[key], rejected[key]) for key in chosen | rejected}


def tree_columns(tree: Record, marks: Marks) -> dict[str, Any]:
    """Return one tree as columns.

    Returns:
        `parent`, `text`, `visits`, `value` (`[N]`, null without a return), `policy` (1 for the
        policy's turns), `cut` and `over` (ids of truncated and of terminal nodes), and `chosen` and
        `rejected` (node id -> number of pairs).
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
