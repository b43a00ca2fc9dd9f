"""Direct preference optimisation of the policy on rendered pairs.

The reference's log-probabilities are computed once and go with the pairs, so the reference model
is never in memory while the policy trains. The LM head is applied to response positions alone.

Axes: P pairs, T positions, R response positions.
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
from flax import nnx
from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import RenderedPair
from ixjax.models import Transformer
from ixjax.parallel import batch_sharding
from ixjax.training.batching import Pairs, batch_order, num_rows, pad_pairs, pad_rows, take
from ixjax.training.objectives import DPOVariant, check_dpo_settings, dpo_loss, token_logprobs
from ixjax.training.trainer import OnStep, OptimizerConfig, Training, train


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
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    log_every: int = 5
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

    pairs: tokens and lengths.
    reference: `[P, 2]` float32 summed response log-probabilities, chosen and rejected.
    """

    pairs: Pairs
    reference: Any  # [P, 2]


def response_logprobs(model: Transformer, pairs: Pairs, *, response_length: int) -> jax.Array:
    """Log-probability of each response given its prompt, summed over its tokens: `[P, 2]`.

    Args:
        model: the policy or the reference.
        pairs: P pairs.
        response_length: R, static; at least the longest response.
    """
    count, _, length = pairs.tokens.shape
    tokens = pairs.tokens.reshape(2 * count, length)
    lengths = pairs.lengths.reshape(2 * count)
    starts = jnp.repeat(pairs.starts, 2)
    segment_ids = (jnp.arange(length)[None, :] < lengths[:, None]).astype(jnp.int32)
    hidden = model.hidden(tokens, None, segment_ids)
    # The position before a token predicts it: R positions from the prompt's last on.
    targets_at = starts[:, None] + jnp.arange(response_length)[None, :]
    inside = targets_at < lengths[:, None]
    targets_at = jnp.minimum(targets_at, length - 1)
    before = jnp.take_along_axis(hidden, jnp.maximum(targets_at - 1, 0)[:, :, None], axis=1)
    targets = jnp.take_along_axis(tokens, targets_at, axis=1)
    logprobs = token_logprobs(model.logits(before), targets)
    return jnp.sum(jnp.where(inside, logprobs, 0.0), axis=1).reshape(count, 2)


@functools.lru_cache
def pair_loss(beta: float, variant: DPOVariant, label_smoothing: float, response_length: int) -> Any:
    """The DPO objective with its constants; equal constants give the same function object."""

    def loss(
        model: Transformer, batch: PairBatch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        logprobs = response_logprobs(model, batch.pairs, response_length=response_length)
        losses, chosen, rejected = dpo_loss(
            logprobs[:, 0], logprobs[:, 1], batch.reference[:, 0], batch.reference[:, 1],
            beta=beta, variant=variant, label_smoothing=label_smoothing,
        )
        weights = batch.pairs.weights
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
            "logps/chosen": logprobs[:, 0],
            "logps/rejected": logprobs[:, 1],
            "tokens": jnp.full_like(weights, jnp.sum(batch.pairs.lengths * (weights > 0)[:, None])),
        }
        sums = {name: jnp.sum(value * weights) for name, value in metrics.items()}
        return jnp.sum(losses * weights), jnp.sum(weights), sums

    return loss


def reference_logprobs(
    model: Transformer, pairs: Sequence[RenderedPair], config: DPOConfig, *, mesh: Mesh
) -> np.ndarray:
    """What the reference says of every pair: `[P, 2]` float32."""
    padded = pad_pairs(pairs, max_length=model.config.max_length)
    response_length = padded.response_length
    rows = pad_rows(padded, multiple=config.batch_size)
    graph, params = nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    found = []
    for start in range(0, num_rows(rows), config.batch_size):
        batch = take(rows, np.arange(start, start + config.batch_size))
        batch = jax.device_put(batch, batch_sharding(mesh))
        found.append(
            np.asarray(_reference(graph, params, batch, response_length=response_length))
        )
    return np.concatenate(found)[: len(pairs)]


@functools.partial(jax.jit, static_argnames=("graph", "response_length"))
def _reference(graph, params, batch, *, response_length):
    return response_logprobs(nnx.merge(graph, params), batch, response_length=response_length)


def save_reference(path: str | Path, reference: np.ndarray, fingerprint: str) -> None:
    """Keep reference log-probabilities `[P, 2]` with the fingerprint of what they belong to."""
    io.write_json(path, {"fingerprint": fingerprint, "logprobs": reference.tolist()})


def load_reference(path: str | Path, fingerprint: str) -> tuple[np.ndarray | None, str]:
    """What `save_reference` kept, or None and why it can't be used."""
    if not Path(path).exists():
        return None, "none are stored"
    record = io.read_json(path)
    if record.get("fingerprint") != fingerprint:
        return None, "the stored ones belong to other pairs or another reference"
    return np.asarray(record["logprobs"], np.float32), "stored"


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
) -> Transformer:
    """Align `model`, which is the reference too; resumes from `directory`.

    Args:
        model: the SFT policy.
        pairs: rendered preference pairs.
        config: the loss and its optimiser.
        mesh: the devices.
        seed: of the order of the pairs.
        directory: checkpoints while it runs, the aligned model after.
        on_step: called with metrics under TRL's names.
        reference: `[P, 2]` from `reference_logprobs`; None: computed here.

    Raises:
        InputError: there is no pair, or one is too long.
        ValueError: the reference does not belong to this model: the first loss is not log 2.
    """
    if reference is None:
        reference = reference_logprobs(model, pairs, config, mesh=mesh)
    if reference.shape != (len(pairs), 2):
        raise ValueError(f"reference has shape {reference.shape}; expected ({len(pairs)}, 2)")
    padded = pad_pairs(pairs, max_length=model.config.max_length)
    rows = pad_rows(PairBatch(padded, reference.astype(np.float32)), multiple=config.batch_size)
    order = _order(num_rows(rows), config, seed)
    training = Training(
        loss=pair_loss(config.beta, config.variant, config.label_smoothing, padded.response_length),
        batch=lambda step: take(rows, order(step)),
        steps=config.steps,
        optimizer=config.optimizer,
        inputs=io.fingerprint("dpo", config, seed, model.config, reference.tobytes()),
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        check_first=functools.partial(_check_first, config),
    )
    return train(model, training, mesh=mesh, directory=directory, on_step=on_step)


def _check_first(config: DPOConfig, metrics: dict[str, float]) -> None:
    """Before the first update policy and reference are equal: margin 0 in every pair."""
    expected = {"ipo": 1 / (4 * config.beta**2), "hinge": 1.0}.get(config.variant, math.log(2))
    if abs(metrics["loss"] - expected) > 1e-4 * max(1.0, expected):
        raise ValueError(
            f"the first DPO loss is {metrics['loss']:.6f}; with the policy equal to its reference "
            f"it must be {expected:.6f}: the reference log-probabilities belong to other weights"
        )


def _order(rows: int, config: DPOConfig, seed: int):
    """Row numbers of a step's batch: every row once an epoch, shuffled anew each time."""
    order = batch_order(rows, batch_size=config.batch_size, seed=seed)
    return lambda step: np.asarray(order[step])
