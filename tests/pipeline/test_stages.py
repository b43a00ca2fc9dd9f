"""One table says what a stage is made from, what it leaves and which command runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ixjax import io
from ixjax.commands import main
from ixjax.dialogue.preferences import PreferencesConfig
from ixjax.pipeline import COMMANDS, RunConfig
from ixjax.pipeline.stages import STAGES, Inputs, model_stages, stage_names

DIRECTORY = io.RunDirectory(Path("run"))
CONFIG = RunConfig(preferences=PreferencesConfig(path="pairs.jsonl"))
# Of CONFIG, by the version whose run directories must stay readable.
RECORDED = {
    "prepare": "4b5c6ea5164f2f84",
    "sft/policy": "da8dfa3f98b92853",
    "sft/simulator": "9c9b7817cfa42876",
    "sft/simulator_heldout": "29a4c36c77b7269a",
    "search": "78e84bdac5b164d6",
    "pairs": "2e093d204484e618",
    "dpo/human": "e4ef6b42c3d916fb",
    "dpo/imcts": "e2b5ab2cbca56208",
    "dpo/mix": "0f66a0e02f8ae1ae",
    "dpo/preferences": "78084c9a3bb6658b",
    "evaluate": "1e83118b02b18f2c",
}


def test_every_command_runs_stages_and_every_stage_has_a_command():
    assert {stage.command for stage in STAGES.values()} == set(COMMANDS)
    assert {*COMMANDS, "pipeline"} == set(main.STAGES)
    joint = {stage.command for stage in STAGES.values() if stage.role}
    assert {*joint, "export"} == set(main.JOINT)


def test_fingerprints_of_existing_run_directories_do_not_change():
    """Computed before stages were one table, by the functions that were there."""
    found = {name: Inputs(CONFIG, "corpus", "file").of(name) for name in STAGES}
    assert found == RECORDED


@pytest.mark.parametrize(
    ("section", "setting", "value", "stale", "fresh"),
    [
        ("sft", "steps", 7, {"sft/policy", "search", "dpo/preferences", "evaluate"}, {"prepare"}),
        ("sft", "eval_examples", 9, {"sft/policy", "search", "evaluate"}, {"prepare"}),
        ("sft", "checkpoint_minutes", 9.0, set(), set(STAGES)),
        ("search", "width", 3, {"search", "dpo/imcts", "evaluate"}, {"dpo/preferences"}),
        ("pairs", "min_visits", 3, {"pairs", "dpo/mix", "evaluate"}, {"search"}),
        ("dpo", "beta", 0.2, {"dpo/human", "dpo/preferences", "evaluate"}, {"pairs"}),
        ("evaluation", "samples", 3, {"evaluate"}, {"dpo/mix"}),
        ("engine", "rows", 8, set(), set(STAGES)),
    ],
)
def test_a_setting_makes_its_stage_and_the_stages_after_it_stale(
    section, setting, value, stale, fresh
):
    part = dataclasses.replace(getattr(CONFIG, section), **{setting: value})
    other = dataclasses.replace(CONFIG, **{section: part})
    before, after = Inputs(CONFIG, "corpus", "file"), Inputs(other, "corpus", "file")
    changed = {name for name in STAGES if before.of(name) != after.of(name)}
    assert stale <= changed
    assert not changed & fresh


def test_models_are_named_by_their_folders():
    folders = [
        stage.model(DIRECTORY).relative_to("run").as_posix() for stage in model_stages(CONFIG)
    ]
    assert folders == [
        "policy_sft", "simulator", "simulator_heldout", "policy_dpo/human", "policy_dpo/imcts",
        "policy_dpo/mix", "policy_dpo/preferences",
    ]  # fmt: skip
    assert {"data", "tokenizer", "trees", "policy_sft", "policy_dpo", "evaluation"} <= {
        *stage_names(DIRECTORY)
    }
