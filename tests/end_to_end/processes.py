"""Commands in processes of their own, on CPU devices, as a person starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from ixjax.pipeline import RunConfig
from ixjax.pipeline.open_run import _settings


def command(name: str, config: RunConfig) -> list[str]:
    """The command line of a stage over a run; its settings lie beside the run directory."""
    out, settings = Path(config.out), Path(config.out).with_suffix(".yaml")
    settings.write_text(yaml.safe_dump(_settings(config)))
    processes = config.processes
    line = [sys.executable, "-m", f"launch.{name}", "--config", str(settings), "--out", str(out)]
    return [
        *line,
        f"--processes.index={processes.index}",
        f"--processes.count={processes.count}",
        f"--processes.timeout={processes.timeout}",
    ]


def start(line: Sequence[str], *, devices: int = 1) -> subprocess.Popen:
    """A process that has begun; runs that lie side by side share what was compiled."""
    cache = Path(line[line.index("--out") + 1]).parent / "cache"
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "IXJAX_COMPILATION_CACHE": str(cache),
    }
    return subprocess.Popen(
        line,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(
    line: Sequence[str], *, count: int, devices: int, alone: int | None = None
) -> list[subprocess.Popen]:
    """Processes that have begun one command together, each with so many devices.

    With `alone`, that one of them is started and no other.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    shared = (*line, f"--distributed.coordinator={coordinator}", f"--distributed.count={count}")
    indices = range(count) if alone is None else [alone]
    return [start((*shared, f"--distributed.index={i}"), devices=devices) for i in indices]


def finish(process: subprocess.Popen, *, seconds: float = 600) -> None:
    """Wait for its end, which must be a good one."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors
