"""Direct preference optimisation of the policy on rendered pairs.

The reference's log-probabilities are computed once and go with the pairs, so the reference model
is never in memory while the policy trains. `ixjax.training.objectives` has the losses.

Axes: P pairs, of two sides each: the chosen response first, then the rejected.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import RenderedPair
from ixjax.models import Transformer
from ixjax.training.batching import (
    Bucket,
    Pairs,
    bucket_pairs,
    in_batches,
    shuffled_batches,
    tree_bytes,
)
from ixjax.training.checkpoints import CheckpointConfig, ResumeConfig
from ixjax.training.objectives import DPOVariant, check_dpo_settings, dpo_loss, scored_logprobs
from ixjax.training.optimizer import OptimizerConfig
from ixjax.training.trainer import (
    LossFunction,
    OnStep,
    Training,
    make_eval_step,
    place_batch,
    place_params,
    train,
)

SCHEMA = "ixjax.reference"


@dataclasses.dataclass(frozen=True)
class DPOConfig:
    """How the policy is aligned."""

    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    variant: DPOVariant = "sigmoid"
    """The loss: sigmoid (DPO), ipo, hinge or robust."""
    label_smoothing: float = 0.0
    """Assumed share of swapped labels, in [0, 0.5): conservative with sigmoid, or robust."""
    steps: int = 60
    """Optimiser steps."""
    batch_size: int = 16
    """Pairs a step."""
    max_pairs: int = 4096
    """Pairs used at most, drawn by the seed."""
    checkpoint_every: int = dataclasses.field(default=50, metadata=io.NO_EFFECT)
    """Steps between checkpoints."""
    log_every: int = dataclasses.field(default=5, metadata=io.NO_EFFECT)
    """Steps between lines of metrics.jsonl."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-4, warmup_fraction=0.1, weight_decay=0.0
        )
    )
    """AdamW."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_dpo_settings(
            beta=self.beta, variant=self.variant, label_smoothing=self.label_smoothing
        )
        for name in ("steps", "batch_size", "max_pairs", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Pairs with what the reference says of them.

    pairs: tokens and what is scored of them.
    reference: `[P, 2]` float32 summed response log-probabilities, chosen and rejected.
    """

    pairs: Pairs
    reference: Any  # [P, 2]


def response_logprobs(model: Transformer, pairs: Pairs) -> jax.Array:
    """Log-probability of each response given its prompt, summed over its tokens: `[P, 2]`."""
    count = pairs.weights.shape[0]
    rows = jax.tree.map(lambda x: x.reshape(2 * count, x.shape[2]), pairs.rows)
    logprobs = scored_logprobs(model, rows)
    return jnp.sum(jnp.where(rows.weights > 0, logprobs, 0.0), axis=1).reshape(count, 2)


@functools.lru_cache
def pair_loss(beta: float, variant: DPOVariant, label_smoothing: float) -> LossFunction:
    """The DPO objective with its constants; equal constants give the same function object."""

    def loss(
        model: Transformer, batch: PairBatch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        logprobs = response_logprobs(model, batch.pairs)
        losses, chosen, rejected = dpo_loss(
            logprobs[:, 0],
            logprobs[:, 1],
            batch.reference[:, 0],
            batch.reference[:, 1],
            beta=beta,
            variant=variant,
            label_smoothing=label_smoothing,
        )
        weights = batch.pairs.weights
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
            "logps/chosen": logprobs[:, 0],
            "logps/rejected": logprobs[:, 1],
        }
        sums = {name: jnp.sum(value * weights) for name, value in metrics.items()}
        return jnp.sum(losses * weights), jnp.sum(weights), sums

    return loss


def reference_logprobs(
    model: Transformer, pairs: Sequence[RenderedPair], config: DPOConfig, *, mesh: Mesh
) -> np.ndarray:
    """What the reference says of every pair: `[P, 2]` float32, in the order of `pairs`.

    Raises:
        InputError: there is no pair, or one is too long.
    """
    evaluate = make_eval_step(model.config, mesh, response_logprobs)
    params = place_params(model, mesh)
    found = np.zeros((len(pairs), 2), np.float32)
    for bucket in _buckets(model, pairs, config):
        batches = in_batches(bucket.pairs, batch_size=config.batch_size)
        sums = jax.device_get([evaluate(params, place_batch(b, mesh)) for b in batches])
        real = [of_batch[: config.batch_size] for of_batch in sums]  # without what placing added
        found[bucket.members] = np.concatenate(real)[: len(bucket.members)]
    return found


