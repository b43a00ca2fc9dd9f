"""Several continuations of one context: read once and fork, against reading it for each.

    python benchmarks/fork.py --size a

`contexts` of `length` tokens, `copies` continuations each. A fork shares the blocks of its origin;
they are copied into the decode batch, which is bound by memory. Reading is bound by arithmetic.
Both ways are timed, in turn, until each continuation has its first token, so that these copies are
included. Figures are medians; first runs, which compile, are not counted. Prints one JSON line;
`speedup` has the number of copies as its ceiling.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import tyro
from sizes import Size, make_model

from ixjax.generation import Context, Engine, EngineConfig, Request, SamplingConfig
from ixjax.models.config import DType


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    size: Size = "a"
    """5 M, 29 M or 1.1 B parameters."""
    contexts: int = 16
    """Contexts."""
    length: int = 512
    """Tokens of a context."""
    copies: int = 8
    """Continuations of each."""
    repeats: int = 5
    """Runs timed."""
    dtype: DType = "float32"
    """Of weights and computation."""


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    model = make_model(a.size, max_length=a.length + 64, dtype=a.dtype)
    engine = Engine(model, EngineConfig())
    rng = np.random.default_rng(0)
    prompts = rng.integers(5, model.config.vocab_size, (a.contexts, a.length)).tolist()
    sampling = SamplingConfig()

    def forked() -> list[Context]:
        contexts = [engine.new(prompt) for prompt in prompts]
        engine.read(contexts)
        return [engine.fork(context) for context in contexts for _ in range(a.copies)]

    def read() -> list[Context]:
        return [engine.new(prompt) for prompt in prompts for _ in range(a.copies)]

    def first_tokens(way: Callable[[], list[Context]]) -> list[Request]:
        found = [Request(context, sampling, 0, (i,), 1) for i, context in enumerate(way())]
        return engine.decode(found)

    def seconds(way: Callable[[], list[Context]]) -> float:
        start = time.perf_counter()
        first_tokens(way)
        return time.perf_counter() - start

    engine.pool.reserve(2 * a.contexts * a.copies * (a.length + 64))
    ours, anew = first_tokens(forked), first_tokens(read)
    same = [one.tokens == other.tokens for one, other in zip(ours, anew, strict=True)]
    differences = [
        abs(one.logprobs[0] - other.logprobs[0])
        for one, other, equal in zip(ours, anew, same, strict=True)
        if equal
    ]
    del ours, anew  # they hold contexts
    timed = [(seconds(forked), seconds(read)) for _ in range(a.repeats)]
    fork, anew = (statistics.median(column) for column in zip(*timed, strict=True))
    report = {
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
        "forked_seconds": fork,
        "read_seconds": anew,
        "speedup": anew / fork,
        "equal_tokens": sum(same) / len(same),
        "largest_difference_of_logprobs": max(differences, default=float("nan")),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
