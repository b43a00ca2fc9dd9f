"""Weak scaling by XLA's own figures, of the training step on 1 to 8 devices. One JSON line.

    python benchmarks/weak_scaling.py --objective dpo --axis fsdp

The devices are virtual, and the batch grows with them, so that each has the same rows. Nothing is
run: a process per number of devices compiles the step and reads XLA's figures.

- FLOPs of one device (`cost_analysis`) shall be constant within 2 %. XLA counts the body of a loop
  once, so the blocks must be unrolled: 8 of them at the most.
- Bytes that a device sends are summed over the collectives of the optimised program, those of a
  loop's body once per iteration, and reported as multiples of P (n - 1) / n, where P is the bytes
  of all parameters. In theory: over `data` gradients are summed everywhere, 2 P, and those of a
  tied embedding twice, once of the lookup and once of the head. Over `fsdp` weights are gathered
  for the forward and again for the backward pass, and gradients are summed to where they belong: 3
  P where XLA makes reduce-scatters of it, 4 P where it makes all-reduces and slices, as on a CPU.
  Norms, the loss and tokens are left out of the theory.
- Parameters and optimiser state of one device shrink as 1 / fsdp.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

import tyro

Axis = Literal["data", "fsdp"]
Objective = Literal["sft", "dpo"]
COUNTS = (1, 2, 4, 8)
FLOPS_BOUND = 0.02
ITEM_BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    objective: Objective = "dpo"
    """sft or dpo."""
    axis: Axis = "data"
    """The mesh axis that grows."""
    rows: int = 2
    """Rows (pairs) of each device."""
    length: int = 256
    """Tokens of a row."""
    layers: int = 4
    """Blocks."""
    hidden_size: int = 256
    """Width of the residual stream."""
    devices: int = 0
    """Compile for so many devices in this process and print what was found; 0: all counts."""


def compile_once(a: Arguments) -> dict[str, float]:
    """What XLA says of the step on `a.devices` devices."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", a.devices)
    # Not before the number of devices is set.
    from training_steps import lower_step

    from ixjax.parallel import MeshConfig, make_mesh

    step = lower_step(
        a.objective,
        make_mesh(MeshConfig(**({"data": 1, "fsdp": 1} | {a.axis: a.devices}))),
        rows=a.rows * a.devices,
        length=a.length,
        layers=a.layers,
        hidden_size=a.hidden_size,
    )
    compiled, state = step.lowered.compile(), step.state
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    shares = [
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    ]
    found = collective_bytes(compiled.as_text())
    return {
        "flops": costs["flops"],
        "state_bytes": sum(shares),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "parameter_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state[0])),
        "embedding_bytes": state[0]["embedding"].size * state[0]["embedding"].dtype.itemsize,
        **{name.replace("-", "_"): sent for name, sent in found.items()},
    }


KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute")
COLLECTIVE = re.compile(
    r"= (?P<result>\(?[a-z0-9]+\[.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?:-start)?\("
)
ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
LOOP = re.compile(r"while\(.*body=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Three ways to write groups: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'a'}.
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
NAMED = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")


def collective_bytes(text: str) -> dict[str, float]:
    """Bytes that a device sends in one run of an optimised program, by kind of collective.

    A ring is assumed: of n devices each sends (n - 1) / n of what is gathered or scattered, and
    twice that of what is summed everywhere.
    """
    times = _runs(text)
    sent: dict[str, float] = {}
    for computation, line in _lines(text):
        found = COLLECTIVE.search(line)
        if not found:
            continue
        kind, size, n = found["kind"], _array_bytes(found["result"]), _group_size(line)
        share = (n - 1) / n
        factor = {"all-reduce": 2 * share, "reduce-scatter": n * share}.get(kind, share)
        sent[kind] = sent.get(kind, 0.0) + times.get(computation, 1) * size * factor
    return sent


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(computation, instruction) of an HLO module."""
    name = ""
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        name = head[1] if head else name
        yield name, line


def _runs(text: str) -> dict[str, int]:
    """How often the body of each loop runs, loops in loops multiplied."""
    inside, trips = {}, {}
    for computation, line in _lines(text):
        loop, count = LOOP.search(line), TRIPS.search(line)
        if loop:
            if not count:
                raise ValueError(f"a loop of unknown length: {line[:100]}")
            inside[loop[1]], trips[loop[1]] = computation, int(count[1])

    def runs(name: str) -> int:
        return trips[name] * runs(inside[name]) if name in trips else 1

    return {name: runs(name) for name in trips}


def _array_bytes(shapes: str) -> int:
    return sum(
        ITEM_BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in ARRAY.findall(shapes)
    )


def _group_size(line: str) -> int:
    """Devices that take part in a collective together."""
    if listed := LISTED.search(line):
        return len(listed[1].split(","))
    if counted := COUNTED.search(line):
        return int(counted[1])
    if named := NAMED.search(line):
        sizes = dict(axis.split("=") for axis in named[1].split(","))
        return math.prod(int(sizes[axis]) for axis in named[2].split(","))
    raise ValueError(f"a collective of unknown devices: {line[:200]}")


def main(arguments: Arguments) -> None:
    """Compile for every count, compare, report."""
    a = arguments
    if a.devices:
        print(json.dumps(compile_once(a)))
        return
    found = {}
    for count in COUNTS:
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in dataclasses.asdict(a).items()]
        line = [sys.executable, __file__, *flags, f"--devices={count}"]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        ran = subprocess.run(line, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found[count] = json.loads(ran.stdout.splitlines()[-1])
    report = dataclasses.asdict(a) | {"by_devices": found, "flops_bound": FLOPS_BOUND}
    one = found[1]
    report["flops_ratio"] = {n: f["flops"] / one["flops"] for n, f in found.items()}
    report["within_bound"] = all(abs(r - 1) <= FLOPS_BOUND for r in report["flops_ratio"].values())
    report["state_ratio"] = {n: f["state_bytes"] / one["state_bytes"] for n, f in found.items()}
    report["sent"] = {n: _sent(f) / (1 - 1 / n) for n, f in found.items() if n > 1}
    report["theory"] = {n: _theory(a.axis, f) for n, f in found.items() if n > 1}
    report["sent_over_theory"] = {
        n: sent / report["theory"][n] for n, sent in report["sent"].items()
    }
    print(json.dumps(report))


def _sent(found: dict[str, float]) -> float:
    """Of all collectives, in multiples of the parameters."""
    return sum(found.get(kind, 0.0) for kind in KINDS) / found["parameter_bytes"]


def _theory(axis: Axis, found: dict[str, float]) -> float:
    """The same as the text above has it, without (n - 1) / n."""
    if axis == "data":
        return 2 * (1 + found["embedding_bytes"] / found["parameter_bytes"])
    return 3.0 if found.get("reduce_scatter") else 4.0


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
