"""A trace holds the steps that were asked for, and no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ixjax.training.profiling import ProfileConfig, Profiler


def traced_steps(folder: Path) -> list[int]:
    """The step numbers in the trace that `jax.profiler` has written, as Perfetto reads them."""
    found = set()
    for path in folder.rglob("*.trace.json.gz"):
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        found |= {int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}
    return sorted(found)


def run(profiler: Profiler, steps: range) -> None:
    step = jax.jit(lambda x: x @ x)
    state = jnp.eye(8)
    with profiler:
        for number in steps:
            with profiler.step(number):
                state = step(state)


@pytest.mark.parametrize(
    ("steps", "ran", "traced"),
    [
        ("2:3", range(1, 6), [2, 3]),
        ("4:4", range(1, 5), [4]),
        ("2:9", range(1, 5), [2, 3, 4]),  # the training ends first
        ("2:4", range(3, 6), [3, 4]),  # it continued behind the first of them
        ("2:3", range(4, 6), []),  # and behind all of them
        ("", range(1, 3), []),
    ],
)
def test_the_steps_that_were_asked_for_are_in_the_trace(steps, ran, traced, tmp_path):
    run(Profiler(ProfileConfig(steps), tmp_path / "trace"), ran)
    assert traced_steps(tmp_path) == traced
    assert (tmp_path / "trace").exists() == bool(traced)


def test_a_training_that_fails_leaves_no_trace_open(tmp_path):
    def fail():
        with Profiler(ProfileConfig("1:5"), tmp_path / "a") as profiler, profiler.step(1):
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        fail()
    run(Profiler(ProfileConfig("1:1"), tmp_path / "b"), range(1, 2))  # another may begin
    assert traced_steps(tmp_path / "b") == [1]
