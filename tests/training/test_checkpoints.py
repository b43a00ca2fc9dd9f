import json
import os
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ixjax.io import InputError
from ixjax.training import is_finished, load_model, model_fingerprint, save_model, train_sft
from tests.training.doubles import (
    CONFIG,
    SFT,
    counting_examples,
    ignore,
    mesh_of_eight,
    one_device,
    params,
    tiny_model,
)


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
    with pytest.raises(InputError, match=r"what was saved can't be read.*OUT_OF_RANGE") as refused:
        load_model(tmp_path)
    assert str(refused.value).count("\n") == 0
    assert refused.value.__suppress_context__
    for file in (tmp_path / "model" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError, match=r"model/params: what was saved can't be read"):
        load_model(tmp_path)


def test_half_written_checkpoint_is_ignored(tmp_path):
    class Stop(Exception):
        pass

    def train(directory, on_step):
        return train_sft(
            tiny_model(), counting_examples(60), counting_examples(10, seed=1), SFT,
            mesh=one_device(), seed=3, directory=directory, on_step=on_step,
        )  # fmt: skip

    def stop(metrics):
        if metrics["step"] == 8:
            raise Stop

    whole = train(tmp_path / "whole", ignore)
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop)
    steps = tmp_path / "cut" / "steps"
    assert {path.name for path in steps.iterdir()} == {"3", "6"}
    newest = steps / "6"
    # What Orbax leaves when it is killed while it writes: the state under a temporary name.
    unfinished = steps / "9.orbax-checkpoint-tmp"
    shutil.copytree(newest, unfinished)
    for file in list(unfinished.rglob("*"))[::2]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[:7])
    # And a model that was being written at the end.
    shutil.copytree(newest, tmp_path / "cut" / "model" / "params")
    assert not is_finished(tmp_path / "cut")
    seen = []
    again = train(tmp_path / "cut", lambda m: seen.append(m["step"]))
    assert seen[0] == 7
    for a, b in zip(params(whole), params(again), strict=True):
        np.testing.assert_array_equal(a, b)


KILLED = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
import dataclasses
from ixjax.training import train_sft
from tests.training.doubles import SFT, counting_examples, one_device, tiny_model
config = dataclasses.replace(SFT, steps=40, checkpoint_every=1)
train_sft(
    tiny_model(), counting_examples(60), counting_examples(10, seed=1), config, mesh=one_device(),
    seed=3, directory=sys.argv[1], on_step=lambda m: print(m["step"], flush=True),
)
"""


@pytest.mark.slow
def test_killed_training_continues_to_the_same_bits(tmp_path):
    def start(name):
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )

    with start("whole") as process:
        process.communicate()
        assert process.returncode == 0
    rng = np.random.default_rng(0)
    first_steps = []
    for steps in (1, 7, 12, 9):
        with start("cut") as process:
            assert process.stdout is not None
            seen = [int(process.stdout.readline()) for _ in range(steps)]
            first_steps.append(seen[0])
            time.sleep(rng.uniform(0, 0.05))  # anywhere within a step or a checkpoint
            process.kill()
    with start("cut") as process:
        process.communicate()
        assert process.returncode == 0
    assert first_steps == sorted(first_steps)
    assert first_steps[-1] > 15
    for a, b in zip(
        *(params(load_model(tmp_path / name, mesh=one_device())) for name in ("whole", "cut")),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
