"""A plan adds up, and says what does not fit and what to do about it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ixjax.devices import KINDS, REPORTED, known_kind
from ixjax.generation import SamplingConfig
from ixjax.io import InputError
from ixjax.models import ModelArguments
from ixjax.models.costs import training_flops
from ixjax.parallel import MeshConfig
from ixjax.pipeline import PlanConfig, make_plan
from ixjax.pipeline.config import ProcessesConfig
from ixjax.pipeline.workload import count_corpus, stage_work
from ixjax.search import run as search
from tests.end_to_end.tiny import tiny_run
from tests.test_docs import LLAMA_8B

SMALL = PlanConfig(peak_tflops=1.0, memory_gb=1.0, bandwidth_gb=10.0)


def by_stage(plan):
    return {e.work.stage: e for e in plan.estimates}


def test_training_takes_the_tokens_and_operations_of_its_steps(tmp_path):
    config = tiny_run(tmp_path / "none")
    plan = make_plan(config, SMALL, devices=8)
    sft = by_stage(plan)["sft"]
    assert sft.work.trained == 3 * 4 * 8 * 224  # models, steps, rows, tokens
    model = config.model.to_config(config.tokenizer.vocab_size)
    assert sft.flops == training_flops(model, sft.work.trained, 224)
    assert sft.seconds == pytest.approx(sft.flops / (8 * 1e12 * SMALL.utilisation))
    assert plan.parameters == model.num_parameters
    assert plan.mesh == {"data": 8, "fsdp": 1, "tensor": 1}


def test_a_prepared_run_is_counted_and_another_is_assumed(untrained, tmp_path):
    counted = count_corpus(untrained)
    assert not counted.assumed
    assert (counted.searched, counted.held_out) == (4, 4)
    assert 2 < counted.turn_tokens < counted.root_tokens < untrained.config.model.max_length
    other = dataclasses.replace(untrained.config, out=str(tmp_path / "none"))
    plan = make_plan(other, PlanConfig(), devices=1)
    assert "no prepared run at --out" in plan.assumed[0]
    assert "no prepared run at out" not in make_plan(untrained.config, SMALL, devices=1).assumed[0]


@pytest.mark.slow
def test_a_search_takes_no_more_than_was_planned(untrained):
    """Against the engines' own counts of a whole search with these settings."""
    roots = untrained.roots("train")[:4]
    config = untrained.config.search
    policy = untrained.speaker(untrained.directory.policy_sft, "policy")
    simulator = untrained.speaker(untrained.directory.simulator, "user")
    stats = untrained.engine_stats
    before = stats.copy()
    list(search(policy, simulator, untrained.scenario, roots, config))
    spent = stats - before
    corpus = dataclasses.replace(
        count_corpus(untrained), turn_tokens=untrained.config.sampling.max_new_tokens
    )
    planned = {w.stage: w for w in stage_work(untrained.config, corpus)}["search"]
    assert spent.decode_tokens <= planned.sampled < 12 * spent.decode_tokens


def test_what_is_not_known_of_a_device_is_not_estimated(tmp_path):
    plan = make_plan(tiny_run(tmp_path / "none"), PlanConfig(), devices=1)
    assert {e.seconds for e in plan.estimates} == {None}
    assert not plan.warnings


def test_a_known_device_has_its_makers_figures_unless_others_are_given():
    assert PlanConfig(device="h100").figure("peak_tflops") == 989
    assert PlanConfig(device="h100", memory_gb=94.0).figure("memory_gb") == 94
    assert known_kind("NVIDIA H100 80GB HBM3") == KINDS["h100"]
    assert known_kind("NVIDIA H100 PCIe") is None
    assert set(REPORTED.values()) == set(KINDS)


@pytest.mark.parametrize(
    ("changes", "stage", "flag"),
    [
        ({"model": ModelArguments(hidden_size=2048, num_layers=16)}, "sft", "--mesh.fsdp"),
        ({"model": ModelArguments(num_layers=16, max_length=4096)}, "sft", "--sft.remat"),
        ({"model": ModelArguments(num_layers=16, max_length=4096)}, "search", "--engine.rows"),
    ],
)
@pytest.mark.slow
def test_what_does_not_fit_names_the_flag_to_change(tmp_path, changes, stage, flag):
    config = tiny_run(tmp_path / "none", **changes)
    warnings = make_plan(config, SMALL, devices=1).warnings
    [mine] = [line for line in warnings if line.startswith(f"{stage} needs")]
    assert "on a device of 1 GB" in mine
    assert flag in mine
    roomy = dataclasses.replace(SMALL, memory_gb=1000.0)
    assert not make_plan(config, roomy, devices=1).warnings


def test_a_checkpoint_is_planned_from_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    config = tiny_run(
        tmp_path / "none",
        model=ModelArguments(path=str(tmp_path), max_length=2048, compute_dtype="bfloat16"),
        sampling=SamplingConfig(max_new_tokens=128),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
    plan = make_plan(config, PlanConfig(device="h100"), devices=64)
    assert plan.parameters == 8_030_261_248
    assert plan.training["dpo"].weights == pytest.approx(
        4 * plan.parameters / 64, rel=3e-3
    )  # norms are whole
    assert plan.training["dpo"].moments == 2 * plan.training["dpo"].weights


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"mesh": MeshConfig(data=3)}, 8, "needs a multiple of 3 devices; 8 found"),
        ({"processes": ProcessesConfig(count=3)}, 8, "devices is 8; .*processes.count .3."),
        ({"model": ModelArguments(path="nowhere")}, 8, "nowhere/config.json: no such file"),
    ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, changes, devices, message):
    with pytest.raises(InputError, match=message):
        make_plan(tiny_run(tmp_path / "none", **changes), SMALL, devices=devices)


@pytest.mark.parametrize("bad", [{"peak_tflops": 0.0}, {"utilisation": 1.5}, {"memory_gb": -1.0}])
def test_impossible_devices_are_refused(bad):
    [name] = bad
    with pytest.raises(InputError, match=f"plan.{name} is"):
        PlanConfig(**bad)
