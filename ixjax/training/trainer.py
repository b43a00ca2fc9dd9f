"""One loop for every objective: batches in order, a jitted step, checkpoints, early stopping.

A training is a function of its inputs alone: the batch of a step follows from (seed, step), so
one that was interrupted anywhere continues from its newest checkpoint and ends in the same
parameters, bit for bit, on the same mesh. The step is jitted at module level with everything
that shapes it as static arguments: trainings of equal shape share one compilation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from ixjax.models import Transformer
from ixjax.parallel import batch_sharding, replicated
from ixjax.training.checkpoints import TrainingCheckpoints, abstract_tree, is_finished, load_model

OnStep = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay."""

    learning_rate: float = 1e-3
    """Peak of the schedule."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the rate rises from 0."""
    final_fraction: float = 0.1
    """The rate at the last step, as a share of the peak."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; norms and biases have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; it must be in [0, 1)")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be above 0")


class LossFunction(Protocol):
    """What a training minimises; hashable by identity, as it is a static argument."""

    def __call__(self, model: Transformer, batch: Any) -> tuple[jax.Array, jax.Array, dict]:
        """Summed loss, the weight to divide by, and summed metrics of a batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Training:
    """One training, ready to run.

    loss: the objective.
    batch: host arrays of the batch of a step.
    steps: optimiser steps in all.
    optimizer: its settings.
    validation: batches that the validation loss is the mean of; empty: none.
    eval_every: steps between validations.
    patience: validations without a better loss after which training stops; 0: never.
    checkpoint_every: steps between checkpoints.
    log_every: steps between reports.
    inputs: fingerprint of all of this and of the data.
    check_first: called with the first step's metrics before anything else happens.
    """

    loss: LossFunction
    batch: Callable[[int], Any]
    steps: int
    optimizer: OptimizerConfig
    inputs: str
    validation: Sequence[Any] = ()
    eval_every: int = 50
    patience: int = 0
    checkpoint_every: int = 100
    log_every: int = 10
    check_first: Callable[[dict[str, float]], None] = lambda metrics: None


@functools.lru_cache
def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW as configured; equal settings give the same object, so jit caches hold."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


