"""Two processes of four devices train what one process of eight does, and end together."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ixjax.commands.main import PREEMPTED
from ixjax.parallel import MeshConfig
from ixjax.pipeline import RunConfig, open_run, prepare, search, train_speakers
from ixjax.search import PairsConfig
from ixjax.training import load_model
from tests.end_to_end.processes import command, finish, start, together
from tests.end_to_end.tiny import Silent, tiny_run

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
STEPS = 20
MESH = MeshConfig(data=2, fsdp=2, tensor=2)
TOKENS = np.array([[1, 20, 30, 40, 50, 60]], np.int32)


def settings(out: Path, *, steps: int = STEPS, **changes) -> RunConfig:
    # A policy that has hardly learned says turns without an end.
    pairs = PairsConfig(min_margin=0.0, keep_truncated=True)
    config = tiny_run(out, mesh=MESH, pairs=pairs, **changes)
    return dataclasses.replace(
        config,
        sft=dataclasses.replace(config.sft, steps=steps, eval_every=5, checkpoint_every=8),
        dpo=dataclasses.replace(config.dpo, steps=steps),
    )


def prepared(out: Path) -> Path:
    prepare(open_run(settings(out)), Silent())
    return out


@pytest.fixture(scope="module")
def aligned_by(tmp_path_factory) -> Path:
    """A run that waits for DPO."""
    run = open_run(settings(tmp_path_factory.mktemp("runs") / "searched"))
    prepare(run, Silent())
    train_speakers(run, Silent())
    search(run, Silent())
    return run.directory.root


def losses(out: Path, kind: str) -> dict[tuple[str, int], float]:
    whole = (out / "metrics.jsonl").read_text().rpartition("\n")[0]  # one may be being written
    lines = [json.loads(line) for line in whole.splitlines()]
    return {
        (line["stage"], line["step"]): line["loss"]
        for line in lines
        if line["stage"].startswith(kind) and "loss" in line
    }


def assert_same_losses(one: Path, two: Path, kind: str, *, steps: int, models: int) -> None:
    expected, found = losses(one, kind), losses(two, kind)
    assert len(expected) == steps * models
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5, atol=1e-6)


def test_sft_in_two_processes_has_the_losses_of_one(tmp_path):
    one, two = prepared(tmp_path / "one"), tmp_path / "two"
    shutil.copytree(one, two)
    finish(start(command("sft", settings(one)), devices=8))
    for process in together(command("sft", settings(two)), count=2, devices=4):
        finish(process)
    assert_same_losses(one, two, "sft/", steps=STEPS, models=3)


def test_dpo_in_two_processes_has_the_losses_of_one_and_exports_what_it_trained(
    aligned_by, tmp_path
):
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        shutil.copytree(aligned_by, out)
    finish(start(command("dpo", settings(one)), devices=8))
    for process in together(command("dpo", settings(two, export=True)), count=2, devices=4):
        finish(process)
    assert_same_losses(one, two, "dpo/", steps=STEPS, models=3)
    ours = load_model(two / "policy_dpo" / "imcts")
    theirs = AutoModelForCausalLM.from_pretrained(two / "exported" / "imcts", dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits, ours(TOKENS), atol=1e-4)


def wait_for_step(out: Path, step: int) -> None:
    """Until the policy has done so many steps."""
    while ("sft/policy", step) not in (
        losses(out, "sft/") if (out / "metrics.jsonl").exists() else {}
    ):
        time.sleep(0.02)


def test_sigterm_to_one_process_saves_in_all_and_the_run_continues(tmp_path):
    out = prepared(tmp_path / "run")
    long = settings(out, steps=400)
    processes = together(command("sft", long), count=2, devices=4)
    wait_for_step(out, 3)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == PREEMPTED, errors
        assert "SIGTERM came: the state after step" in errors
    [newest] = sorted((out / "policy_sft" / "steps").iterdir(), key=lambda p: int(p.name))[-1:]
    resumed = together(command("sft", long), count=2, devices=4)
    wait_for_step(out, int(newest.name) + 1)
    for process in resumed:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other(tmp_path, victim):
    out = prepared(tmp_path / "run")
    processes = together(command("sft", settings(out, steps=400)), count=2, devices=4)
    wait_for_step(out, 3)
    processes[victim].kill()
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode != 0


def test_bad_input_ends_every_process_with_the_same_line(tmp_path):
    out = tmp_path / "unprepared"
    for process in together(command("sft", settings(out)), count=2, devices=4):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        assert "prepare is not finished here; run `ixjax prepare`" in errors


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_finds_no_other_says_where_it_looked(tmp_path, index):
    line = [*command("sft", settings(tmp_path / "run")), "--distributed.timeout=3"]
    process = together(line, count=2, devices=1, alone=index)[0]
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert f"error: distributed: process {index} of 2 did not find all others" in errors
    assert "at the coordinator localhost:" in errors
