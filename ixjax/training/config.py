"""The settings that every training has; `SFTConfig` and `DPOConfig` add their own."""

from __future__ import annotations

import dataclasses

from ixjax import io
from ixjax.models import LoraArguments, Remat
from ixjax.training.optimizer import OptimizerConfig
from ixjax.training.ranges import COUNT, NOT_NEGATIVE, check_ranges


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """Steps, batches, validation and optimiser of a training."""

    steps: int = 300
    """Optimiser steps; early stopping may end it before."""
    batch_size: int = 16
    """Packed rows of model.max_length tokens (SFT), or pairs (DPO), per step."""
    eval_every: int = 50
    """Steps between validations; the parameters of the best one are kept."""
    patience: int = 0
    """Validations without a better loss after which training stops; 0: never."""
    checkpoint_every: int = dataclasses.field(default=100, metadata=io.NO_EFFECT)
    """Steps between checkpoints."""
    checkpoint_minutes: float = dataclasses.field(default=5.0, metadata=io.NO_EFFECT)
    """Minutes after which a checkpoint is written in any case; 0: by steps alone."""
    log_every: int = dataclasses.field(default=10, metadata=io.NO_EFFECT)
    """Steps between lines of metrics.jsonl."""
    micro_batches: int = dataclasses.field(default=1, metadata=io.NO_EFFECT)
    """Parts of a batch, computed one after the other: less memory, the same gradient."""
    remat: Remat = dataclasses.field(default="none", metadata=io.NO_EFFECT)
    """What the backward pass recomputes: none, dots (all but products with weights), full (all)."""
    frozen: tuple[str, ...] = ()
    """Weights that are not trained, by path: embedding, head, layers.query, ..."""
    lora: LoraArguments = dataclasses.field(default_factory=LoraArguments)
    """Adapters that learn while the base is frozen."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """The optimiser."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_ranges(
            self,
            steps=COUNT,
            batch_size=COUNT,
            eval_every=COUNT,
            patience=NOT_NEGATIVE,
            checkpoint_every=COUNT,
            checkpoint_minutes=NOT_NEGATIVE,
            log_every=COUNT,
            micro_batches=COUNT,
        )
