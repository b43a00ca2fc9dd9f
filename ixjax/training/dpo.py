"""Direct preference optimisation of the policy on rendered pairs.

The reference's log-probabilities are computed once, before the policy trains, so that only one of
the two models is in memory. `ixjax.training.objectives` has the losses.

Axes: P pairs, R rows, S scored positions, M pairs of a row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import RenderedPair
from ixjax.models import Remat, Transformer, new_adapter
from ixjax.training import objectives
from ixjax.training.checkpoints import CheckpointConfig, ResumeConfig
from ixjax.training.config import TrainerConfig
from ixjax.training.objectives import LossSettings, PreferenceLoss, get_loss, preference_loss
from ixjax.training.optimizer import OptimizerConfig
from ixjax.training.pair_rows import PairBatches, PairRows, Share, pairs_together, shuffled_pairs
from ixjax.training.profiling import Profiler
from ixjax.training.ranges import COUNT, NOT_NEGATIVE, PART, check_ranges
from ixjax.training.saved_models import model_fingerprint
from ixjax.training.scoring import scored_logprobs
from ixjax.training.steps import Weight, make_eval_step, place_batch, place_params
from ixjax.training.trainer import OnStep, Training, finished_model, train


@dataclasses.dataclass(frozen=True)
class DPOConfig(TrainerConfig):
    """How the policy is aligned."""

    steps: int = 60
    eval_every: int = 20
    checkpoint_every: int = dataclasses.field(default=50, metadata=io.NO_EFFECT)
    log_every: int = dataclasses.field(default=5, metadata=io.NO_EFFECT)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-4, warmup_fraction=0.1, weight_decay=0.0
        )
    )
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    variant: objectives.LossName = "sigmoid"
    """The loss of a pair, by its name in `ixjax.training.LOSSES`."""
    label_smoothing: float = 0.0
    """Assumed share of swapped labels, in [0, 0.5): conservative with sigmoid, or robust."""
    length_normalized: bool = False
    """Log-probabilities are means over the tokens of a response instead of sums."""
    simpo_gamma: float = 0.5
    """simpo: the margin by which the chosen reward should exceed the rejected."""
    rpo_alpha: float = 0.0
    """Weight of the chosen responses' SFT loss per token, which is added to the loss."""
    max_pairs: int = 4096
    """Most pairs used, drawn by the seed."""
    validation_fraction: float = 0.0
    """Share of the pairs held out for validation, in [0, 1)."""
    share: Share = "pair"
    """Prompt tokens computed once: per pair, per node, along a path (common starts), or none."""
    row_length: int = dataclasses.field(default=0, metadata=io.NO_EFFECT)
    """Length in tokens of the rows into which pairs are packed; 0: that of the longest pair."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        super().__post_init__()
        check_ranges(
            self,
            max_pairs=COUNT,
            simpo_gamma=NOT_NEGATIVE,
            rpo_alpha=NOT_NEGATIVE,
            row_length=NOT_NEGATIVE,
            validation_fraction=PART,
        )
        get_loss(self.variant).check(self.loss_settings)

    @property
    def loss_settings(self) -> LossSettings:
        """Return the settings that the loss receives."""
        return LossSettings(self.beta, self.label_smoothing, self.simpo_gamma)


@dataclasses.dataclass(frozen=True)
class PairObjective:
    """The mean loss of preference pairs; an `Objective`.

    loss: of a pair.
    settings: of the loss.
    length_normalized: log-probabilities are means over the tokens of a response.
    rpo_alpha: weight of the SFT loss of the chosen responses.
    remat: see `DPOConfig.remat`.
    """

    loss: PreferenceLoss
    settings: LossSettings
    length_normalized: bool = False
    rpo_alpha: float = 0.0
    remat: Remat = "none"

    @classmethod
    def of(cls, config: DPOConfig) -> PairObjective:
        """Return the objective that these settings describe."""
        loss = get_loss(config.variant)
        normalized = config.length_normalized or loss.per_token
        return cls(loss, config.loss_settings, normalized, config.rpo_alpha, config.remat)

    def weight(self, batch: PairRows) -> dict[str, jax.Array]:
        """See `Objective.weight`."""
        chosen, _ = response_lengths(batch)
        return {
            "pairs": jnp.sum(batch.weights),
            "tokens": jnp.sum(chosen * batch.weights),
        }

    def __call__(
        self, model: Transformer, batch: PairRows, weight: Weight
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Objective.__call__`."""
        logprobs = response_logprobs(model, batch, remat=self.remat)
        losses, chosen, rejected = self._losses(batch, logprobs)

        def mean(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(batch.weights > 0, values, 0.0)) / weight["pairs"]

        metrics = {
            "rewards/chosen": mean(chosen),
            "rewards/rejected": mean(rejected),
            "rewards/margins": mean(chosen - rejected),
            "rewards/accuracies": mean((chosen > rejected).astype(jnp.float32)),
            "logps/chosen": mean(logprobs[..., 0]),
            "logps/rejected": mean(logprobs[..., 1]),
        }
        if not self.rpo_alpha:
            return mean(losses), metrics
        # Pang et al. 2024 (https://arxiv.org/abs/2404.19733), eq. 1; a mean over tokens, as TRL's.
        said = jnp.sum(jnp.where(batch.weights > 0, logprobs[..., 0], 0.0))
        metrics |= {"losses/pairs": mean(losses), "losses/sft": -said / weight["tokens"]}
        return metrics["losses/pairs"] + self.rpo_alpha * metrics["losses/sft"], metrics

    def _losses(
        self, batch: PairRows, logprobs: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return `[R, M]` losses, and rewards of both responses."""
        reference = batch.reference
        if self.length_normalized:
            lengths = jnp.maximum(jnp.stack(response_lengths(batch), axis=-1), 1.0)
            logprobs, reference = logprobs / lengths, reference / lengths
        return preference_loss(
            logprobs[..., 0],
            logprobs[..., 1],
            reference[..., 0],
            reference[..., 1],
            loss=self.loss,
            settings=self.settings,
        )


def response_logprobs(model: Transformer, batch: PairRows, *, remat: Remat = "none") -> jax.Array:
    """Return the `[R, M, 2]` log-probability of each response given its prompt, summed."""
    logprobs = scored_logprobs(model, batch.rows, remat=remat)
    scored = batch.rows.weights > 0
    return jnp.stack(_of_responses(batch, jnp.where(scored, logprobs, 0.0)), axis=-1)


def response_lengths(batch: PairRows) -> tuple[jax.Array, jax.Array]:
    """Return the `[R, M]` numbers of tokens of the chosen and of the rejected responses."""
    return _of_responses(batch, batch.rows.weights)


def _of_responses(batch: PairRows, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum `[R, S]` values over the tokens of the chosen and of the rejected responses."""
    # A pair has at most a prompt and two responses.
    segments = 3 * batch.chosen.shape[1]
    sums = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=segments))(
        jnp.asarray(values), jnp.asarray(batch.segments)
    )
    chosen, rejected = (
        jnp.take_along_axis(sums, jnp.asarray(which), axis=1)
        for which in (batch.chosen, batch.rejected)
    )
    return chosen, rejected


