"""`kill -9` in every stage of a real process; the same command again ends the same."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ixjax.pipeline import RunConfig, open_run, prepare, train_speakers
from tests.end_to_end.processes import command, finish, start
from tests.end_to_end.tiny import Silent, tiny_run

STAGES = ("sft/policy", "sft/simulator", "search", "dpo/human", "dpo/mix", "evaluate")
KILLS = 5
TREES = "trees/trees-00000-of-00001.jsonl"


def last_stage(out: Path) -> str:
    """What metrics.jsonl was last written for."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["stage"] if lines else ""


def kill(process: subprocess.Popen) -> bool:
    """Whether it still ran."""
    running = process.poll() is None
    if running:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return running


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_evaluation(tmp_path):
    finish(start(command("pipeline", tiny_run(tmp_path / "whole"))))

    line = command("pipeline", tiny_run(tmp_path / "killed"))
    killed = []
    for stage in STAGES:
        process = start(line)
        while process.poll() is None and last_stage(tmp_path / "killed") != stage:
            time.sleep(0.02)
        if kill(process):
            killed.append(stage)
    finish(start(line))
    assert len(killed) >= 4, killed
    for name in ("evaluation.json", "pairs.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def parts(out: Path) -> list[Path]:
    """What processes have written of a search."""
    return list(out.glob("trees/parts/*/*.jsonl"))


def many_trees(out: Path) -> RunConfig:
    """The tiny run with a search that is written in sixteen parts."""
    config = tiny_run(out)
    more = dataclasses.replace(config.search, conditions=32, iterations=6)
    return dataclasses.replace(config, search=more)


@pytest.mark.slow
def test_a_search_killed_at_five_random_moments_ends_in_the_same_trees(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = open_run(many_trees(whole))
    prepare(run, Silent())
    train_speakers(run, Silent())
    shutil.copytree(whole, killed)
    finish(start(command("search", many_trees(whole))))  # fills the compilation cache, too

    ends = sorted(part.stat().st_mtime for part in parts(whole))
    between = (ends[-1] - ends[0]) / (len(ends) - 1)
    line, rng, hit = command("search", many_trees(killed)), random.Random(0), 0
    for _ in range(KILLS):
        process, before = start(line), len(parts(killed))
        while process.poll() is None and len(parts(killed)) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2 * between))  # in a tree, in play, or while a part is written
        hit += kill(process)
    assert hit == KILLS
    assert not (killed / TREES).exists()
    finish(start(line))
    assert (killed / TREES).read_bytes() == (whole / TREES).read_bytes()
    assert (killed / "pairs.jsonl").read_bytes() == (whole / "pairs.jsonl").read_bytes()
