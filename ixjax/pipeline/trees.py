"""Finished trees on disk, while a search goes on and after it.

Each process adds the trees of its slice to `trees/parts/`, a file at a time by atomic rename; a
tree depends on its own identity alone, so whoever goes on with a search that was interrupted, in
however many processes, ends in the same trees. Process 0 writes them in one order.
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

# Trees that end less than so long after a writing wait for the next one that ends. They are all
# that is lost where a process is killed, besides those that grow.
FLUSH_SECONDS = 10.0
POLL_SECONDS = 1.0


def grow_trees(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Search all conditions, or this process's slice of them; the account of the trees.

    Raises:
        InputError: no outcome could be read, or trees of other processes do not come.
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
        # Of the whole: a slice, or what is left of one, may have no outcome that can be read.
        check_readable(account["simulations"], account["unreadable"], run.scenario)
        facts.update(account)
        reporter.finish(**account)
    return run.facts("search")


def _roots(run: Run) -> list[Dialogue]:
    return searchable(run.roots("train")[: run.config.search.conditions], run.scenario)


class _Parts:
    """The trees that any process has written; a file, once it is there, stays as it is."""

    def __init__(self, run: Run):
        self.folder = run.directory.trees / "parts" / run.inputs("search")
        self.written: dict[str, tuple[Path, int]] = {}  # by condition: file, and which record
        self._seen: set[Path] = set()

    def look(self) -> Mapping[str, tuple[Path, int]]:
        """Where the tree of each condition lies now."""
        for path in sorted(set(self.folder.glob("*.jsonl")) - self._seen):
            names = [record["condition_id"] for record in _read(path)]
            self.written |= {name: (path, i) for i, name in enumerate(names)}
            self._seen.add(path)
        return self.written

    def add(self, process: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write trees, to a file whose name says which: no other trees ever take its place."""
        names = [record["condition_id"] for record in records]
        path = self.folder / f"{process:05d}-{io.fingerprint(names)}.jsonl"
        io.write_jsonl(path, records, schema=TREE_SCHEMA)


def _grow_slice(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Search what is missing of this process's conditions; the account of what was done now."""
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
    """Records of finished trees, some at a time."""
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
            f"search: {dropped:,} oldest turns found no room in contexts of "
            f"{run.config.model.max_length} tokens (model.max_length)"
        )


class _Forecast:
    """What a search will cost, told once its first trees are done, and at its end what it cost.

    Others are half grown by then, so the time of what is to come is told by all tokens that were
    sampled, not by the trees that are done.

    Args:
        trees: to be searched from now on.
        first: trees to have done before it is told.
        reporter: is told.
        account: of the engines that the search runs on.
    """

    def __init__(self, trees: int, first: int, reporter: Reporter, account: EngineStats):
        self._trees, self._first, self._reporter = trees, first, reporter
        self._account, self._before = account, account.decode_tokens
        self._done, self._tokens, self._told = 0, 0, ""
        self._started = time.monotonic()

    def note(self, tokens: int) -> None:
        """One more tree is done, which took so many tokens."""
        self._done, self._tokens = self._done + 1, self._tokens + tokens
        if self._done == self._first < self._trees:
            expected = self._tokens * self._trees / self._done
            sampled = max(self._account.decode_tokens - self._before, 1)
            self._told = _cost(expected, self._seconds * expected / sampled)
            self._reporter.note(f"search: after {self._done} of {self._trees} trees, {self._told}")

    def end(self) -> None:
        """The search is over."""
        if self._told:
            found = _cost(self._tokens, self._seconds)
            self._reporter.note(f"search: {found} in the end; {self._told} expected")

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
    """Where all trees lie, once those of all processes are there.

    Raises:
        InputError: none came for `processes.timeout` seconds.
    """
    parts, last, told = _Parts(run), time.monotonic(), -1
    while missing := len(set(names) - parts.look().keys()):
        if missing != told:
            reporter.note(f"search: waiting for {missing} trees of other processes")
            told, last = missing, time.monotonic()
        if time.monotonic() - last > run.config.processes.timeout:
            raise io.InputError(
                f"{parts.folder}: {missing} of {len(names)} trees are missing, and none came for "
                f"{run.config.processes.timeout:.0f} s (processes.timeout). Run the same command "
                "again for the processes that stopped, or with --processes.count 1: what is there "
                "is not searched again"
            )
        time.sleep(POLL_SECONDS)
    return parts.written


def _put_together(
    run: Run, roots: Sequence[Dialogue], written: Mapping[str, tuple[Path, int]]
) -> dict[str, Any]:
    """The trees of all processes in one file, in the order of the conditions; their account."""
    total: collections.Counter[str] = collections.Counter()
    read = functools.lru_cache(maxsize=64)(_read)  # trees that lie together come together

    def records() -> Iterator[dict[str, Any]]:
        for root in roots:
            path, place = written[root.condition.id]
            record = read(path)[place]
            total.update(_account([record]))
            yield record

    io.write_jsonl(run.directory.all_trees, records(), schema=TREE_SCHEMA)
    return _with_rate(total)


def _read(path: Path) -> list[dict[str, Any]]:
    """The trees of a part.

    Raises:
        InputError: it is damaged; names the file, and the line where it can.
    """
    try:
        records = list(io.read_jsonl(path, schema=TREE_SCHEMA))
        for record in records:
            FinishedTree.from_json(record)
    except io.InputError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise io.InputError(
            f"{where}{error}. Remove this file, and its trees are searched again"
        ) from error
    return records


def _account(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over the trees' own accounts."""
    total = collections.Counter(trees=len(records))
    for record in records:
        total.update({k: v for k, v in record["account"].items() if isinstance(v, int)})
    return dict(total)


def _with_rate(account: Mapping[str, int]) -> dict[str, Any]:
    """And how many of the expansions found their contexts kept."""
    hits, misses = account.get("context_hits", 0), account.get("context_misses", 0)
    rate = {"context_hit_rate": round(hits / (hits + misses), 4)} if hits + misses else {}
    return {**account, **rate}
