"""Batched sampling, on sizes that a peer can be run on beside it: prints one JSON line.

    python benchmarks/generate.py --size a --batch 32

Prompts are random tokens of equal length, no token ends a turn, top-p is 0.9. The first call
compiles and is not counted; figures are medians over `repeats`. `seconds` is the whole call;
`first_token_seconds` the same for one token; decode tokens per second follow from the difference.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from typing import Literal

import jax
import numpy as np
import tyro

from ixjax.generation import SamplingConfig, generate
from ixjax.models import ModelConfig, Transformer, init_model
from ixjax.models.config import DType
from ixjax.parallel import make_mesh

SIZES = {
    "a": {
        "hidden_size": 256,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "intermediate_size": 1024,
        "vocab_size": 4096,
    },
    "b": {
        "hidden_size": 512,
        "num_layers": 8,
        "num_heads": 8,
        "num_kv_heads": 4,
        "intermediate_size": 1536,
        "vocab_size": 8192,
    },
    "c": {  # 1.1 B, for an accelerator
        "hidden_size": 2048,
        "num_layers": 22,
        "num_heads": 32,
        "num_kv_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32000,
    },
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

    size: Literal["a", "b", "c"] = "a"
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


def make_model(size: str, *, max_length: int, dtype: DType = "float32") -> Transformer:
    """A random decoder of one of `SIZES` on the first device."""
    config = ModelConfig(
        **SIZES[size],
        head_dim=64,
        max_length=max_length,
        param_dtype=dtype,
        compute_dtype=dtype,
    )
    return init_model(config, seed=0, mesh=make_mesh(devices=jax.local_devices()[:1]))


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    model = make_model(a.size, max_length=a.prompt + a.new, dtype=a.dtype)
    rng = np.random.default_rng(0)
    prompts = rng.integers(5, model.config.vocab_size, (a.batch, a.prompt)).tolist()
    sampling = SamplingConfig(top_p=a.top_p)

    def seconds(new: int, seed: int) -> float:
        start = time.perf_counter()
        found = generate(model, prompts, sampling, max_new_tokens=new, seed=seed)
        assert all(len(tokens) == new for tokens in found)
        return time.perf_counter() - start

    for new in (1, a.new):
        seconds(new, 0)
    # Alternated, so that what disturbs the machine disturbs both alike.
    timed = [(seconds(1, seed), seconds(a.new, seed)) for seed in range(1, a.repeats + 1)]
    first, full = (statistics.median(column) for column in zip(*timed, strict=True))
    report = {
        "engine": "ixjax",
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
        "seconds": full,
        "first_token_seconds": first,
        "tokens_per_second": a.batch * a.new / full,
        "decode_tokens_per_second": a.batch * (a.new - 1) / (full - first),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