def reference_logprobs(
    model: Transformer, pairs: Sequence[RenderedPair], config: DPOConfig, *, mesh: Mesh
) -> np.ndarray:
    """Return the log-probabilities of pairs under the reference, `[P, 2]` float32.

    Raises:
        InputError: there is no pair, or one is too long.
    """
    evaluate = make_eval_step(model.config, mesh, response_logprobs)
    params = place_params(model, mesh)
    batches = _batches(model, pairs, _in_order(len(pairs), config), config, mesh)
    found = np.zeros((len(pairs), 2), np.float32)
    # Fetched after the loop: the host prepares the next batch while devices compute.
    of_batches = [
        evaluate(params, place_batch(batches.make(n, found), mesh)) for n in range(len(batches))
    ]
    for n, values in enumerate(jax.device_get(of_batches)):
        numbers = batches.numbers(n)
        real = numbers >= 0
        found[numbers[real]] = values[: len(numbers)][real]
    return found


def _in_order(count: int, config: DPOConfig) -> list[range]:
    starts = range(0, count, config.batch_size)
    return [range(start, min(start + config.batch_size, count)) for start in starts]


def _batches(
    model: Transformer,
    pairs: Sequence[RenderedPair],
    numbers: Sequence[Sequence[int] | np.ndarray],
    config: DPOConfig,
    mesh: Mesh,
) -> PairBatches:
    return PairBatches(
        pairs,
        numbers,
        share=config.share,
        max_length=model.config.max_length,
        row_length=config.row_length,
        multiple=mesh.shape["data"] * mesh.shape["fsdp"] * config.micro_batches,
    )


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
    profiler: Profiler | None = None,
    base: Path | None = None,
) -> Transformer:
    """Align `model`, which is also the reference; resumes from `directory`.

    Args:
        model: the SFT policy; the same at every call that resumes. If it has adapters, only these
            learn.
        pairs: rendered preference pairs.
        config: the loss and its optimiser.
        mesh: the devices.
        seed: of the order of the pairs, and of the held-out ones.
        directory: of the states, and of the aligned model.
        on_step: called with metrics under TRL's names; see `ixjax.training.trainer.train`.
        reference: `[P, 2]` from `reference_logprobs`; None: computed here, if the loss has one.
        checkpoints: states to keep.
        resume: states to continue from.
        profiler: traces steps.
        base: folder of the saved model that `model` is or adapts; only adapters are written.

    Returns:
        The aligned model; with held-out pairs, that of the lowest validation loss. A finished
        training is read from `directory`.

    Raises:
        InputError: there is no pair, one is too long, or none is left to train on.
        ValueError: the reference belongs to another model: the first loss is not that of equal
            models (log 2 for DPO).
    """
    # A given reference identifies the model; hashing it is cheaper than hashing the weights.
    began = model_fingerprint(model) if reference is None else reference.tobytes()
    learning = new_adapter(model, config.lora.to_config(), seed=seed)
    tokens = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    inputs = io.fingerprint("dpo", config, seed, learning.config, tokens, began)
    done = finished_model(directory, inputs, mesh=mesh)  # before the reference is computed
    if done is not None:
        return done
    objective = PairObjective.of(config)
    if reference is None and not objective.loss.has_reference:
        reference = np.zeros((len(pairs), 2), np.float32)
    elif reference is None:
        reference = reference_logprobs(model, pairs, config, mesh=mesh)
    if reference.shape != (len(pairs), 2):
        raise ValueError(f"reference has shape {reference.shape}; expected ({len(pairs)}, 2)")
    known = reference.astype(np.float32)
    learned, held_out = _hold_out(pairs, config, seed)
    chosen = shuffled_pairs(
        [pairs[i] for i in learned], share=config.share, batch_size=config.batch_size, seed=seed
    )
    batches = _batches(
        learning, pairs, [learned[chosen(step)] for step in range(config.steps)], config, mesh
    )
    validation = []
    if len(held_out):
        in_order = [held_out[list(r)] for r in _in_order(len(held_out), config)]
        of_held_out = _batches(learning, pairs, in_order, config, mesh)
        validation = [of_held_out.make(n, known) for n in range(len(in_order))]
    training = Training(
        config=config,
        objective=objective,
        batch=lambda step: batches.make(step, known),
        rows=lambda batch: batch.rows,
        inputs=inputs,
        validation=validation,
        check_first=functools.partial(_check_first, objective, learning.config.compute_dtype),
        members=lambda step: f"pairs {', '.join(map(str, learned[chosen(step)]))}",
    )
    return train(
        learning,
        training,
        mesh=mesh,
        directory=directory,
        on_step=on_step,
        checkpoints=checkpoints,
        resume=resume,
        profiler=profiler,
        base=base,
    )


