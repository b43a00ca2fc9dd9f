"""Finished trees on disk, during a search and after it.

Each process adds files of trees of its slice to `trees/parts/`, by atomic rename. A tree depends on
its own identity only: an interrupted search that continues in any number of processes gives the
same trees. Process 0 writes all of them in the order of the conditions.
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.dialogue.types import Dialogue
from ixjax.generation import EngineStats
from ixjax.pipeline.engine_work import engine_at_work
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import Run
from ixjax.search import (
    TREE_SCHEMA,
    FinishedTree,
    SearchStats,
    check_readable,
    grow,
    searchable,
    warm_up,
)

# Least time between two files. A killed process loses the trees finished since the last file, and
# those in progress.
FLUSH_SECONDS = 10.0
POLL_SECONDS = 1.0


def grow_trees(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Search all conditions, or this process's slice of them, and return counts of the trees.

    Raises:
        InputError: no outcome could be read, or trees of other processes are missing.
    """
    processes = run.config.processes
    if processes.index:
        return _grow_slice(run, reporter)
    with run.stage("search") as facts:
        if facts is None:
            return run.facts("search")
        _grow_slice(run, reporter)
        roots = _roots(run)
        written = _wait_for_all(run, reporter, [root.condition.id for root in roots])
        account = _put_together(run, roots, written)
        # Checked for all trees: the rest of an interrupted slice may have no readable outcome.
        check_readable(account["simulations"], account["unreadable"], run.scenario)
        facts.update(account)
        reporter.finish(**account)
    return run.facts("search")


def _roots(run: Run) -> list[Dialogue]:
    return searchable(run.roots("train")[: run.config.search.conditions], run.scenario)