@functools.lru_cache
def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, cosine decay."""
    warmup = max(1, round(config.warmup_fraction * steps))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1),
        config.learning_rate * config.final_fraction,
    )


def _decayed(params: Any) -> Any:
    """Matrices decay; norm weights and biases (one axis beside that of the layers) do not."""

    def is_matrix(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim - (path[0].key == "layers") >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


@functools.partial(
    jax.jit, static_argnames=("graph", "loss", "optimizer", "steps"), donate_argnames=("state",)
)
def _train_step(graph, state, batch, *, loss, optimizer, steps):
    params, opt_state = state

    def mean_loss(params):
        total, weight, metrics = loss(nnx.merge(graph, params), batch)
        weight = jnp.maximum(weight, 1.0)
        return total / weight, {name: value / weight for name, value in metrics.items()}

    (value, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    updates, opt_state = make_optimizer(optimizer, steps).update(grads, opt_state, params)
    metrics |= {"loss": value, "grad_norm": optax.tree.norm(grads)}
    return (optax.apply_updates(params, updates), opt_state), metrics


@functools.partial(jax.jit, static_argnames=("graph", "loss"))
def _eval_step(graph, params, batch, *, loss):
    total, weight, _ = loss(nnx.merge(graph, params), batch)
    return total, weight


def train(
    model: Transformer, training: Training, *, mesh: Mesh, directory: str | Path, on_step: OnStep
) -> Transformer:
    """Train to the end, continuing from the newest checkpoint in `directory`.

    Args:
        model: where to start from; its parameters are not changed.
        training: what to do.
        mesh: the devices; the model's parameters lie on it as `param_shardings` says.
        directory: checkpoints while it runs, the final model after.
        on_step: called every `log_every` steps with step, steps, steps_since, metrics.

    Returns:
        The trained model: that of the best validation where there is one.

    Raises:
        FloatingPointError: the loss is not finite; the newest checkpoint is still there.
    """
    checkpoints = TrainingCheckpoints(directory, training.inputs)
    if is_finished(directory, training.inputs):
        return load_model(directory, mesh=mesh)
    with jax.set_mesh(mesh):
        params = _run(model, training, mesh, checkpoints, on_step)
    checkpoints.finish(params, model.config)
    return nnx.merge(nnx.graphdef(model), params)


def _run(model, training, mesh, checkpoints, on_step):
    """The loop; returns the parameters to keep."""
    graph = nnx.graphdef(model)
    state, progress = _resume(model, training, mesh, checkpoints)
    place = functools.partial(jax.device_put, device=batch_sharding(mesh))
    step_fn = functools.partial(
        _train_step, loss=training.loss, optimizer=training.optimizer, steps=training.steps
    )
    logged_at, clock = progress.step, time.monotonic()
    while progress.step < training.steps and not progress.stopped:
        batch = jax.tree.map(place, training.batch(progress.step))
        state, metrics = step_fn(graph, state, batch)
        progress.step += 1
        last = progress.step == training.steps
        facts: dict[str, Any] = {}
        if training.validation and (progress.step % training.eval_every == 0 or last):
            value = _validate(graph, state[0], training, place)
            if progress.improve(value, training.patience):
                progress.best = jax.tree.map(jnp.copy, state[0])
            facts["validation_loss"] = value
        if facts or last or progress.step == 1 or progress.step % training.log_every == 0:
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if progress.step == 1:
                training.check_first(metrics)
            if not math.isfinite(metrics["loss"]):
                raise FloatingPointError(
                    f"the loss is {metrics['loss']} at step {progress.step} of {training.steps}; "
                    "lower the learning rate, or clip harder"
                )
            rate = make_schedule(training.optimizer, training.steps)(progress.step - 1)
            seconds = time.monotonic() - clock
            since = progress.step - logged_at
            tokens = metrics.pop("tokens", None)
            if tokens is not None:
                facts["tokens_per_second"] = tokens * since / seconds
            on_step({
                "step": progress.step, "steps": training.steps, "steps_since": since,
                "learning_rate": float(rate), **metrics, **facts,
            })
            logged_at, clock = progress.step, time.monotonic()
        if progress.step % training.checkpoint_every == 0 and not last:
            tree = {"state": _as_tree(state), "best": progress.best}
            checkpoints.save(progress.step, tree, progress.facts())
    return progress.best if training.validation else state[0]


@dataclasses.dataclass
class _Progress:
    """What a training knows of itself beside its parameters."""

    step: int
    best: Any
    best_loss: float = math.inf
    without_gain: int = 0
    stopped: bool = False

    def improve(self, loss: float, patience: int) -> bool:
        """Note a validation loss; whether it is the best yet."""
        if loss < self.best_loss:
            self.best_loss, self.without_gain = loss, 0
            return True
        self.without_gain += 1
        self.stopped = 0 < patience <= self.without_gain
        return False

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best_loss": self.best_loss,
            "without_gain": self.without_gain,
            "stopped": self.stopped,
        }


def _resume(model, training, mesh, checkpoints):
    """Parameters, optimiser state and progress: from the newest checkpoint, or from the start."""
    optimizer = make_optimizer(training.optimizer, training.steps)
    abstract = abstract_tree(model.config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # The optimiser's moments lie as the parameters do; its counters are everywhere.
    abstract_opt = optax.tree_map_params(
        optimizer,
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, abstract),
        shardings,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=replicated(mesh)
        ),
    )
    best = abstract if training.validation else None
    found = checkpoints.latest({"state": _as_tree((abstract, abstract_opt)), "best": best})
    if found is not None:
        step, tree, facts = found
        leaves = [tree["state"][f"{i:04d}"] for i in range(len(tree["state"]))]
        state = jax.tree.unflatten(jax.tree.structure((abstract, abstract_opt)), leaves)
        return state, _Progress(step=step, best=tree["best"], **facts)
    params = jax.tree.map(
        lambda p, sharding: jax.device_put(jnp.copy(p), sharding),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)), shardings,
    )
    opt_state = jax.jit(
        optimizer.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract_opt)
    )(params)
    best = jax.tree.map(jnp.copy, params) if training.validation else None
    return (params, opt_state), _Progress(step=0, best=best)


def _as_tree(state: Any) -> dict[str, Any]:
    """Leaves by number: Orbax then needs to know no Optax type."""
    return {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _validate(graph, params, training, place) -> float:
    batches = (jax.tree.map(place, batch) for batch in training.validation)
    return _mean_loss(graph, params, training.loss, batches)


def mean_loss(model: Transformer, loss: LossFunction, batches: Sequence[Any]) -> float:
    """Mean loss over all batches, each weight counting the same."""
    graph, params = nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return _mean_loss(graph, params, loss, batches)


def _mean_loss(graph, params, loss, batches) -> float:
    sums = [_eval_step(graph, params, batch, loss=loss) for batch in batches]
    totals = np.array(jax.device_get(sums), np.float64).sum(axis=0)
    return float(totals[0] / max(totals[1], 1.0))
