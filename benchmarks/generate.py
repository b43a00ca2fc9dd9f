"""Batched sampling, compared with transformers' `generate` on a model of the same shape.

    python benchmarks/generate.py --size a --batch 32 --peer

Prompts are random tokens of equal length, no token ends a turn, top-p is 0.9. The first call
compiles and is not counted. Figures are medians over `repeats`; ours and the peer's runs alternate,
so that other load on the machine affects both. `seconds` is the time of a call,
`first_token_seconds` that of a call for one token; the difference gives decode tokens per second.

Reading a prompt is bound by arithmetic, decoding by memory: every step reads all weights once, and
the keys and values of every row. Prints one JSON line.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro
from sizes import Peer, Size, make_model

from ixjax.generation import Engine, EngineConfig, SamplingConfig, generate
from ixjax.models.config import DType


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    size: Size = "a"
    """5 M, 29 M or 1.1 B parameters."""
    batch: int = 32
    """Prompts side by side."""
    prompt: int = 256
    """Tokens of a prompt."""
    new: int = 64
    """New tokens, exactly."""
    top_p: float = 0.9
    """Nucleus; 1 leaves it out."""
    repeats: int = 5
    """Calls timed."""
    dtype: DType = "float32"
    """Of weights and computation."""
    peer: bool = False
    """Run transformers, too."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """Sizes of the batches and the attention kernel; `rows` is the batch."""


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    model = make_model(a.size, max_length=a.prompt + a.new, dtype=a.dtype)
    rng = np.random.default_rng(0)
    prompts = rng.integers(5, model.config.vocab_size, (a.batch, a.prompt)).tolist()
    sampling, engine = SamplingConfig(top_p=a.top_p), dataclasses.replace(a.engine, rows=a.batch)

    def ours(new: int) -> None:
        found = generate(model, prompts, sampling, max_new_tokens=new, seed=0, engine_config=engine)
        assert all(len(tokens) == new for tokens in found)

    runs: dict[str, Callable[[int], Any]] = {"ours": ours}
    if a.peer:
        peer = Peer(a.size, dtype=a.dtype, top_p=a.top_p)
        peer_prompts = peer.prompts(a.batch, a.prompt)
        runs["peer"] = lambda new: peer.generate(peer_prompts, new)
    timed = _timed(runs, a)
    report = {
        "library": "ixjax",
        "jax": jax.__version__,
        **dataclasses.asdict(dataclasses.replace(a, engine=engine)),
        "attention": Engine(model, engine).attention,
        "device": jax.devices()[0].platform,
        **_figures(timed["ours"], a),
    }
    if a.peer:
        figures = _figures(timed["peer"], a)
        report |= {f"peer_{name}": value for name, value in figures.items()}
        report["decode_over_peer"] = (
            report["decode_tokens_per_second"] / figures["decode_tokens_per_second"]
        )
        report["whole_call_over_peer"] = figures["seconds"] / report["seconds"]
    print(json.dumps(report))


def _timed(
    runs: dict[str, Callable[[int], Any]], a: Arguments
) -> dict[str, list[tuple[float, float]]]:
    """(seconds for one token, seconds for all) of every repeat, by who ran."""

    def seconds(run: Callable[[int], Any], new: int) -> float:
        start = time.perf_counter()
        run(new)
        return time.perf_counter() - start

    for run in runs.values():
        run(1)
        run(a.new)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(a.repeats):
        for name, run in runs.items():
            found[name].append((seconds(run, 1), seconds(run, a.new)))
    return found


def _figures(timed: list[tuple[float, float]], a: Arguments) -> dict[str, float]:
    first, full = (statistics.median(column) for column in zip(*timed, strict=True))
    return {
        "seconds": full,
        "first_token_seconds": first,
        "tokens_per_second": a.batch * a.new / full,
        "decode_tokens_per_second": a.batch * (a.new - 1) / (full - first),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
