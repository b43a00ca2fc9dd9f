"""Supervised fine-tuning of one speaker on packed dialogues."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import Rendered
from ixjax.models import Transformer
from ixjax.training.batching import (
    PackedRows,
    batch_order,
    num_rows,
    pack,
    pad_rows,
    take,
)
from ixjax.training.objectives import sft_loss, token_logprobs
from ixjax.training.trainer import OnStep, OptimizerConfig, Training, mean_loss, train


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """How the speakers learn from the human dialogues."""

    steps: int = 300
    """Optimiser steps; early stopping may end it before."""
    batch_size: int = 16
    """Packed rows of model.max_length tokens a step."""
    eval_every: int = 50
    """Steps between validation losses."""
    patience: int = 3
    """Validations without a better loss after which training stops; 0: never."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    prefix_outcome_rate: float = 0.25
    """Share of the earlier user turns after which the simulator also learns the outcome."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        for name in ("steps", "batch_size", "eval_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.prefix_outcome_rate <= 1:
            raise ValueError(
                f"prefix_outcome_rate is {self.prefix_outcome_rate}; it must be in [0, 1]"
            )


def packed_loss(
    model: Transformer, batch: PackedRows
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood of the scored targets: sum, number, and summed metrics."""
    logits = model(batch.tokens, batch.positions, batch.segment_ids)
    total, weight = sft_loss(token_logprobs(logits, batch.targets), batch.weights)
    # Metrics are divided by the weight, so what is to be a plain count is multiplied by it.
    tokens = jnp.sum(batch.segment_ids > 0) * jnp.maximum(weight, 1.0)
    return total, weight, {"tokens": tokens}


def train_sft(
    model: Transformer,
    train_examples: Sequence[Rendered],
    valid_examples: Sequence[Rendered],
    config: SFTConfig,
    *,
    mesh: Mesh,
    seed: int,
    directory: str | Path,
    on_step: OnStep,
) -> Transformer:
    """Fine-tune `model`; resumes from `directory`, and leaves the best model there.

    Raises:
        InputError: there is nothing to train or to validate on.
    """
    length = model.config.max_length
    rows = pack(train_examples, length=length)
    order = batch_order(num_rows(rows), batch_size=config.batch_size, seed=seed)
    training = Training(
        loss=packed_loss,
        batch=lambda step: take(rows, np.asarray(order[step])),
        steps=config.steps,
        optimizer=config.optimizer,
        inputs=io.fingerprint(
            "sft", config, seed, model.config, [len(train_examples), len(valid_examples)]
        ),
        validation=_in_batches(pack(valid_examples, length=length), config.batch_size),
        eval_every=config.eval_every,
        patience=config.patience,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
    )
    return train(model, training, mesh=mesh, directory=directory, on_step=on_step)


def validation_loss(model: Transformer, examples: Sequence[Rendered], *, batch_size: int) -> float:
    """Mean negative log-likelihood of a scored token, in nats."""
    rows = pack(examples, length=model.config.max_length)
    return mean_loss(model, packed_loss, _in_batches(rows, batch_size))


def _in_batches(rows: PackedRows, batch_size: int) -> list[PackedRows]:
    """All rows in order; the last batch is filled up with rows that have no weight."""
    rows = pad_rows(rows, multiple=batch_size)
    starts = range(0, num_rows(rows), batch_size)
    return [take(rows, np.arange(start, start + batch_size)) for start in starts]
