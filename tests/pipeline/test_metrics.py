"""Metrics reach TensorBoard and Weights & Biases as metrics.jsonl has them."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ixjax.io import InputError, RunDirectory
from ixjax.pipeline import RunConfig, open_run
from ixjax.pipeline.metrics import MetricsConfig, open_sinks
from ixjax.pipeline.run import Run
from tests.end_to_end.tiny import tiny_run

REPORTS = [
    ("sft/policy", {"step": 1, "loss": 2.5, "validation_loss": float("nan")}),
    ("sft/policy", {"step": 3, "loss": 1.5}),
    ("search", {"engine": {"occupancy": 0.5}, "kind": "text"}),
    ("search", {"engine": {"occupancy": 0.75}}),
]
CURVES = {
    ("sft/policy/loss", 1, 2.5),
    ("sft/policy/loss", 3, 1.5),
    ("sft/policy/step", 1, 1),
    ("sft/policy/step", 3, 3),
    ("search/engine/occupancy", 0, 0.5),
    ("search/engine/occupancy", 1, 0.75),
}


def run_with(root: Path, **settings) -> Run:
    config = RunConfig(out=str(root), metrics=MetricsConfig(**settings))
    return Run(config, RunDirectory(root))


def scalars(folder: Path) -> set[tuple[str, int, float]]:
    """The curves of TensorBoard's event files: records of length, check, message, check."""
    from tensorboardX.proto.event_pb2 import Event

    found = set()
    for path in folder.iterdir():
        data = path.read_bytes()
        while len(data) > 16:  # what is just being written is read the next time
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found |= {(v.tag, event.step, v.simple_value) for v in event.summary.value}
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_tensorboard_has_every_number_under_its_stage(tmp_path):
    pytest.importorskip("tensorboardX")
    run = run_with(tmp_path, tensorboard=True)
    for stage, metrics in REPORTS:
        run.log(stage, metrics)
    wait_for(lambda: scalars(tmp_path / "tensorboard") == CURVES)  # nobody closes anything
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == [stage for stage, _ in REPORTS]


def test_without_asking_nothing_but_the_lines_is_written(tmp_path):
    run = run_with(tmp_path)
    run.log(*REPORTS[0])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_of_several_processes_the_first_alone_writes_curves(tmp_path):
    pytest.importorskip("tensorboardX")
    run = run_with(tmp_path, tensorboard=True)
    processes = dataclasses.replace(run.config.processes, index=1, count=2)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, processes=processes))
    other.log(*REPORTS[0])
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.filterwarnings("ignore")  # of the package and its service
def test_weights_and_biases_keeps_one_run_for_a_directory(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = []
    for _ in range(2):
        run = run_with(tmp_path, wandb="dialogues")
        for stage, metrics in REPORTS:
            run.log(stage, metrics)
        opened = wandb.run
        names.append((opened.project, opened.name, opened.id))
        assert opened.summary["sft/policy/loss"] == 1.5
        assert opened.summary["search/engine/occupancy"] == 0.75
        assert opened.config["scenario"] == "sandbox"
        opened.finish()
    assert names[0] == names[1]
    assert names[0][:2] == ("dialogues", tmp_path.name)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 2
    other = open_sinks(MetricsConfig(), RunDirectory(tmp_path), {})
    assert other == []


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [({"tensorboard": True}, "tensorboardX", "tensorboard"), ({"wandb": "p"}, "wandb", "wandb")],
)
def test_a_missing_package_is_named_with_its_extra_before_a_run_is_made(
    settings, package, extra, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    problem = rf"{package} is not installed; pip install 'ixjax\[{extra}\]'"
    with pytest.raises(InputError, match=problem):
        open_run(tiny_run(tmp_path / "run", metrics=MetricsConfig(**settings)))
    assert not (tmp_path / "run").exists()
