"""Speakers of a run that adapt one base share its weights and a batch, and say the same."""

from __future__ import annotations

import dataclasses
import gc

import jax
import numpy as np
import pytest
from flax import nnx

from ixjax.generation import ModelSpeaker, SamplingConfig, play
from ixjax.models import LoraConfig, adapter_paths, add_lora, merge_lora
from ixjax.pipeline.sft import initial_model
from ixjax.training import load_model, save_model
from ixjax.training.saved_models import save_params
from tests.commands.conftest import untrained_run

LORA = LoraConfig(rank=2, alpha=8.0, targets=("query", "down"))
NAMES = ("policy_sft", "simulator", "simulator_heldout", "policy_dpo/imcts")
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run whose models are adapters of one base."""
    run = untrained_run(tmp_path_factory.mktemp("runs") / "adapted", models=(), sampling=GREEDY)
    base = initial_model(run, seed=0)
    save_model(base, run.directory.base, inputs="base")
    for seed, name in enumerate(NAMES):
        model = add_lora(base, LORA, seed=seed)
        for i, path in enumerate(adapter_paths(model.config)):
            weight = getattr(model.layers, path.removeprefix("layers."))
            key = jax.random.key(10 * seed + i)
            weight[...] = 0.5 * jax.random.normal(key, weight[...].shape)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        folder = run.directory.root / name
        save_params(params, model.config, folder, inputs=name, base=run.directory.base)
    return run


@pytest.fixture
def speaker(adapted):
    gc.collect()
    run = dataclasses.replace(adapted)  # with engines of its own
    return lambda name: run.speaker(
        run.directory.root / name, "user" if "simulator" in name else "policy"
    )


def test_two_speakers_of_one_base_share_an_engine_and_say_what_each_says_alone(adapted, speaker):
    policy, user = speaker("policy_sft"), speaker("simulator")
    assert policy.engine is user.engine
    alone = [
        ModelSpeaker(
            merge_lora(load_model(adapted.directory.root / name)),
            adapted.view(role),
            GREEDY,
            seed=0,
        )
        for name, role in (("policy_sft", "policy"), ("simulator", "user"))
    ]
    dialogues = [(root, (i,)) for i, root in enumerate(adapted.roots("test")[:3])]
    found, expected = (
        [rollout.said for rollout in play(*pair, dialogues, max_turns=2, rows=4)]
        for pair in ((policy, user), alone)
    )
    assert found == expected


def test_a_model_that_speaks_twice_has_one_place_and_places_are_used_again(speaker):
    policy, user = speaker("policy_sft"), speaker("simulator")
    assert speaker("simulator").adapter == user.adapter != policy.adapter
    heldout = speaker("simulator_heldout")
    assert (heldout.engine, {policy.adapter, user.adapter, heldout.adapter}) == (
        policy.engine,
        {0, 1, 2},
    )
    freed, policy = policy.adapter, None
    gc.collect()
    aligned = speaker("policy_dpo/imcts")
    assert (aligned.engine, aligned.adapter) == (user.engine, freed)


def test_more_speakers_than_places_get_another_engine(speaker):
    every = [speaker(name) for name in NAMES]
    assert len({one.engine for one in every}) == 2


def test_a_speakers_model_has_its_adapter_alone(adapted, speaker):
    policy, user = speaker("policy_sft"), speaker("simulator")
    tokens = np.array([[1, 20, 30, 40]], np.int32)
    for one, name in ((policy, "policy_sft"), (user, "simulator")):
        model = one.engine.model(one.adapter)
        expected = load_model(adapted.directory.root / name)
        assert model.config == expected.config
        np.testing.assert_array_equal(model(tokens), expected(tokens))
