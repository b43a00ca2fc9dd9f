"""What a step is said to hold against what XLA allocates for it, compiled and not run."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from ixjax.models import LoraConfig, ModelConfig
from ixjax.parallel import MeshConfig, abstract_mesh, make_mesh
from ixjax.pipeline import RunConfig
from ixjax.pipeline.plan import training_objectives
from ixjax.training import OptimizerConfig
from ixjax.training.memory import step_memory
from ixjax.training.steps import make_steps, trained_paths

WITHIN = 0.15
CONFIG = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    intermediate_size=512,
)


def objective(stage: str, *, rows: int, length: int):
    run = RunConfig()
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, max_length=length),
        sft=dataclasses.replace(run.sft, batch_size=rows),
        dpo=dataclasses.replace(run.dpo, batch_size=rows),
    )
    return training_objectives(run)[stage]


def allocated(config, mesh, loss, batch, **how) -> tuple[int, int]:
    """Bytes of the arguments of a compiled step, and of what it needs beside them."""
    steps = make_steps(config, mesh, loss, OptimizerConfig().to_optax(), **how)
    rate = jax.ShapeDtypeStruct((), "float32")
    compiled = steps.train.lower(steps.abstract_state, {}, batch, rate).compile()
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes, found.temp_size_in_bytes


def assert_planned(config, sizes, stage, *, rows, length):
    loss, batch = objective(stage, rows=rows, length=length)
    mesh = MeshConfig(*sizes)
    count = sizes[0] * sizes[1] * sizes[2]
    planned = step_memory(config, abstract_mesh(mesh, count), loss, batch)
    real = make_mesh(mesh, devices=jax.devices()[:count])
    arguments, temporary = allocated(config, real, loss, batch)
    assert planned.resident == pytest.approx(arguments, rel=0.01)
    assert planned.temporary == pytest.approx(temporary, rel=WITHIN)


@pytest.mark.parametrize(
    ("changes", "stage", "rows", "length"),
    [
        pytest.param({}, "sft", 8, 256, marks=pytest.mark.slow),
        pytest.param({"num_layers": 10}, "sft", 4, 256, marks=pytest.mark.slow),  # blocks in a loop
        pytest.param({"num_layers": 10}, "dpo", 4, 128, marks=pytest.mark.slow),
        ({"vocab_size": 32768}, "dpo", 4, 128),  # logits above all
        ({"hidden_size": 512, "intermediate_size": 2048}, "sft", 1, 64),  # gradients above all
    ],
)
def test_a_step_takes_what_was_planned(changes, stage, rows, length):
    config = dataclasses.replace(CONFIG, **changes)
    assert_planned(config, (1, 1, 1), stage, rows=rows, length=length)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("layers", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_each_of_eight_devices_takes_what_was_planned(sizes, layers):
    config = dataclasses.replace(CONFIG, num_layers=layers)
    assert_planned(config, sizes, "sft", rows=16, length=256)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_a_step_that_computes_blocks_again_takes_what_was_planned(remat):
    config, mesh = dataclasses.replace(CONFIG, num_layers=16), MeshConfig()
    loss, batch = objective("sft", rows=4, length=256)
    planned = step_memory(config, abstract_mesh(mesh, 1), loss, batch, remat=remat)
    real = make_mesh(mesh, devices=jax.devices()[:1])
    again = dataclasses.replace(loss, remat=remat)
    _, temporary = allocated(config, real, again, batch)
    assert planned.temporary == pytest.approx(temporary, rel=WITHIN)


@pytest.mark.slow
def test_a_batch_taken_in_parts_takes_what_was_planned():
    mesh, (loss, batch) = MeshConfig(), objective("sft", rows=8, length=256)
    planned = step_memory(CONFIG, abstract_mesh(mesh, 1), loss, batch, micro_batches=4)
    real = make_mesh(mesh, devices=jax.devices()[:1])
    arguments, temporary = allocated(CONFIG, real, loss, batch, micro_batches=4)
    assert planned.resident == pytest.approx(arguments, rel=0.01)
    assert planned.temporary == pytest.approx(temporary, rel=WITHIN)


def test_rematerialisation_leaves_block_inputs_and_one_block():
    loss, batch = objective("sft", rows=4, length=128)
    config = dataclasses.replace(CONFIG, num_layers=16)
    mesh = abstract_mesh(MeshConfig(), 1)
    none, dots, full = (step_memory(config, mesh, loss, batch, remat=r) for r in _REMAT)
    tokens = 4 * 128
    assert full.activations == 16 * tokens * 128 * 4
    # Products with weights: query, key, value, output, gate, up, down.
    products = 128 + 64 + 64 + 128 + 512 + 512 + 128
    assert dots.activations == full.activations + 16 * tokens * products * 4
    assert full.peak < dots.peak < none.peak
    assert {m.weights for m in (none, dots, full)} == {none.weights}


_REMAT = ("none", "dots", "full")


def test_adapters_have_gradients_and_moments_alone():
    loss, batch = objective("sft", rows=2, length=128)
    mesh = abstract_mesh(MeshConfig(), 1)
    adapted = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4))
    whole, few = (step_memory(c, mesh, loss, batch) for c in (CONFIG, adapted))
    assert few.moments == 2 * few.gradients
    assert few.gradients < whole.gradients / 10
    assert few.weights == whole.weights + few.gradients


def test_what_is_frozen_has_neither_gradient_nor_moments():
    loss, batch = objective("sft", rows=2, length=128)
    mesh = abstract_mesh(MeshConfig(), 1)
    trained = trained_paths(CONFIG, ("embedding",))
    found = step_memory(CONFIG, mesh, loss, batch, trained=trained)
    assert found.gradients == found.weights - 4 * 1024 * 128
    assert found.moments == 2 * found.gradients
    assert step_memory(CONFIG, mesh, loss, batch, moments=0).moments == 0


def test_models_beside_are_counted_as_often_as_they_lie_there():
    loss, batch = objective("sft", rows=2, length=64)
    mesh = abstract_mesh(MeshConfig(), 1)
    alone, beside = (step_memory(CONFIG, mesh, loss, batch, copies=n) for n in (0, 2))
    assert beside.peak - alone.peak == 2 * alone.weights
