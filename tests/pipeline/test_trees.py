"""A search that is shared, or was interrupted, ends in the trees of one process that did it all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ixjax.commands import pipeline as pipeline_command
from ixjax.commands import search as search_command
from ixjax.generation import EngineStats, SamplingConfig
from ixjax.io import InputError, Manifest
from ixjax.pipeline import Run, prepare, search, train_speakers, trees
from ixjax.pipeline.config import ProcessesConfig
from tests.end_to_end.processes import command, finish, start
from tests.end_to_end.tiny import Notes, Silent, opened, tiny_run

CONDITIONS = 6
RESULTS = ("trees/trees-00000-of-00001.jsonl", "pairs.jsonl", "human_pairs.jsonl")

Fork = Callable[[str], Path]


def settings(out: Path, *, index: int = 0, count: int = 1, timeout: float = 60, **changes: Any):
    """The tiny run, as one of several processes."""
    config = tiny_run(out, processes=ProcessesConfig(index, count, timeout), **changes)
    return dataclasses.replace(
        config, search=dataclasses.replace(config.search, conditions=CONDITIONS)
    )


def process(out: Path, index: int = 0, count: int = 1, **more: Any) -> Run:
    return opened(settings(out, index=index, count=count, **more))


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("trees/parts/*/*.jsonl"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Up to the search; tests work on copies."""
    run = process(tmp_path_factory.mktemp("runs") / "trained")
    prepare(run, Silent())
    train_speakers(run, Silent())
    return run.directory.root


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of it that nothing interrupts."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    shutil.copytree(trained, out)
    search(process(out), Silent())
    return results(out)


@pytest.fixture
def out(trained, tmp_path, monkeypatch) -> Path:
    """A run directory that waits for its search."""
    monkeypatch.setattr(trees, "POLL_SECONDS", 0.01)
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_two_processes_give_the_trees_and_pairs_of_one(out, alone):
    other = search(process(out, 1, 2), Silent())
    assert other["trees"]["trees"] == CONDITIONS // 2
    assert search(process(out, 0, 2), Silent())["trees"]["trees"] == CONDITIONS
    assert results(out) == alone


def test_more_processes_than_conditions_are_no_error(out, alone):
    for index in range(CONDITIONS, -1, -1):
        search(process(out, index, CONDITIONS + 1), Silent())
    assert results(out) == alone


@pytest.mark.parametrize(
    ("stopped", "then"),
    [
        pytest.param((0, 1), [(0, 1)], id="one, and it goes on"),
        pytest.param((0, 1), [(2, 3), (1, 3), (0, 3)], id="one, then three"),
        pytest.param((1, 2), [(0, 1)], id="two, then one"),
        pytest.param((0, 2), [(1, 2), (0, 2)], id="the first of two, and it goes on"),
    ],
)
def test_an_interrupted_search_continues_with_any_number_of_processes(out, alone, stopped, then):
    with pytest.raises(KeyboardInterrupt, match="search"):
        search(process(out, *stopped), Silent(stop_in="search"))
    assert parts(out)  # something was saved, and it is not all
    before = {path: path.stat().st_mtime_ns for path in parts(out)}
    for index, count in then:
        search(process(out, index, count), Silent())
    assert results(out) == alone
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_is_there_is_not_searched_again(out, alone):
    search(process(out), Silent())
    (out / RESULTS[0]).unlink()
    before = parts(out)
    assert search(process(out, 1, 2), Silent())["trees"]["trees"] == 0
    search(process(out), Silent())
    assert parts(out) == before
    assert results(out) == alone


def test_the_others_write_neither_manifest_nor_pairs(out):
    before = (out / "manifest.json").read_bytes()
    search(process(out, 1, 2), Silent())
    assert (out / "manifest.json").read_bytes() == before
    assert not any((out / name).exists() for name in RESULTS)


def test_waiting_in_vain_ends_and_says_how_to_go_on(out, alone):
    with pytest.raises(InputError, match=r"3 of 6 trees are missing.*processes\.timeout.*count 1"):
        search(process(out, 0, 2, timeout=0), Silent())
    assert Manifest.load(out / "manifest.json").get("search") is None
    search(process(out), Silent())
    assert results(out) == alone


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 1), (0, 0)])
def test_a_process_that_there_is_not_is_refused(index, count):
    with pytest.raises(
        InputError, match=rf"processes\.index is {index}.*processes\.count is {count}"
    ):
        ProcessesConfig(index=index, count=count)


