"""Training steps that are compiled and never run on data, and peers' trainers with a clock."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from ixjax.models import ModelConfig
from ixjax.pipeline import RunConfig
from ixjax.pipeline.plan import training_objectives
from ixjax.training import OptimizerConfig
from ixjax.training.steps import make_steps

Stage = Literal["sft", "dpo"]


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step, lowered, and what it is made of.

    lowered: not yet compiled.
    state: that it takes, as shapes with their shardings.
    objective: what is minimised.
    batch: as shapes.
    config: of the model.
    """

    lowered: Any
    state: Any
    objective: Any
    batch: Any
    config: ModelConfig


def lower_step(
    stage: Stage,
    mesh: Mesh,
    *,
    rows: int,
    length: int,
    layers: int,
    hidden_size: int,
    vocab_size: int = 4096,
) -> Step:
    """The step of a stage, for so many rows (pairs) of so many tokens."""
    run = RunConfig()
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, max_length=length),
        sft=dataclasses.replace(run.sft, batch_size=rows),
        dpo=dataclasses.replace(run.dpo, batch_size=rows),
    )
    objective, batch = training_objectives(run)[stage]
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=layers,
        num_heads=hidden_size // 64,
        num_kv_heads=max(hidden_size // 128, 1),
        head_dim=64,
        intermediate_size=4 * hidden_size,
        max_length=length,
    )
    steps = make_steps(config, mesh, objective, OptimizerConfig().to_optax())
    rate = jax.ShapeDtypeStruct((), "float32")
    lowered = steps.train.lower(steps.abstract_state, {}, batch, rate)
    return Step(lowered, steps.abstract_state, objective, batch, config)


def timed(trainer: type) -> tuple[type, Any]:
    """A trainer of transformers' or TRL's that takes its data in order, and a clock for it.

    Returns:
        The class, and a callback whose `seconds` has the time of each step.
    """
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.start)

    class InOrder(trainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    return InOrder, Clock()