def _hold_out(
    pairs: Sequence[RenderedPair], config: DPOConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the pairs to train on, and of those to validate on.

    Pairs of one path through a dialogue are not separated: they share prompts and responses.
    """
    wanted = config.validation_fraction * len(pairs)
    held: list[int] = []
    if wanted:
        together = pairs_together(pairs, "path")
        for unit in np.random.default_rng(seed).permutation(len(together)):
            if len(held) < wanted:
                held += together[unit]
    if held and len(held) == len(pairs):
        raise io.InputError(
            f"validation_fraction is {config.validation_fraction}; it leaves none of {len(pairs)} "
            "pairs to train on, since pairs of one path are held out together. Lower it."
        )
    return np.setdiff1d(np.arange(len(pairs)), held), np.sort(np.array(held, int))


def _check_first(objective: PairObjective, compute_dtype: str, metrics: dict[str, float]) -> None:
    """Raise unless the first loss is that of a policy equal to its reference."""
    loss, settings = objective.loss, objective.settings
    expected = loss.first(settings)
    if expected is None:
        return
    # Two compilations of one network round differently, by a share of the log-probabilities.
    share = 1e-5 if compute_dtype == "float32" else 2e-4
    off = share * (abs(metrics["logps/chosen"]) + abs(metrics["logps/rejected"]))
    shifted = [loss.at(*ratios, settings) for ratios in ((off, 0.0), (0.0, off))]
    change = max(settings.beta * off, *(abs(value - expected) for value in shifted))
    tolerance = 1e-4 * max(1.0, expected) + change
    found = metrics.get("losses/pairs", metrics["loss"])
    if not abs(found - expected) <= tolerance:
        raise ValueError(
            f"the first DPO loss is {found:.6f}; expected {expected:.6f}, that of a policy equal "
            "to its reference: the reference log-probabilities belong to other weights, pairs or "
            "tokens. Recompute them."
        )