class _Parts:
    """The trees that all processes have written; a file never changes once it exists."""

    def __init__(self, run: Run):
        self.folder = run.directory.trees / "parts" / run.inputs("search")
        self.written: dict[str, tuple[Path, int]] = {}  # by condition: file and index in it
        self._seen: set[Path] = set()

    def look(self) -> Mapping[str, tuple[Path, int]]:
        """Return the present file and index of each condition's tree."""
        for path in sorted(set(self.folder.glob("*.jsonl")) - self._seen):
            names = [record["condition_id"] for record in _read(path)]
            self.written |= {name: (path, i) for i, name in enumerate(names)}
            self._seen.add(path)
        return self.written

    def add(self, process: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write trees to a file named by their conditions, so that no other trees replace it."""
        names = [record["condition_id"] for record in records]
        path = self.folder / f"{process:05d}-{io.fingerprint(names)}.jsonl"
        io.write_jsonl(path, records, schema=TREE_SCHEMA)


def _grow_slice(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Search this process's conditions that have no tree yet; return counts of the new trees."""
    processes, parts = run.config.processes, _Parts(run)
    mine = _roots(run)[processes.index :: processes.count]
    there = parts.look()
    missing = [root for root in mine if root.condition.id not in there]
    reporter.start("search", len(mine), "trees")
    reporter.advance(0, earlier=len(mine) - len(missing))
    total = collections.Counter(_account([]))
    for records in _search(run, missing, reporter):
        parts.add(processes.index, records)
        account = _account(records)
        run.log("search", account)
        total.update(account)
    total = _with_rate(total)
    if processes.index:
        reporter.finish(**total)
    return total


def _search(
    run: Run, roots: Sequence[Dialogue], reporter: Reporter
) -> Iterator[list[dict[str, Any]]]:
    """Yield lists of records of finished trees."""
    if not roots:
        return
    policy = run.speaker(run.directory.policy_sft, "policy")
    simulator = run.speaker(run.directory.simulator, "user")
    reporter.note(f"search: {policy.engine}")
    config, time_spent = run.config.search, SearchStats()
    trees = grow(
        policy,
        simulator,
        run.scenario,
        roots,
        config,
        seed=run.config.seed,
        stats=time_spent,
        in_order=False,
    )
    warmed = functools.partial(warm_up, policy, simulator, roots, config)
    with engine_at_work(run, "search", reporter, warmed):
        records, flushed = [], time.monotonic()
        forecast = _Forecast(len(roots), config.trees, reporter, run.engine_stats)
        for tree in trees:
            records.append(tree.to_json())
            reporter.advance(nodes=len(tree.nodes), root_value=tree.nodes[0].value)
            forecast.note(_tokens(tree.account))
            if time.monotonic() - flushed > FLUSH_SECONDS or len(records) >= config.trees:
                yield records
                records, flushed = [], time.monotonic()
        if records:
            yield records
    forecast.end()
    run.log("search", {"time": time_spent.report()})
    reporter.note(f"search: {time_spent}")
    dropped = policy.dropped_turns + simulator.dropped_turns
    if dropped:
        reporter.note(
            f"search: dropped {dropped:,} oldest turns that exceed {run.config.model.max_length} "
            "tokens of a context (model.max_length)"
        )


class _Forecast:
    """Forecast of a search's tokens and time, noted after its first trees; at its end the result.

    Time is extrapolated by the tokens of all trees, including unfinished ones.

    Args:
        trees: number of trees to search.
        first: number of trees after which the forecast is noted.
        reporter: receives the notes.
        stats: of the engines that the search runs on.
    """

    def __init__(self, trees: int, first: int, reporter: Reporter, stats: EngineStats):
        self._trees, self._first, self._reporter = trees, first, reporter
        self._stats, self._before = stats, stats.decode_tokens
        self._done, self._tokens, self._forecast = 0, 0, ""
        self._started = time.monotonic()

    def note(self, tokens: int) -> None:
        """Count a finished tree and its tokens."""
        self._done, self._tokens = self._done + 1, self._tokens + tokens
        if self._done == self._first < self._trees:
            expected = self._tokens * self._trees / self._done
            sampled = max(self._stats.decode_tokens - self._before, 1)
            self._forecast = _cost(expected, self._seconds * expected / sampled)
            self._reporter.note(
                f"search: after {self._done} of {self._trees} trees, {self._forecast}"
            )

    def end(self) -> None:
        """Note the result next to the forecast."""
        if self._forecast:
            found = _cost(self._tokens, self._seconds)
            self._reporter.note(f"search: {found} in the end; {self._forecast} expected")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started


def _cost(tokens: float, seconds: float) -> str:
    return f"{tokens:,.0f} tokens and {seconds / 60:.1f} min"


def _tokens(account: Mapping[str, int]) -> int:
    return account["policy_tokens"] + account["simulator_tokens"]


def _wait_for_all(
    run: Run, reporter: Reporter, names: Sequence[str]
) -> Mapping[str, tuple[Path, int]]:
    """Return file and index of all trees, once all processes have written theirs.

    Raises:
        InputError: no new tree for `processes.timeout` seconds.
    """
    parts, last, noted = _Parts(run), time.monotonic(), -1
    while missing := len(set(names) - parts.look().keys()):
        if missing != noted:
            reporter.note(f"search: waiting for {missing} trees of other processes")
            noted, last = missing, time.monotonic()
        if time.monotonic() - last > run.config.processes.timeout:
            raise io.InputError(
                f"{parts.folder}: {missing} of {len(names)} trees are missing, and none was added "
                f"for {run.config.processes.timeout:.0f} s (--processes.timeout). Run the same "
                "command for the processes that stopped, or with --processes.count 1: finished "
                "trees are not searched again."
            )
        time.sleep(POLL_SECONDS)
    return parts.written


def _put_together(
    run: Run, roots: Sequence[Dialogue], written: Mapping[str, tuple[Path, int]]
) -> dict[str, Any]:
    """Write the trees of all processes to one file in the order of conditions; return counts."""
    total: collections.Counter[str] = collections.Counter()
    read = functools.lru_cache(maxsize=64)(_read)  # trees of one file follow each other

    def records() -> Iterator[dict[str, Any]]:
        for root in roots:
            path, place = written[root.condition.id]
            record = read(path)[place]
            total.update(_account([record]))
            yield record

    io.write_jsonl(run.directory.all_trees, records(), schema=TREE_SCHEMA)
    return _with_rate(total)


def _read(path: Path) -> list[dict[str, Any]]:
    """Read the trees of a file.

    Raises:
        InputError: it is damaged; names the file, and the line if known.
    """
    try:
        records = list(io.read_jsonl(path, schema=TREE_SCHEMA))
        for record in records:
            FinishedTree.from_json(record)
    except io.InputError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise io.InputError(
            f"{where}{error}. Remove this file to search its trees again."
        ) from error
    return records


def _account(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the counts of trees."""
    total = collections.Counter(trees=len(records))
    for record in records:
        total.update({k: v for k, v in record["account"].items() if isinstance(v, int)})
    return dict(total)


def _with_rate(account: Mapping[str, int]) -> dict[str, Any]:
    """Add the share of expansions whose contexts were in memory."""
    hits, misses = account.get("context_hits", 0), account.get("context_misses", 0)
    rate = {"context_hit_rate": round(hits / (hits + misses), 4)} if hits + misses else {}
    return {**account, **rate}
