"""Several continuations of one context: read once and fork, against reading it for each.

    python benchmarks/fork.py --size a

`contexts` of `length` tokens, `copies` continuations each. Forking copies rows of the cache, which
is bound by memory; reading is bound by arithmetic. Both ways are timed to where all rows are ready
to be spoken from, in turn; medians; first runs, which compile, are not counted. Prints one JSON
line; `speedup` has the number of copies as its ceiling.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time

import jax
import numpy as np
import tyro
from sizes import Size, make_model

from ixjax.generation import Contexts, Engine, EngineConfig
from ixjax.models.config import DType


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

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
    rows = np.repeat(np.arange(a.contexts), a.copies)

    def forked() -> Contexts:
        contexts = engine.extend(engine.empty(a.contexts), prompts)
        return engine.fork(contexts, rows)

    def read() -> Contexts:
        return engine.extend(engine.empty(len(rows)), [prompts[row] for row in rows])

    def seconds(way) -> float:
        start = time.perf_counter()
        jax.block_until_ready(way().cache)
        return time.perf_counter() - start

    same = np.abs(np.asarray(forked().logits) - np.asarray(read().logits)).max()
    timed = [(seconds(forked), seconds(read)) for _ in range(a.repeats)]
    fork, anew = (statistics.median(column) for column in zip(*timed, strict=True))
    report = {
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
        "forked_seconds": fork,
        "read_seconds": anew,
        "speedup": anew / fork,
        "largest_difference_of_logits": float(same),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