def _buckets(model: Transformer, pairs: Sequence[RenderedPair], config: DPOConfig) -> list[Bucket]:
    return bucket_pairs(pairs, max_length=model.config.max_length, batch_size=config.batch_size)


def save_reference(path: str | Path, reference: np.ndarray, fingerprint: str) -> None:
    """Keep reference log-probabilities `[P, 2]` with the fingerprint of what they belong to.

    Args:
        path: the file (JSON).
        reference: from `reference_logprobs`.
        fingerprint: of the reference model and the pairs' tokens.
    """
    record = {"schema": SCHEMA, "version": io.SCHEMA_VERSION, "fingerprint": fingerprint}
    io.write_json(path, record | {"logprobs": reference.tolist()})


def load_reference(path: str | Path, fingerprint: str) -> tuple[np.ndarray | None, str]:
    """What `save_reference` kept, or None and why it can't be used: compute it anew."""
    if not Path(path).exists():
        return None, "none are stored"
    try:
        record = io.read_json(path)
        reference = np.array(record["logprobs"], np.float32).reshape(-1, 2)
    except (io.InputError, KeyError, TypeError, ValueError):
        return None, "the stored ones are damaged"
    if record.get("fingerprint") != fingerprint:
        return None, "the stored ones belong to other pairs, tokens or weights"
    return reference, "stored"


def train_dpo(
    model: Transformer,
    pairs: Sequence[RenderedPair],
    config: DPOConfig,
    *,
    mesh: Mesh,
    seed: int,
    directory: str | Path,
    on_step: OnStep,
    reference: np.ndarray | None = None,
    checkpoints: CheckpointConfig | None = None,
    resume: ResumeConfig | None = None,
) -> Transformer:
    """Align `model`, which is the reference too; resumes from `directory`.

    Args:
        model: the SFT policy; the same at every call that is to resume.
        pairs: rendered preference pairs.
        config: the loss and its optimiser.
        mesh: the devices.
        seed: of the order of the pairs.
        directory: checkpoints while it runs, the aligned model after.
        on_step: called with metrics under TRL's names; see `ixjax.training.trainer.train`.
        reference: `[P, 2]` from `reference_logprobs`; None: computed here.
        checkpoints: which states are kept while it runs.
        resume: what it may continue from.

    Returns:
        The aligned model. A finished training is read from `directory`.

    Raises:
        InputError: there is no pair, or one is too long.
        ValueError: the reference does not belong to this model: the first loss is not log 2.
    """
    buckets = _buckets(model, pairs, config)
    if reference is None:
        reference = reference_logprobs(model, pairs, config, mesh=mesh)
    if reference.shape != (len(pairs), 2):
        raise ValueError(f"reference has shape {reference.shape}; expected ({len(pairs)}, 2)")
    reference = reference.astype(np.float32)
    rows = [PairBatch(b.pairs, reference[b.members]) for b in buckets]
    training = Training(
        loss=pair_loss(config.beta, config.variant, config.label_smoothing),
        batch=shuffled_batches(rows, batch_size=config.batch_size, seed=seed),
        num_tokens=lambda batch: batch.pairs.rows.num_tokens,
        steps=config.steps,
        optimizer=config.optimizer,
        inputs=io.fingerprint("dpo", config, seed, model.config, *tree_bytes(rows)),
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        check_first=functools.partial(_check_first, config, model.config.compute_dtype),
    )
    return train(
        model,
        training,
        mesh=mesh,
        directory=directory,
        on_step=on_step,
        checkpoints=checkpoints,
        resume=resume,
    )


def _check_first(config: DPOConfig, compute_dtype: str, metrics: dict[str, float]) -> None:
    """Before the first update policy and reference are equal: margin 0 in every pair."""
    expected = {"ipo": 1 / (4 * config.beta**2), "hinge": 1.0}.get(config.variant, math.log(2))
    # In 16 bits two compilations of one network may round differently.
    tolerance = 1e-4 if compute_dtype == "float32" else 2e-2
    if not abs(metrics["loss"] - expected) <= tolerance * max(1.0, expected):
        raise ValueError(
            f"the first DPO loss is {metrics['loss']:.6f}; with the policy equal to its reference "
            f"it must be {expected:.6f}: the reference log-probabilities belong to other weights, "
            "pairs or tokens; compute them anew"
        )
