import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ixjax.io import InputError
from ixjax.models import LoraConfig, adapter_paths, add_lora
from ixjax.training import (
    CheckpointConfig,
    ResumeConfig,
    is_finished,
    load_model,
    model_fingerprint,
    save_model,
    train_sft,
)
from ixjax.training.checkpoints import Progress, TrainingCheckpoints
from ixjax.training.saved_models import base_of, load_adapter_weights, save_params
from tests.training.doubles import (
    CONFIG,
    SFT,
    counting_examples,
    mesh_of_eight,
    one_device,
    params,
    tiny_model,
)

# Where a file is damaged, Orbax ends while others of its reads are under way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def with_adapter(base):
    """Return the model with an adapter that is not zero."""
    model = add_lora(base, LoraConfig(rank=2, alpha=4.0), seed=3)
    for name in adapter_paths(model.config):
        weight = getattr(model.layers, name.removeprefix("layers."))
        weight[...] = jax.random.normal(jax.random.key(len(name)), weight[...].shape)
    return model


def as_dict(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_model_is_read_back_to_the_bit_on_any_mesh(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path)
    for mesh in (one_device(), mesh_of_eight(2, 2, 2)):
        again = load_model(tmp_path, mesh=mesh)
        assert again.config == CONFIG
        for a, b in zip(params(model), params(again), strict=True):
            np.testing.assert_array_equal(a, b)
        assert again.embedding[...].sharding.mesh == mesh


def test_saving_again_replaces_the_model(tmp_path):
    for seed in (0, 1):
        save_model(tiny_model(seed=seed), tmp_path)
    for a, b in zip(
        params(tiny_model(seed=1)), params(load_model(tmp_path, mesh=one_device())), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_models_that_adapt_one_base_hold_its_place_and_their_adapters_alone(tmp_path):
    base = tiny_model()
    save_model(base, tmp_path / "base", inputs="some")
    adapted = with_adapter(base)
    for place, kept in (("whole", None), ("adapter", tmp_path / "base")):
        save_params(as_dict(adapted), adapted.config, tmp_path / place, inputs="", base=kept)
    assert base_of(tmp_path / "whole") is None
    assert base_of(tmp_path / "adapter") == tmp_path / "base"
    found = load_model(tmp_path / "adapter", mesh=one_device())
    assert found.config == adapted.config
    for a, b in zip(params(adapted), params(found), strict=True):
        np.testing.assert_array_equal(a, b)
    weights = load_adapter_weights(tmp_path / "adapter", mesh=one_device())
    assert sorted(weights) == sorted(adapter_paths(adapted.config))
    shutil.move(tmp_path, moved := tmp_path.parent / f"{tmp_path.name} moved")
    assert load_model(moved / "adapter").config == adapted.config
    save_model(base, moved / "base", inputs="other")
    with pytest.raises(InputError, match=r"its base .*base is missing or another model.*some"):
        load_model(moved / "adapter")


def test_model_can_be_read_in_another_type(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path)
    half = load_model(tmp_path, mesh=one_device(), dtype="bfloat16")
    assert half.config.param_dtype == half.config.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(half.embedding[...], model.embedding[...].astype(jnp.bfloat16))


def test_fingerprint_follows_the_parameters_and_not_their_layout(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path)
    sharded = load_model(tmp_path, mesh=mesh_of_eight(2, 2, 2))
    assert model_fingerprint(model) == model_fingerprint(sharded)
    sharded.norm[...] = sharded.norm[...].at[0].add(1e-6)
    assert model_fingerprint(model) != model_fingerprint(sharded)


def test_folder_without_a_whole_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no finished model \(model/model.json is missing"):
        load_model(tmp_path)
    save_model(tiny_model(), tmp_path)
    record = tmp_path / "model" / "model.json"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps(kept | {"version": 99}))
    with pytest.raises(InputError, match=r"model.json: expected schema ixjax.model version 1"):
        load_model(tmp_path)
    record.write_text(json.dumps(kept | {"config": {"size": 3}}))
    with pytest.raises(InputError, match=r"`config` does not describe a model"):
        load_model(tmp_path)
    record.write_text(json.dumps(kept))
    shutil.rmtree(tmp_path / "model" / "params")
    with pytest.raises(InputError, match=r"model/params: no such folder; remove .* train again"):
        load_model(tmp_path)


def test_damaged_parameters_are_one_line(tmp_path):
    save_model(tiny_model(), tmp_path)
    for file in (tmp_path / "model" / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 5000:
            os.truncate(file, 1000)
    with pytest.raises(InputError, match=r"the files can't be read.*OUT_OF_RANGE") as refused:
        load_model(tmp_path)
    assert str(refused.value).count("\n") == 0
    assert refused.value.__suppress_context__
    for file in (tmp_path / "model" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError, match=r"model/params: the files can't be read"):
        load_model(tmp_path)


@pytest.mark.slow
def test_half_written_checkpoint_is_ignored(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=8)
    steps = tmp_path / "cut" / "steps"
    assert states(tmp_path / "cut") == {3, 6}
    # What Orbax leaves when it is killed while it writes: the state under a temporary name.
    unfinished = steps / "9.orbax-checkpoint-tmp"
    shutil.copytree(steps / "6", unfinished)
    for file in list(unfinished.rglob("*"))[::2]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[:7])
    # And a model that was being written at the end.
    shutil.copytree(steps / "6", tmp_path / "cut" / "model" / "params")
    assert not is_finished(tmp_path / "cut")
    told = []
    again = train(tmp_path / "cut", told=told)
    assert told[0]["step"] == 7
    for a, b in zip(params(whole), params(again), strict=True):
        np.testing.assert_array_equal(a, b)


def train(directory, *, stop=None, told=None, sft=SFT, mesh=None, **keywords):
    """One training, which Ctrl-C may end behind a step."""

    def on_step(metrics):
        if told is not None:
            told.append(metrics)
        if metrics["step"] == stop:
            raise KeyboardInterrupt

    return train_sft(
        tiny_model(), counting_examples(60), counting_examples(10, seed=1), sft,
        mesh=mesh or one_device(), seed=3, directory=directory, on_step=on_step, **keywords,
    )  # fmt: skip


def states(directory):
    return {int(path.name) for path in (directory / "steps").iterdir()}


def test_the_newest_states_and_those_of_the_lowest_validation_losses_are_kept(tmp_path):
    state = {"weight": jnp.zeros(3)}
    config = CheckpointConfig(keep=2, keep_best=2)
    losses = {1: 0.9, 2: 0.2, 3: None, 4: 0.3, 5: 0.8, 6: 0.7, 7: None, 8: 0.1, 9: 0.6, 10: 0.5}
    kept = {5: {2, 4, 5}, 7: {2, 4, 6, 7}, 10: {2, 8, 9, 10}}
    for steps in (range(1, 6), range(6, 8), range(8, 11)):  # interrupted twice
        with TrainingCheckpoints(tmp_path, "inputs", config=config) as checkpoints:
            for step in steps:
                checkpoints.save(state, None, Progress(step), validation_loss=losses[step])
        assert states(tmp_path) == kept[steps[-1]]


def test_what_is_written_is_the_state_of_its_step_though_the_next_steps_replace_it(tmp_path):
    shape = (400, 1000)
    state = jnp.zeros(shape)
    abstract = jax.ShapeDtypeStruct(shape, state.dtype, sharding=state.sharding)
    add = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)
    with TrainingCheckpoints(tmp_path, "inputs", config=CheckpointConfig(keep=5)) as checkpoints:
        for step in (1, 2, 3):
            for _ in range(5):
                state = add(state)
            checkpoints.save(state, None, Progress(step))
        for _ in range(5):
            state = add(state)
    for step in (3, 2, 1):
        with TrainingCheckpoints(tmp_path, "inputs") as checkpoints:
            found = checkpoints.latest(abstract, None)
        assert found is not None
        assert found[2].step == step
        np.testing.assert_array_equal(found[0], np.full(shape, 5 * step, np.float32))
        shutil.rmtree(tmp_path / "steps" / str(step))


@pytest.mark.slow
def test_training_continues_on_another_mesh(tmp_path):
    whole, told = [], []
    train(tmp_path / "whole", told=whole, mesh=mesh_of_eight(8, 1, 1))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=7, mesh=mesh_of_eight(8, 1, 1))
    train(tmp_path / "cut", told=told, mesh=mesh_of_eight(2, 2, 2))
    assert told[0]["resumed_at"] == 6
    expected = [m["loss"] for m in whole if m["step"] > 6]
    np.testing.assert_allclose([m["loss"] for m in told], expected, rtol=1e-5)