def test_a_pipeline_of_several_processes_is_refused(out):
    with pytest.raises(InputError, match=r"processes\.count is 2.*ixjax search"):
        pipeline_command.execute(process(out, 0, 2), Silent(), Console(quiet=True))


def test_the_command_of_another_process_prints_what_it_did(out, capsys):
    search_command.execute(process(out, 1, 2), Silent(), Console(width=80))
    assert "pairs" not in (told := capsys.readouterr().out)
    assert "simulations" in told


def test_a_forecast_counts_what_was_sampled_for_trees_that_still_grow(monkeypatch):
    """Two of six trees are done; as many tokens again were sampled for others."""
    now, stats, reporter = [0.0], EngineStats(decode_tokens=7), Notes()
    monkeypatch.setattr(trees.time, "monotonic", lambda: now[0])
    forecast = trees._Forecast(6, 2, reporter, stats)
    for tokens in (900, 1100):
        now[0] += 60
        stats.decode_tokens += 2 * tokens
        forecast.note(tokens)
    assert reporter.notes == ["search: after 2 of 6 trees, 6,000 tokens and 3.0 min"]
    for tokens in (1000, 1000, 1000, 1300):
        forecast.note(tokens)
    now[0] = 200
    forecast.end()
    assert reporter.notes[1:] == [
        "search: 6,300 tokens and 3.3 min in the end; 6,000 tokens and 3.0 min expected"
    ]


def test_a_search_tells_beforehand_what_it_will_cost(out):
    """By two of its six trees, and at the end what became of that."""
    reporter = Notes()
    spent = search(process(out), reporter)["trees"]
    first, last = (note for note in reporter.notes if "tokens and" in note)
    assert first.startswith("search: after 2 of 6 trees, ")
    hits, misses = spent["context_hits"], spent["context_misses"]
    assert spent["context_hit_rate"] == pytest.approx(hits / (hits + misses), abs=1e-4)
    tokens = spent["policy_tokens"] + spent["simulator_tokens"]
    assert last.startswith(f"search: {tokens:,} tokens and ")
    assert last.endswith(f"; {first.partition('trees, ')[2]} expected")


@pytest.mark.parametrize("damage", ["not JSON", '{"condition_id": "sandbox-0"}', ""])
def test_a_damaged_part_is_named_and_may_be_removed(out, alone, damage):
    search(process(out, 1, 2), Silent())
    part = parts(out)[0]
    head, _, *rest = part.read_text().splitlines()
    part.write_text("\n".join([head, damage, *rest]) if damage else "")
    with pytest.raises(InputError, match=rf"{part.name}.*[Rr]emove this file") as raised:
        search(process(out), Silent())
    if damage == "not JSON":
        assert f"{part.name}:2" in str(raised.value)
    part.unlink()
    search(process(out), Silent())
    assert results(out) == alone


def test_a_root_that_occurs_twice_is_refused_by_every_process(out):
    lines = (out / "conditions.jsonl").read_text().splitlines()
    train = [i for i, line in enumerate(lines) if json.loads(line).get("split") == "train"]
    lines[train[1]] = lines[train[0]]  # one in each of the slices
    (out / "conditions.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"occurs twice"):
        search(process(out, 1, 2), Silent())


@pytest.mark.slow
def test_whether_any_outcome_can_be_read_is_asked_of_the_whole(out):
    """A slice, or the rest of one, may be unlucky; the run is not over for that."""
    mute: dict[str, Any] = {"readout": "sampled", "sampling": SamplingConfig(max_new_tokens=3)}
    account = search(process(out, 1, 2, **mute), Silent())["trees"]
    assert account["trees"] == 3
    assert account["simulations"] == 0 < account["unreadable"]
    for _ in range(2):
        with pytest.raises(InputError, match=r"simulated outcomes could be read"):
            search(process(out, 0, 2, **mute), Silent())


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_real_processes_at_once_give_the_trees_of_one(trained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        shutil.copytree(trained, out)
    finish(start(command("search", settings(one))))
    both = [start(command("search", settings(two, index=i, count=2))) for i in range(2)]
    for process in both:
        finish(process)
    assert {part.name[:5] for part in parts(two)} == {"00000", "00001"}
    assert results(two) == results(one)
