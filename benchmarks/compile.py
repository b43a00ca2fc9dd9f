"""How compile time grows with depth: the engine's passes at two depths. Prints one JSON line.

    python benchmarks/compile.py --few 8 --many 32

XLA's time is proportional to the number of operations. A pass that reads calls one compiled block
for each layer, so all depths take the same time: within a factor of 1.3. Decoding is one program of
all blocks, because it loops over tokens; its time grows with depth.

Each depth has fresh processes, with the persistent cache off. The first call of `read` on empty
contexts (prefill), of `read` on contexts that hold tokens (extend) and of `decode` traces, lowers,
compiles and runs, together with the cache operations around each pass; the second call, with the
same shapes, only runs. Their difference is the time to compile, by the wall clock and in CPU
seconds (which other programs disturb less). Medians over processes are reported; the depths take
turns.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import tyro

BOUND = 1.3
BOUNDED = ("prefill", "extend")
FUNCTIONS = (*BOUNDED, "decode")
FRESH = multiprocessing.get_context("spawn")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    few: int = 8
    """Decoder blocks of the shallow network."""
    many: int = 32
    """Decoder blocks of the deep network."""
    hidden_size: int = 64
    """Width of the residual stream."""
    rows: int = 8
    """Rows of the cache."""
    prompt: int = 32
    """Tokens of a prompt."""
    new: int = 32
    """New tokens."""
    repeats: int = 3
    """Processes for each depth."""


def compile_once(a: Arguments, layers: int, pipe: Connection) -> None:
    """Send the seconds to compile each function, from a fresh process."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    from flax import nnx

    from ixjax.generation import Engine, Request, SamplingConfig
    from ixjax.models import ModelConfig, Transformer, abstract_params

    config = ModelConfig(
        vocab_size=256,
        hidden_size=a.hidden_size,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=a.hidden_size // 4,
        intermediate_size=2 * a.hidden_size,
        max_length=2 * (a.prompt + a.new),
    )
    rng = np.random.default_rng(0)
    draw = lambda leaf: jax.numpy.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype)
    params = jax.tree.map(draw, abstract_params(config))
    model = nnx.merge(nnx.graphdef(Transformer(config)), params)
    engine = Engine(model)
    prompts = rng.integers(1, 256, (a.rows, a.prompt)).tolist()
    turns = rng.integers(1, 256, (a.rows, a.new)).tolist()

    def once() -> dict[str, np.ndarray]:
        clocks: list[np.ndarray] = []

        def lap() -> None:
            jax.block_until_ready(engine.pool.arrays)
            clocks.append(np.array([time.perf_counter(), time.process_time()]))

        lap()
        contexts = [engine.new(prompt) for prompt in prompts]
        engine.read(contexts)
        lap()
        engine.extend(dict(zip(contexts, turns, strict=True)))
        engine.read(contexts)
        lap()
        sampling = SamplingConfig()
        engine.decode([Request(c, sampling, 0, (i,), a.new) for i, c in enumerate(contexts)])
        lap()
        return dict(zip(FUNCTIONS, np.diff(clocks, axis=0), strict=True))

    # So that the pool does not grow, which compiles, too.
    engine.pool.reserve(2 * a.rows * config.max_length)
    first, second = once(), once()
    pipe.send({name: (first[name] - second[name]).tolist() for name in FUNCTIONS})


def main(arguments: Arguments) -> None:
    """Compile, compare, report."""
    a = arguments
    found: dict[int, list[dict[str, list[float]]]] = {a.few: [], a.many: []}
    for _ in range(a.repeats):
        for layers, runs in found.items():
            pipe, theirs = FRESH.Pipe()
            process = FRESH.Process(target=compile_once, args=(a, layers, theirs))
            process.start()
            theirs.close()  # so that `recv` ends if the process fails
            runs.append(pipe.recv())
            process.join()

    def medians(layers: int, clock: int) -> dict[str, float]:
        runs = found[layers]
        return {name: statistics.median(run[name][clock] for run in runs) for name in FUNCTIONS}

    report: dict[str, Any] = dataclasses.asdict(a)
    for clock, kind in enumerate(("seconds", "cpu_seconds")):
        few, many = medians(a.few, clock), medians(a.many, clock)
        report[f"few_{kind}"], report[f"many_{kind}"] = few, many
        report[f"ratios_of_{kind}"] = {name: many[name] / few[name] for name in FUNCTIONS}
        report[f"ratio_of_{kind}"] = sum(many.values()) / sum(few.values())
    ratios = [report["ratios_of_cpu_seconds"][name] for name in BOUNDED]
    report["bound"] = f"{' and '.join(BOUNDED)} within {BOUND} of the other depth, CPU seconds"
    report["within_bound"] = all(1 / BOUND <= ratio <= BOUND for ratio in ratios)
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
