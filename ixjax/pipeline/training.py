"""Parts that the training stages share: their arguments, and reports of their shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from ixjax.models import ModelConfig
from ixjax.models.placement import PlacedWeight, describe_sharding
from ixjax.pipeline.reporter import Reporter, report_step
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import Stage
from ixjax.training import TrainerConfig
from ixjax.training.steps import trained_paths


def training_arguments(
    run: Run, stage: Stage, reporter: Reporter, facts: dict[str, Any], *, shown: Sequence[str]
) -> dict[str, Any]:
    """Return the arguments of `train_sft` or `train_dpo` that follow from run and stage.

    Args:
        run: that the training belongs to.
        stage: the training.
        reporter: receives its steps.
        facts: receives the metrics of the last reported step.
        shown: names of the metrics in the progress line.
    """

    def on_step(metrics: dict[str, Any]) -> None:
        report_step(reporter, stage.title, metrics, shown=shown)
        run.log(stage.name, metrics)
        facts.update(metrics)

    return {
        "mesh": run.mesh,
        "directory": stage.model(run.directory),
        "on_step": on_step,
        "checkpoints": run.config.checkpoints,
        "resume": run.config.resume,
        "profiler": run.profiler(stage.name),
    }


def report_sharding(
    reporter: Reporter, what: str, model: ModelConfig, training: TrainerConfig, mesh: Mesh
) -> None:
    """Report a device's share of a model in training and, on several devices, the shardings.

    Args:
        reporter: receives the notes.
        what: name of the training.
        model: its initial model.
        training: its settings.
        mesh: the devices.
    """
    config = learning_config(model, training)
    trained = trained_paths(config, training.frozen)
    placement = describe_sharding(config, mesh, trained=trained)
    state = placement.state_bytes if training.optimizer.kind == "adamw" else 0
    reporter.note(
        f"{what}: {placement.weight_bytes / 1e6:,.1f} MB of weights and "
        f"{state / 1e6:,.1f} MB of optimiser state on each device"
    )
    if mesh.size == 1:
        return
    split: dict[str, list[str]] = {}
    for weight in placement.weights:
        split.setdefault(_over(weight), []).append(weight.name.removeprefix("layers."))
    for over, names in split.items():
        reporter.note(f"  {over}: {', '.join(names)}")


def learning_config(model: ModelConfig, training: TrainerConfig) -> ModelConfig:
    """Return the model that a training starts with, including its adapters."""
    return dataclasses.replace(model, lora=training.lora.to_config() or model.lora)


def _over(weight: PlacedWeight) -> str:
    """Return the sharding of a weight in words."""
    split = [
        f"{axis} over {' x '.join(mesh_axes) if isinstance(mesh_axes, tuple) else mesh_axes}"
        for axis, mesh_axes in zip(weight.axes, weight.mesh_axes, strict=True)
        if mesh_axes
    ]
    return "; ".join(split) or "whole on every device"
