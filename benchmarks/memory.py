"""Memory of a real training step beside what `ixjax plan` says of it. Prints one JSON line.

    python benchmarks/memory.py --layers 12 --rows 8 --length 512

The step is compiled and run in this process on one CPU device. `planned_bytes` is the plan's peak,
`xla_bytes` arguments and temporary buffers of the compiled step, `resident_bytes` what the peak of
the process' resident memory grew by from before the parameters were made to after the steps. The
last holds the allocator's overhead, too; bound: each within 15 % of the plan.
"""

from __future__ import annotations

import dataclasses
import json
import resource
from typing import Any, Literal

import jax
import numpy as np
import tyro

from ixjax.models import ModelConfig
from ixjax.parallel import make_mesh
from ixjax.pipeline import RunConfig
from ixjax.pipeline.plan import training_objectives
from ixjax.training import OptimizerConfig
from ixjax.training.memory import step_memory
from ixjax.training.steps import make_steps

WITHIN = 0.15


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is trained."""

    objective: Literal["sft", "dpo"] = "sft"
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
    a, run = arguments, RunConfig()
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, max_length=a.length),
        sft=dataclasses.replace(run.sft, batch_size=a.rows),
        dpo=dataclasses.replace(run.dpo, batch_size=a.rows),
    )
    objective, shapes = training_objectives(run)[a.objective]
    config = ModelConfig(
        vocab_size=a.vocab_size,
        hidden_size=a.hidden_size,
        num_layers=a.layers,
        num_heads=a.hidden_size // 64,
        num_kv_heads=max(a.hidden_size // 128, 1),
        head_dim=64,
        intermediate_size=4 * a.hidden_size,
        max_length=a.length,
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    planned = step_memory(config, mesh, objective, shapes).peak
    steps = make_steps(config, mesh, objective, OptimizerConfig().to_optax())
    rate = jax.ShapeDtypeStruct((), "float32")
    compiled = steps.train.lower(steps.abstract_state, {}, shapes, rate).compile()
    found = compiled.memory_analysis()
    before = peak_bytes()
    state: Any = jax.tree.map(
        lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), steps.abstract_state
    )
    batch = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
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
