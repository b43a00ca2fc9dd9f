import dataclasses

import jax
import numpy as np
import pytest

from ixjax.models import mesh_of
from ixjax.training import OptimizerConfig, train_dpo, train_sft
from ixjax.training.sft import SFTObjective
from ixjax.training.steps import make_loss_step, make_steps, trained_paths
from tests.training.doubles import (
    CONFIG,
    DPO,
    SFT,
    counting_examples,
    ignore,
    mesh_of_eight,
    one_device,
    params,
    random_pairs,
    tiny_model,
)


class Interrupted(Exception):
    pass


def run(objective, directory, *, on_step=ignore, mesh=None, seed=3, sft=SFT):
    """One training of either objective."""
    mesh = mesh or one_device()
    kept = {"mesh": mesh, "seed": seed, "directory": directory, "on_step": on_step}
    if objective == "sft":
        train, valid = counting_examples(60, seed=seed), counting_examples(10, seed=99)
        return train_sft(tiny_model(), train, valid, sft, **kept)
    return train_dpo(tiny_model(), random_pairs(20), DPO, **kept)


def interrupted_at(step):
    def on_step(metrics):
        if metrics["step"] == step:
            raise Interrupted

    return on_step


def assert_equal_models(first, second):
    for a, b in zip(params(first), params(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_interrupted_training_ends_in_the_same_bits(tmp_path, objective):
    whole = run(objective, tmp_path / "whole")
    steps = []
    for stop in (2, 5, 11):  # before the first checkpoint, between two, just before the end
        with pytest.raises(Interrupted):
            run(objective, tmp_path / "cut", on_step=interrupted_at(stop))
    cut = run(objective, tmp_path / "cut", on_step=lambda m: steps.append(m["step"]))
    assert steps == [10, 11, 12]  # the newest checkpoint was of step 9
    assert_equal_models(whole, cut)


def test_best_model_and_patience_survive_an_interruption(tmp_path):
    # The peak rate is far too high: some validations bring no gain.
    sft = dataclasses.replace(
        SFT,
        steps=24,
        eval_every=2,
        patience=3,
        optimizer=OptimizerConfig(learning_rate=0.3, weight_decay=0.0),
    )
    losses = {"whole": {}, "cut": {}}

    def listen(name, stop=None):
        def on_step(metrics):
            if "validation_loss" in metrics:
                losses[name][metrics["step"]] = metrics["validation_loss"]
            if metrics["step"] == stop:
                raise Interrupted

        return on_step

    whole = run("sft", tmp_path / "whole", on_step=listen("whole"), sft=sft)
    last = max(losses["whole"])
    for stop in range(4, last, 5):
        with pytest.raises(Interrupted):
            run("sft", tmp_path / "cut", on_step=listen("cut", stop), sft=sft)
    cut = run("sft", tmp_path / "cut", on_step=listen("cut"), sft=sft)
    assert losses["cut"] == losses["whole"]
    assert_equal_models(whole, cut)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_finished_training_is_read_and_not_run_again(tmp_path, objective):
    first = run(objective, tmp_path)
    assert not (tmp_path / "steps").exists()
    second = run(objective, tmp_path, on_step=interrupted_at(1))
    assert_equal_models(first, second)


def test_training_of_other_data_does_not_continue_from_the_old_checkpoint(tmp_path):
    with pytest.raises(Interrupted):
        run("sft", tmp_path / "a", on_step=interrupted_at(8))
    steps = []
    other = run("sft", tmp_path / "a", seed=4, on_step=lambda m: steps.append(m["step"]))
    assert steps[0] == 1
    assert_equal_models(other, run("sft", tmp_path / "b", seed=4))


def test_a_state_is_saved_after_some_minutes_whatever_the_steps(tmp_path):
    seldom = dataclasses.replace(SFT, checkpoint_every=100)
    for name, minutes in (("steps", 0.0), ("long", 60.0), ("short", 1e-6)):
        sft = dataclasses.replace(seldom, checkpoint_minutes=minutes)
        with pytest.raises(Interrupted):
            run("sft", tmp_path / name, sft=sft, on_step=interrupted_at(5))
        told = []
        run("sft", tmp_path / name, sft=sft, on_step=told.append)
        assert told[0].get("resumed_at") == (4 if name == "short" else None)


def test_steps_since_adds_up_to_all_steps_also_after_an_interruption(tmp_path):
    with pytest.raises(Interrupted):
        run("sft", tmp_path, on_step=interrupted_at(8))
    told = []
    run("sft", tmp_path, on_step=told.append)
    assert sum(metrics["steps_since"] for metrics in told) == SFT.steps
    # Checkpoints are written every third step; it is told once where the training goes on.
    assert [metrics.get("resumed_at") for metrics in told] == [6, *[None] * 5]


def test_trainings_of_equal_shape_share_one_compilation(tmp_path):
    compiled = [
        make_steps(
            CONFIG,
            one_device(),
            SFTObjective(),
            SFT.optimizer.to_optax(),
            trained=trained_paths(CONFIG),
            micro_batches=1,
        ).train,
        make_loss_step(CONFIG, one_device(), SFTObjective()),
    ]
    before = [function._cache_size() for function in compiled]
    short = dataclasses.replace(SFT, steps=4)
    for seed, name in enumerate(("policy", "simulator", "simulator_heldout")):
        run("sft", tmp_path / name, seed=seed, sft=short)
    slower = dataclasses.replace(SFT.optimizer, learning_rate=1e-3)
    run("sft", tmp_path / "slower", sft=dataclasses.replace(SFT, steps=6, optimizer=slower))
    for function, size in zip(compiled, before, strict=True):
        assert function._cache_size() <= size + 1


def test_parameters_and_optimiser_state_are_sharded_alike(tmp_path):
    mesh = mesh_of_eight(2, 2, 2)
    steps = make_steps(CONFIG, mesh, SFTObjective(), SFT.optimizer.to_optax())
    abstract, opt_state = steps.abstract_state
    sharded = {leaf.sharding.spec for leaf in jax.tree.leaves(abstract)}
    assert jax.sharding.PartitionSpec(None, "fsdp", "tensor") in sharded
    moments = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.ndim]
    expected = [leaf.sharding for leaf in jax.tree.leaves(abstract)]
    assert [leaf.sharding for leaf in moments] == expected * 2
    model = run("sft", tmp_path, mesh=mesh)
    assert [leaf.sharding for leaf in jax.tree.leaves(model)] == expected
    assert mesh_of(model) == mesh


def test_training_on_eight_devices_resumes_to_the_same_bits(tmp_path):
    mesh = mesh_of_eight(2, 4, 1)
    whole = run("sft", tmp_path / "whole", mesh=mesh)
    with pytest.raises(Interrupted):
        run("sft", tmp_path / "cut", mesh=mesh, on_step=interrupted_at(8))
    assert_equal_models(whole, run("sft", tmp_path / "cut", mesh=mesh))


def test_loss_that_is_not_finite_ends_training_and_is_never_kept(tmp_path):
    sft = dataclasses.replace(
        SFT,
        checkpoint_every=1,
        log_every=1000,
        optimizer=OptimizerConfig(learning_rate=1e30, weight_decay=0.0),
    )
    with pytest.raises(FloatingPointError, match=r"at step \d of 12 the loss is"):
        run("sft", tmp_path, sft=sft)
    steps = [int(path.name) for path in (tmp_path / "steps").iterdir()]
    assert steps == [1]  # the state after the first step, whose own loss was finite


@pytest.mark.slow
def test_a_batch_that_the_mesh_does_not_divide_trains_as_on_one_device(tmp_path):
    sft = dataclasses.replace(SFT, batch_size=6)
    losses = []
    for name, mesh in (("eight", mesh_of_eight(4, 2, 1)), ("one", None)):
        steps: list[dict] = []
        run("sft", tmp_path / name, mesh=mesh, sft=sft, on_step=steps.append)
        losses.append([step["loss"] for step in steps])
    np.testing.assert_allclose(*losses, rtol=1e-5)
