"""Memory of a real training step and its estimate by `ixjax plan`. Prints one JSON line.

    python benchmarks/memory.py --layers 12 --rows 8 --length 512

The step is compiled and run in this process on one CPU device. `planned_bytes` is the plan's peak,
`xla_bytes` the arguments and temporary buffers of the compiled step, and `resident_bytes` the
growth of the process' peak resident memory from before the parameters exist to after the steps,
which includes the allocator's overhead. Bound: each within 15 % of the plan.
"""

from __future__ import annotations

import dataclasses
import json
import resource
from typing import Any

import jax
import numpy as np
import tyro
from training_steps import Stage, lower_step

from ixjax.parallel import make_mesh
from ixjax.training.memory import step_memory

WITHIN = 0.15


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    objective: Stage = "sft"
    """sft or dpo."""
    layers: int = 12
    """Blocks: up to 8 are unrolled."""
    hidden_size: int = 256
    """Width of the residual stream."""
    vocab_size: int = 4096
    """Rows of the embedding table."""
    rows: int = 8
    """Rows (pairs) of a step."""
    length: int = 512
    """Tokens of a row."""
    steps: int = 2
    """Steps that are run."""


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Arguments) -> None:
    """Plan, compile, run, compare."""
    a, mesh = arguments, make_mesh(devices=jax.devices()[:1])
    step = lower_step(
        a.objective,
        mesh,
        rows=a.rows,
        length=a.length,
        layers=a.layers,
        hidden_size=a.hidden_size,
        vocab_size=a.vocab_size,
    )
    planned = step_memory(step.config, mesh, step.objective, step.batch).peak
    compiled = step.lowered.compile()
    found = compiled.memory_analysis()
    before = peak_bytes()
    state: Any = jax.tree.map(
        lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), step.state
    )
    batch = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), step.batch)
    for _ in range(a.steps):
        state, _ = compiled(state, {}, jax.device_put(batch), np.float32(1e-3))
    jax.block_until_ready(state)
    report = dataclasses.asdict(a) | {
        "planned_bytes": planned,
        "xla_bytes": found.argument_size_in_bytes + found.temp_size_in_bytes,
        "resident_bytes": peak_bytes() - before,
    }
    ratios = {kind: planned / report[f"{kind}_bytes"] for kind in ("xla", "resident")}
    report |= {f"planned_over_{kind}": ratio for kind, ratio in ratios.items()}
    report["within_bound"] = all(abs(ratio - 1) <= WITHIN for ratio in ratios.values())
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
