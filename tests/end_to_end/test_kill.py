"""`kill -9` in every stage of a real process; the same command again ends the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ixjax.pipeline.run import _settings
from tests.end_to_end.tiny import tiny_run

STAGES = ("sft/policy", "sft/simulator", "search", "dpo/human", "dpo/mix", "evaluate")


def command(out: Path) -> tuple[list[str], dict[str, str]]:
    """The pipeline on one CPU device, as a person starts it."""
    config = out.parent / "tiny.yaml"
    config.write_text(yaml.safe_dump(_settings(tiny_run(out))))
    line = [sys.executable, "-m", "launch.pipeline", "--config", str(config), "--out", str(out)]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "IXJAX_COMPILATION_CACHE": str(out.parent / "cache"),
    }
    return line, environment


def last_stage(out: Path) -> str:
    """What metrics.jsonl was last written for."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["stage"] if lines else ""


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_evaluation(tmp_path):
    line, environment = command(tmp_path / "whole")
    subprocess.run(line, env=environment, check=True, capture_output=True, timeout=600)

    line, environment = command(tmp_path / "killed")
    killed = []
    for stage in STAGES:
        process = subprocess.Popen(
            line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and last_stage(tmp_path / "killed") != stage:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed.append(stage)
        process.wait()
    subprocess.run(line, env=environment, check=True, capture_output=True, timeout=600)
    assert len(killed) >= 4, killed
    for name in ("evaluation.json", "pairs.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
