"""Preference pairs of finished trees, in our format and those of other trainers."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import Run
from ixjax.search import (
    PAIR_RULES,
    PAIRS_SCHEMA,
    RESPONSE_RULES,
    FinishedTree,
    PairsConfig,
    PreferencePair,
    balance_depths,
    extract_pairs,
    human_pairs,
    llama_factory_info,
)

LLAMA_FACTORY_DATASET = "ixjax_pairs"


def take_pairs(run: Run, trees: Iterable[FinishedTree], reporter: Reporter) -> dict[str, Any]:
    """Extract the pairs of `trees`, sample human ones, and write both.

    Returns:
        Counts of considered, kept and dropped pairs, by rule.

    Raises:
        InputError: no tree gave a pair.
    """
    config = run.config.pairs
    with run.stage("pairs") as facts:
        if facts is None:
            return run.facts("pairs")
        account: Counter[str] = Counter()
        found, nearly = [], _Nearly(config)
        for tree in trees:
            found += extract_pairs(tree, config, account=account)
            if not found:
                nearly.add(tree)
        found = balance_depths(found, config, account=account)
        if not found:
            raise io.InputError(
                f"{run.directory.trees}: no preference pair was found ({_why(account)}); expected "
                f"one or more. {_advice(account, config, nearly)}, or search more "
                "(--search.iterations, --search.width)."
            )
        # One per tree pair, for the policy on human pairs, or more if the mix needs more.
        count = math.ceil(max(1.0, config.human_pair_ratio) * len(found))
        human, human_account = _human(run, count, reporter)
        _write(run, found, human)
        dropped = _counts(account, PAIR_RULES)
        facts.update(
            considered=len(found) + sum(dropped.values()),
            imcts=len(found),
            dropped=dropped,
            left_out=_counts(account, RESPONSE_RULES),
            human=len(human),
            human_dropped=dict(human_account),
        )
    return run.facts("pairs")


def _human(run: Run, count: int, reporter: Reporter) -> tuple[list[PreferencePair], Counter[str]]:
    """Return pairs at `count` human turns, and counts of turns without a pair by reason."""
    reporter.start("human pairs", count, "pairs")
    found: list[PreferencePair] = []
    account: Counter[str] = Counter()
    for pair in human_pairs(
        run.speaker(run.directory.policy_sft, "policy"),
        run.dialogues("train"),
        count=count,
        batch=run.config.evaluation.batch,
        seed=run.config.seed,
    ):
        if pair is None:
            account["equal_or_silent"] += 1
        elif run.config.pairs.too_similar(pair.chosen, pair.rejected):
            account["near_duplicate"] += 1
        else:
            found.append(pair)
        reporter.advance(pairs=len(found))
    reporter.finish(pairs=len(found))
    return found, account


def _write(run: Run, found: Sequence[PreferencePair], human: Sequence[PreferencePair]) -> None:
    directory, scenario = run.directory, run.scenario
    _write_ours(directory.pairs, found)
    _write_ours(directory.human_pairs, human)
    io.write_jsonl(directory.pairs_trl, [pair.to_trl(scenario) for pair in found], schema=None)
    folder, name = directory.pairs_llama_factory, directory.pairs.name
    io.write_jsonl(folder / name, [pair.to_llama_factory(scenario) for pair in found], schema=None)
    io.write_json(folder / "dataset_info.json", llama_factory_info(LLAMA_FACTORY_DATASET, name))


def _write_ours(path: Path, pairs: Sequence[PreferencePair]) -> None:
    io.write_jsonl(path, [pair.to_json() for pair in pairs], schema=PAIRS_SCHEMA)


def _counts(account: Counter[str], rules: Sequence[str]) -> dict[str, int]:
    """Return the rules that applied, with their counts."""
    return {rule: account[rule] for rule in rules if account[rule]}


class _Nearly:
    """Pairs that a smaller `min_margin` would keep.

    Attributes:
        widest: the largest margin of a pair that all other rules keep.
        account: number of pairs that each of them drops.
    """

    def __init__(self, config: PairsConfig):
        self._any_margin = dataclasses.replace(config, min_margin=0.0)
        self.widest, self.account = 0.0, Counter[str]()

    def add(self, tree: FinishedTree) -> None:
        """Add the pairs of a tree."""
        pairs = extract_pairs(tree, self._any_margin, account=self.account)
        self.widest = max([self.widest, *(pair.margin for pair in pairs)])


def _advice(account: Counter[str], config: PairsConfig, nearly: _Nearly) -> str:
    """Return the change of settings that would keep most of the dropped pairs.

    Args:
        account: number of pairs that each rule dropped.
        config: the rules.
        nearly: pairs of any margin; if there are none, another rule dropped them.
    """
    blamed = account if nearly.widest else nearly.account
    return {
        "truncated": "Allow longer turns (--sampling.max-new-tokens), or --pairs.keep-truncated",
        "few_visits": "Lower --pairs.min-visits",
        "small_margin": f"Lower --pairs.min-margin ({config.min_margin:g}): the largest margin "
        f"of a pair that the other rules keep was {nearly.widest:.3g}",
        "near_duplicate": "Raise --pairs.max-similarity",
    }.get(max(+blamed, key=blamed.__getitem__, default=""), "Train the speakers longer")


def _why(account: Counter[str]) -> str:
    return ", ".join(f"{rule}: {n}" for rule, n in (+account).most_common()) or "no siblings"
