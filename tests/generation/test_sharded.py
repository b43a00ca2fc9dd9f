"""Eight devices say what one says; a row's neighbours and its number change no bit of it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from ixjax.generation import Engine, EngineConfig, Request, SamplingConfig
from ixjax.models import ModelConfig, param_shardings
from ixjax.parallel import MeshConfig, make_mesh
from tests.generation.near_ties import NEAR, gap
from tests.models.tiny import random_model

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=64,
    max_length=320,
)
ROWS, STEPS = 16, 24


def prompts(rows: int, *, longest: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 96, n).tolist() for n in rng.integers(1, longest, rows)]


def turns(contexts, sampling: SamplingConfig, ids=None) -> list[Request]:
    ids = range(len(contexts)) if ids is None else ids
    return [
        Request(context, sampling, 5, (int(i),), STEPS)
        for context, i in zip(contexts, ids, strict=True)
    ]


def sampled(model, config, sampling, given):
    engine = Engine(model, config)
    contexts = [engine.new(tokens) for tokens in given]
    engine.read(contexts)
    forks = [engine.fork(context) for context in contexts]
    engine.extend({context: [3] for context in forks})
    return [request.tokens for request in engine.decode(turns(forks, sampling))]


def sharded(model, mesh):
    params = jax.device_put(nnx.state(model), param_shardings(CONFIG, mesh))
    return nnx.merge(nnx.graphdef(model), params)


@pytest.mark.parametrize(
    ("shape", "temperature", "layout"),
    [
        ((4, 1, 2), 1.0, "contiguous"),
        pytest.param((2, 2, 2), 0.0, "contiguous", marks=pytest.mark.slow),
        pytest.param((8, 1, 1), 1.0, "contiguous", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 1.0, "paged", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_say_what_one_says(shape, temperature, layout):
    model, sampling = random_model(CONFIG), SamplingConfig(temperature=temperature)
    given = prompts(ROWS, longest=150)
    config = EngineConfig(rows=ROWS, steps=10, layout=layout)
    one = sampled(model, config, sampling, given)
    mesh = make_mesh(MeshConfig(*shape))
    eight = sampled(sharded(model, mesh), config, sampling, given)
    different = [row for row in range(ROWS) if one[row] != eight[row]]
    for row in different:
        at = next(i for i in range(STEPS) if one[row][i] != eight[row][i])
        known = [*given[row], 3, *one[row][:at]]
        logits = np.asarray(model(np.array([known])))[0, -1].astype(np.float64)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), row), at)
        assert gap(logits, key, temperature) < NEAR, f"row {row}, token {at}"
    assert len(different) <= 1


@pytest.mark.slow
def test_neighbours_and_the_number_of_a_row_change_no_bit():
    """With the engine's rows, which are 32 here, for any lengths of the others."""
    model, config = random_model(CONFIG), EngineConfig(rows=32, steps=10)
    engine, (own,) = Engine(model, config), prompts(1, longest=60, seed=9)
    found = []
    for seed, place, longest in ((1, 0, 20), (2, 31, 250), (3, 17, 130)):
        others = prompts(32, longest=longest, seed=seed)
        given = [*others[:place], own, *others[place + 1 :]]
        ids = np.arange(100, 132)
        ids[place] = 7
        contexts = [engine.new(tokens) for tokens in given]
        said = engine.decode(turns(contexts, SamplingConfig(top_p=0.9), ids))[place]
        found.append((said.tokens, said.logprobs))
    assert found[0] == found[1] == found[2]  # log-probabilities to the bit
