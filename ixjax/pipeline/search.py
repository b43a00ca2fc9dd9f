"""Conditions in; finished trees and preference pairs out."""

from __future__ import annotations

import collections
import itertools
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
    extract_pairs,
    human_pairs,
)
from ixjax.search import run as run_search


def search(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Search every chosen condition, then extract pairs and draw human ones.

    Returns:
        Accounts of the trees and of the pairs.

    Raises:
        InputError: no tree gave a pair, or no outcome could be read.
    """
    trained = [run.require(f"sft/{name}", "sft")["inputs"] for name in ("policy", "simulator")]
    inputs = io.fingerprint(trained, run.config.search, run.config.sampling, run.config.readout)
    trees = _trees(run, inputs, reporter)
    pairs = _pairs(run, io.fingerprint(inputs, run.config.pairs), reporter)
    return {"trees": trees, "pairs": pairs}


def finished_trees(run: Run) -> Iterator[FinishedTree]:
    """The trees of a finished search, one at a time."""
    for shard in sorted(run.directory.trees.glob("trees-*.jsonl")):
        for record in io.read_jsonl(shard, schema=TREE_SCHEMA):
            yield FinishedTree.from_json(record)


def _trees(run: Run, inputs: str, reporter: Reporter) -> dict[str, Any]:
    with run.stage("search", inputs) as facts:
        if facts is None:
            return dict(run.require("search", "search"))
        roots = [run.root(d) for d in run.dialogues("train")][: run.config.search.conditions]
        parts = run.directory.trees / "parts"
        size = run.config.search.trees
        batches = [roots[i : i + size] for i in range(0, len(roots), size)]
        reporter.start("search", len(roots), "trees")
        missing = []
        for index, batch in enumerate(batches):
            path = parts / f"{inputs}-{index:05d}.jsonl"
            if path.exists():
                reporter.advance(len(batch))
            else:
                missing.append((path, batch))
        _search_batches(run, missing, reporter)
        done = [parts / f"{inputs}-{index:05d}.jsonl" for index in range(len(batches))]
        records = [r for path in done for r in io.read_jsonl(path, schema=TREE_SCHEMA)]
        io.write_jsonl(
            run.directory.trees / "trees-00000-of-00001.jsonl", records, schema=TREE_SCHEMA
        )
        facts.update(_account(records))
        reporter.finish(**facts)
    return dict(run.require("search", "search"))


def _search_batches(
    run: Run, missing: Sequence[tuple[Path, Sequence[Dialogue]]], reporter: Reporter
) -> None:
    """Play the batches that are not on disk yet; each is written as it finishes.

    A tree depends on its own identity alone, and what shares its batch stays the same in a
    restart, so an interrupted search ends in the same trees, bit for bit.
    """
    if not missing:
        return
    trees = run_search(
        run.speaker(run.directory.policy_sft, "policy"),
        run.speaker(run.directory.simulator, "user"),
        run.scenario,
        [root for _, batch in missing for root in batch],
        run.config.search,
        seed=run.config.seed,
    )
    for path, batch in missing:
        records = []
        for tree in itertools.islice(trees, len(batch)):
            records.append(tree.to_json())
            reporter.advance()
        io.write_jsonl(path, records, schema=TREE_SCHEMA)
        run.log("search", _account(records))
    next(trees, None)  # the search's own last word: whether any outcome could be read


def _account(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the trees' own accounts."""
    total: collections.Counter[str] = collections.Counter(trees=len(records))
    for record in records:
        total.update({k: v for k, v in record["account"].items() if isinstance(v, int)})
    return dict(total)


def _pairs(run: Run, inputs: str, reporter: Reporter) -> dict[str, Any]:
    with run.stage("pairs", inputs) as facts:
        if facts is None:
            return dict(run.require("pairs", "search"))
        found: list[PreferencePair] = []
        account: collections.Counter[str] = collections.Counter()
        for tree in finished_trees(run):
            found += extract_pairs(tree, run.config.pairs, account=account)
        dropped = +account  # without the rules that never applied
        if not found:
            raise io.InputError(
                f"{run.directory.trees}: no preference pair was found ({_why(dropped)}). Lower "
                "--pairs.min-margin or --pairs.min-visits, or search more (--search.iterations, "
                "--search.width)"
            )
        human = _human(run, len(found), reporter)
        _write(run, run.directory.pairs, found)
        _write(run, run.directory.human_pairs, human)
        io.write_jsonl(
            run.directory.pairs_trl, [p.to_trl(run.scenario) for p in found], schema=None
        )
        facts.update(imcts=len(found), human=len(human), dropped=dict(dropped))
    return dict(run.require("pairs", "search"))


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


def _why(dropped: collections.Counter[str]) -> str:
    return ", ".join(f"{rule}: {count}" for rule, count in dropped.most_common()) or "no siblings"
