"""Collectives are added up as an optimised program runs them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAM = """\
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = f32[8,4]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %b = (f32[10]{0}, /*index=1*/bf16[6]{0}) all-reduce(%y, %z), replica_groups=[2,4]<=[8]
  %c = f32[3]{0} reduce-scatter(%y), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
}
"""


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("weak_scaling")


def test_a_loops_collectives_count_as_often_as_it_runs(benchmark):
    sent = benchmark.collective_bytes(PROGRAM)
    assert sent == {
        "all-gather": 5 * 8 * 4 * 4 * 3 / 4,
        "all-reduce": 2 * (10 * 4 + 6 * 2) * 3 / 4,
        "reduce-scatter": 3 * 4 * 3,
    }


def test_a_loop_of_unknown_length_is_refused(benchmark):
    with pytest.raises(ValueError, match="unknown length"):
        benchmark.collective_bytes(PROGRAM.replace("known_trip_count", "nothing"))


def test_a_collective_of_unknown_devices_is_refused(benchmark):
    with pytest.raises(ValueError, match="unknown devices"):
        benchmark.collective_bytes(PROGRAM.replace("replica_groups", "groups"))