def truncate_large(state):
    for file in state.rglob("*"):
        if file.is_file() and file.stat().st_size > 2000:
            os.truncate(file, 100)


def lose_arrays(state):
    for file in state.rglob("manifest.ocdbt"):
        file.unlink()


def empty_all(state):
    for file in state.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def lose_metadata(state):
    (state / "_CHECKPOINT_METADATA").unlink()


@pytest.mark.parametrize("damage", [truncate_large, lose_arrays, empty_all, lose_metadata])
def test_damaged_state_is_named_and_the_one_before_used_only_where_that_is_allowed(
    tmp_path, damage, caplog
):
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=10)
    newest = tmp_path / "cut" / "steps" / "9"
    damage(newest)
    expected = f"{re.escape(str(newest))}: the files can't be read.* --resume.allow-older"
    with pytest.raises(InputError, match=expected) as refused:
        train(tmp_path / "cut")
    assert str(refused.value).count("\n") == 0
    assert states(tmp_path / "cut") == {6, 9}
    told = []
    again = train(tmp_path / "cut", told=told, resume=ResumeConfig(allow_older=True))
    assert told[0]["resumed_at"] == 6
    assert f"{newest}: the files can't be read" in caplog.text
    for a, b in zip(params(whole), params(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_training_whose_only_state_is_damaged_is_not_begun_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop=4)
    truncate_large(tmp_path / "steps" / "3")
    for allowed in (False, True):
        with pytest.raises(InputError, match=r"remove .*/steps to train from the start"):
            train(tmp_path, resume=ResumeConfig(allow_older=allowed))
    assert states(tmp_path) == {3}


@contextlib.contextmanager
def mounted(folder, *arguments):
    """A file system of its own at a folder, where that is allowed."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None or subprocess.run(
        ["mount", *arguments, str(folder)], capture_output=True, check=False
    ).returncode:  # fmt: skip
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_at_the_next_step_and_earlier_states_stay_whole(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "none") as small:
        told = []
        kept = CheckpointConfig(keep=50)
        every = dataclasses.replace(SFT, steps=50, checkpoint_every=1)
        with pytest.raises(OSError, match=r"the state of step \d+ could not be written") as failed:
            train(small, sft=every, told=told, checkpoints=kept)
        assert not isinstance(failed.value, InputError)
        assert "No space left on device" in str(failed.value)
        assert str(failed.value).count("\n") == 0
        whole = sorted(step for step in map(int, re.findall(r"\d+", str(failed.value)[-40:])))
        last = max(int(path.name) for path in (small / "steps").iterdir() if path.name.isdecimal())
        assert last == whole[-1]
        assert told[-1]["step"] <= last + 3  # the failing one, and who notices it
        shutil.copytree(small, tmp_path / "roomy")
    resumed = []
    again = train(tmp_path / "roomy", sft=every, told=resumed)
    assert resumed[0]["resumed_at"] == last
    for a, b in zip(params(train(tmp_path / "whole", sft=every)), params(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_that_cannot_be_written_is_one_line_and_keeps_its_states(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", stop=7)
    with mounted(tmp_path / "run", "--bind", str(tmp_path / "run")) as run:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        with pytest.raises(OSError, match="Read-only file system") as failed:
            train(run)
        assert not isinstance(failed.value, PermissionError)  # which commands take for bad input
        assert str(failed.value).count("\n") == 0
    assert states(tmp_path / "run") == {3, 6}


KILLED = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
import dataclasses
from ixjax.training import train_sft
from tests.training.doubles import SFT, counting_examples, one_device, tiny_model
config = dataclasses.replace(SFT, steps=60, checkpoint_every=1)
train_sft(
    tiny_model(), counting_examples(60), counting_examples(10, seed=1), config, mesh=one_device(),
    seed=3, directory=sys.argv[1], on_step=lambda m: print(m["step"], flush=True),
)
"""


@pytest.mark.slow
def test_a_training_killed_at_ten_random_moments_ends_in_the_same_bits(tmp_path):
    def start(name):
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )

    with start("whole") as process:
        process.communicate()
        assert process.returncode == 0
    rng = np.random.default_rng(0)
    first_steps = []
    for _ in range(10):
        with start("cut") as process:
            assert process.stdout is not None
            seen = [int(process.stdout.readline()) for _ in range(rng.integers(1, 8))]
            first_steps.append(seen[0])
            time.sleep(rng.uniform(0, 0.05))  # anywhere within a step or a checkpoint
            process.kill()
    with start("cut") as process:
        process.communicate()
        assert process.returncode == 0
    assert first_steps == sorted(first_steps)
    assert 10 < first_steps[-1] < 60
    for a, b in zip(
        *(params(load_model(tmp_path / name, mesh=one_device())) for name in ("whole", "cut")),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
