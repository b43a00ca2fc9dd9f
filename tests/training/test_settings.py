"""Settings out of their range are refused by name and value; trainings share one config."""

import dataclasses

import pytest

from ixjax import io
from ixjax.training import (
    CheckpointConfig,
    DPOConfig,
    OptimizerConfig,
    ProfileConfig,
    SFTConfig,
    TrainerConfig,
)

NAN, INF = float("nan"), float("inf")
REFUSED = [
    (SFTConfig, "steps", 0, "1 or more"),
    (SFTConfig, "batch_size", 0, "1 or more"),
    (SFTConfig, "eval_every", 0, "1 or more"),
    (SFTConfig, "micro_batches", 0, "1 or more"),
    (SFTConfig, "patience", -1, "0 or more"),
    (SFTConfig, "prefix_outcome_rate", 1.5, "0 to 1"),
    (DPOConfig, "checkpoint_every", 0, "1 or more"),
    (DPOConfig, "log_every", 0, "1 or more"),
    (DPOConfig, "max_pairs", 0, "1 or more"),
    (DPOConfig, "rpo_alpha", NAN, "a finite number"),
    (DPOConfig, "row_length", -1, "0 or more"),
    (DPOConfig, "validation_fraction", 1.0, "0 or more, below 1"),
    (DPOConfig, "beta", -1.0, "above 0"),
    (DPOConfig, "variant", "kto", "sigmoid, .*simpo"),
    (OptimizerConfig, "learning_rate", 0.0, "above 0"),
    (OptimizerConfig, "learning_rate", INF, "a finite number"),
    (OptimizerConfig, "clip_norm", NAN, "a finite number"),
    (OptimizerConfig, "warmup_fraction", 1.0, "below 1"),
    (OptimizerConfig, "beta2", 1.0, "below 1"),
    (OptimizerConfig, "weight_decay", -0.1, "0 or more"),
    (OptimizerConfig, "final_fraction", 2.0, "0 to 1"),
    (CheckpointConfig, "keep", 0, "1 or more"),
    (CheckpointConfig, "keep_best", -1, "0 or more"),
    *(
        (ProfileConfig, "steps", s, "FIRST:LAST")
        for s in ("10", "10-15", "15:10", "0:3", ":5", "a:b", "1:2:3", "1: 2")
    ),
]


@pytest.mark.parametrize(("config", "setting", "value", "expected"), REFUSED)
def test_a_value_out_of_range_is_refused_by_name(config, setting, value, expected):
    with pytest.raises(ValueError, match=rf"{setting} is '?{value}'?; expected .*{expected}"):
        config(**{setting: value})


def test_label_smoothing_is_refused_where_the_loss_takes_none():
    with pytest.raises(ValueError, match=r"label_smoothing is 0.1; .* hinge"):
        DPOConfig(variant="hinge", label_smoothing=0.1)


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig])
def test_what_only_changes_how_a_training_runs_is_in_no_fingerprint(config):
    """Defaults that a subclass changes keep the metadata of the base."""
    base = {field.name: field.metadata for field in dataclasses.fields(TrainerConfig)}
    own = {field.name: field.metadata for field in dataclasses.fields(config)}
    assert {name: own[name] for name in base} == base
    other = config(checkpoint_every=7, log_every=3, micro_batches=2, remat="full")
    assert io.fingerprint(other) == io.fingerprint(config())
    assert io.fingerprint(config(steps=7)) != io.fingerprint(config())
