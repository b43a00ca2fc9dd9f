"""Conditions in; finished trees and preference pairs out."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.dialogue.types import Dialogue
from ixjax.pipeline.run import Reporter, Run
from ixjax.search import (
    PAIRS_SCHEMA,
    TREE_SCHEMA,
    FinishedTree,
    PreferencePair,
    check_readable,
    extract_pairs,
    human_pairs,
    warm_up,
)
from ixjax.search import run as run_search


def search(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Search every chosen condition, then extract pairs and draw human ones.

    Returns:
        Accounts of the trees and of the pairs.

    Raises:
        InputError: no tree gave a pair, or no outcome could be read.
    """
    run.require("prepare", "sft/policy", "sft/simulator")
    return {"trees": _trees(run, reporter), "pairs": _pairs(run, reporter)}


def finished_trees(run: Run) -> Iterator[FinishedTree]:
    """The trees of a finished search, one at a time."""
    for shard in sorted(run.directory.trees.glob("trees-*.jsonl")):
        for record in io.read_jsonl(shard, schema=TREE_SCHEMA):
            yield FinishedTree.from_json(record)


def _trees(run: Run, reporter: Reporter) -> dict[str, Any]:
    with run.stage("search") as facts:
        if facts is None:
            return run.facts("search")
        roots = run.roots("train")[: run.config.search.conditions]
        reporter.start("search", len(roots), "trees")
        parts = run.directory.trees / "parts" / run.inputs("search")
        found = _read_parts(parts)
        reporter.advance(sum(root.condition.id in found for root in roots))
        missing = [root for root in roots if root.condition.id not in found]
        found |= _search_batches(run, missing, parts, reporter)
        records = [found[root.condition.id] for root in roots]
        account = _account(records)
        check_readable(account["simulations"], account["unreadable"], run.scenario)
        io.write_jsonl(
            run.directory.trees / "trees-00000-of-00001.jsonl", records, schema=TREE_SCHEMA
        )
        facts.update(account)
        reporter.finish(**facts)
    return run.facts("search")


def _read_parts(parts: Path) -> dict[str, dict[str, Any]]:
    """The trees that an interrupted search has left, by the id of their condition."""
    records = [
        r for p in sorted(parts.glob("*.jsonl")) for r in io.read_jsonl(p, schema=TREE_SCHEMA)
    ]
    return {record["condition_id"]: record for record in records}


def _search_batches(
    run: Run, roots: Sequence[Dialogue], parts: Path, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """Search `roots`, as many at once as the configuration says; write each batch as it finishes.

    A tree depends on its own identity alone, so an interrupted search ends in the same trees.
    """
    if not roots:
        return {}
    policy = run.speaker(run.directory.policy_sft, "policy")
    simulator = run.speaker(run.directory.simulator, "user")
    reporter.note(f"search: {policy.engine}")
    trees = run_search(
        policy,
        simulator,
        run.scenario,
        roots,
        run.config.search,
        seed=run.config.seed,
    )
    found: dict[str, dict[str, Any]] = {}
    size = run.config.search.trees
    warmed = functools.partial(warm_up, policy, simulator, roots, run.config.search)
    with run.engine_at_work("search", reporter, warmed):
        for count in [size] * (len(roots) // size) + [len(roots) % size]:
            records = []
            for tree in itertools.islice(trees, count):
                records.append(tree.to_json())
                reporter.advance()
            if records:
                name = io.fingerprint(records[0]["condition_id"])
                io.write_jsonl(parts / f"{name}.jsonl", records, schema=TREE_SCHEMA)
                run.log("search", _account(records))
                found |= {record["condition_id"]: record for record in records}
    dropped = policy.dropped_turns + simulator.dropped_turns
    if dropped:
        reporter.note(
            f"search: {dropped:,} oldest turns found no room in contexts of "
            f"{run.config.model.max_length} tokens (model.max_length)"
        )
    return found


def _account(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the trees' own accounts."""
    total: collections.Counter[str] = collections.Counter(trees=len(records))
    for record in records:
        total.update({k: v for k, v in record["account"].items() if isinstance(v, int)})
    return dict(total)


def _pairs(run: Run, reporter: Reporter) -> dict[str, Any]:
    config = run.config.pairs
    with run.stage("pairs") as facts:
        if facts is None:
            return run.facts("pairs")
        found: list[PreferencePair] = []
        account: collections.Counter[str] = collections.Counter()
        for tree in finished_trees(run):
            found += extract_pairs(tree, config, account=account)
        dropped = +account  # without the rules that never applied
        if not found:
            raise io.InputError(
                f"{run.directory.trees}: no preference pair was found ({_why(dropped)}). "
                f"{_advice(dropped)}; or search more (--search.iterations, --search.width)"
            )
        # As many as the tree pairs, for the policy that learns from them alone, or as the mix asks.
        human = _human(run, math.ceil(max(1.0, config.human_pair_ratio) * len(found)), reporter)
        _write(run, run.directory.pairs, found)
        _write(run, run.directory.human_pairs, human)
        io.write_jsonl(
            run.directory.pairs_trl, [p.to_trl(run.scenario) for p in found], schema=None
        )
        facts.update(imcts=len(found), human=len(human), dropped=dict(dropped))
    return run.facts("pairs")


def _human(run: Run, count: int, reporter: Reporter) -> list[PreferencePair]:
    reporter.start("human pairs", count, "pairs")
    found = []
    for pair in human_pairs(
        run.speaker(run.directory.policy_sft, "policy"),
        run.dialogues("train"),
        count=count,
        batch=run.config.evaluation.batch,
        seed=run.config.seed,
    ):
        found += [pair] if pair is not None else []
        reporter.advance()
    reporter.finish(pairs=len(found))
    return found


def _write(run: Run, path: Path, pairs: Sequence[PreferencePair]) -> None:
    io.write_jsonl(path, [pair.to_json() for pair in pairs], schema=PAIRS_SCHEMA)


def _advice(dropped: collections.Counter[str]) -> str:
    """What would let in most of the pairs that were dropped."""
    return {
        "truncated": "Allow longer turns (--sampling.max-new-tokens), or --pairs.keep-truncated",
        "few_visits": "Lower --pairs.min-visits",
        "small_margin": "Lower --pairs.min-margin",
    }.get(max(dropped, key=dropped.__getitem__, default=""), "Train the speakers longer")


def _why(dropped: collections.Counter[str]) -> str:
    return ", ".join(f"{rule}: {count}" for rule, count in dropped.most_common()) or "no siblings"
