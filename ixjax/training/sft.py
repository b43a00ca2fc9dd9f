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
from ixjax.models import Remat, Transformer, mesh_of, new_adapter
from ixjax.training.batching import (
    Rows,
    in_batches,
    mixed_numbers,
    pack,
    take,
    tree_bytes,
)
from ixjax.training.checkpoints import CheckpointConfig, ResumeConfig
from ixjax.training.config import TrainerConfig
from ixjax.training.objectives import sft_loss
from ixjax.training.profiling import Profiler
from ixjax.training.ranges import NOT_NEGATIVE, SHARE, check_ranges
from ixjax.training.saved_models import model_fingerprint
from ixjax.training.scoring import scored_logprobs
from ixjax.training.steps import Weight, make_eval_step, mean_loss, place_batch, place_params
from ixjax.training.trainer import OnStep, Training, train


@dataclasses.dataclass(frozen=True)
class SFTConfig(TrainerConfig):
    """How the speakers learn from the human dialogues."""

    patience: int = 3
    eval_examples: int = dataclasses.field(default=0, metadata=io.ADDED)
    """Examples of a validation, drawn once by the seed; 0: all."""
    prefix_outcome_rate: float = 0.25
    """Share of the earlier user turns after which the simulator also learns the outcome."""
    outcome_weight: float = dataclasses.field(default=1.0, metadata=io.ADDED)
    """Weight of a token of an outcome line in the simulators' loss; a token of a turn has 1."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        super().__post_init__()
        check_ranges(
            self,
            prefix_outcome_rate=SHARE,
            eval_examples=NOT_NEGATIVE,
            outcome_weight=NOT_NEGATIVE,
        )


@dataclasses.dataclass(frozen=True)
class SFTObjective:
    """Weighted mean negative log-likelihood of the tokens of packed rows; an `Objective`."""

    remat: Remat = "none"

    def weight(self, rows: Rows) -> dict[str, jax.Array]:
        """See `Objective.weight`."""
        return {"tokens": jnp.sum(rows.weights)}

    def __call__(
        self, model: Transformer, rows: Rows, weight: Weight
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Objective.__call__`."""
        total, _ = sft_loss(scored_logprobs(model, rows, remat=self.remat), rows.weights)
        return total / weight["tokens"], {}


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
    checkpoints: CheckpointConfig | None = None,
    resume: ResumeConfig | None = None,
    profiler: Profiler | None = None,
    base: Path | None = None,
) -> Transformer:
    """Fine-tune `model`; resumes from `directory`, and leaves the best model there.

    Args:
        model: the initial model; the same at every call that resumes.
        train_examples: rendered for the speaker.
        valid_examples: the same for held-out dialogues, for early stopping.
        config: steps and optimiser.
        mesh: the devices.
        seed: of the order of the rows.
        directory: of the states, and of the best model.
        on_step: called with metrics; see `ixjax.training.trainer.train`.
        checkpoints: states to keep.
        resume: states to continue from.
        profiler: traces steps.
        base: folder of the saved model that `model` is or adapts; only adapters are written.

    Returns:
        The model with the lowest validation loss. A finished training is read from `directory`.

    Raises:
        InputError: no example has a scored token, or an example is too long.
    """
    began = model_fingerprint(model)
    model = new_adapter(model, config.lora.to_config(), seed=seed)
    length = model.config.max_length
    weight = config.outcome_weight
    rows = pack(train_examples, length=length, outcome_weight=weight)
    chosen = np.random.default_rng(seed).permutation(len(valid_examples))
    chosen = chosen[: config.eval_examples or None]
    held_out = [valid_examples[i] for i in sorted(chosen)]
    validation = pack(held_out, length=length, outcome_weight=weight)
    scored = np.count_nonzero(rows.weights, axis=1)
    numbers = mixed_numbers(scored.tolist(), batch_size=config.batch_size, seed=seed)
    training = Training(
        config=config,
        objective=SFTObjective(config.remat),
        batch=lambda step: take(rows, numbers(step)),
        rows=lambda batch: batch,
        inputs=io.fingerprint(
            "sft, mixed rows", config, seed, model.config, began, *tree_bytes([rows, validation])
        ),
        validation=in_batches(validation, batch_size=config.batch_size),
        members=lambda step: f"packed rows {', '.join(map(str, numbers(step)))}",
    )
    return train(
        model,
        training,
        mesh=mesh,
        directory=directory,
        on_step=on_step,
        checkpoints=checkpoints,
        resume=resume,
        profiler=profiler,
        base=base,
    )


def validation_loss(model: Transformer, examples: Sequence[Rendered], *, batch_size: int) -> float:
    """Return the mean negative log-likelihood of a scored token, in nats.

    Raises:
        InputError: no token of `examples` is scored, or an example is too long.
    """
    rows = pack(examples, length=model.config.max_length)
    return mean_loss(model, SFTObjective(), in_batches(rows, batch_size=batch_size))


def example_logprobs(model: Transformer, examples: Sequence[Rendered]) -> list[np.ndarray]:
    """Return the log-probability of each scored token of each example, as a training computes it.

    Raises:
        InputError: see `validation_loss`.
    """
    mesh = mesh_of(model)
    rows = pack(examples, length=model.config.max_length)
    logprobs_of = make_eval_step(model.config, mesh, scored_logprobs)
    params = place_params(model, mesh)
    batches = in_batches(rows, batch_size=mesh.shape["data"] * mesh.shape["fsdp"])
    found = [np.asarray(logprobs_of(params, place_batch(batch, mesh))) for batch in batches]
    by_example = _by_example(rows, np.concatenate(found))
    return [by_example[_scored_places(e.tokens, e.scored)] for e in examples]


def _scored_places(tokens: Sequence[int], scored: Sequence[bool]) -> tuple[bytes, bytes]:
    """Return a key of an example; a first token has no prediction, so it is no target."""
    places = np.flatnonzero(np.asarray(scored)[1:]) + 1
    return np.asarray(tokens, np.int32).tobytes(), places.astype(np.int32).tobytes()


def _by_example(rows: Rows, logprobs: np.ndarray) -> dict[tuple[bytes, bytes], np.ndarray]:
    """Return the log-probabilities `[N, S]` of rows, by example."""
    found = {}
    for n, segments in enumerate(rows.segment_ids):
        for segment in range(1, segments.max() + 1):
            mine = (segments[rows.scored_at[n]] == segment) & (rows.weights[n] > 0)
            places = rows.positions[n][rows.scored_at[n][mine]] + 1
            tokens = rows.tokens[n][segments == segment]
            found[tokens.tobytes(), places.tobytes()] = logprobs[n][mine]
    return found
