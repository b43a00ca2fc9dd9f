"""One loop for every objective: batches in order, a jitted step, checkpoints, early stopping.

A training is a function of its inputs alone: the batch of a step follows from (seed, step), so
one that was interrupted anywhere continues from its newest checkpoint and ends in the same
parameters, bit for bit, on the same mesh. Parameters and optimiser state are sharded alike, and
what the step replaces is donated. Trainings of equal shape share one compilation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from ixjax.distributed import to_devices
from ixjax.models import ModelConfig, Transformer
from ixjax.parallel import batch_sharding, make_mesh, replicated
from ixjax.training.batching import pad_rows
from ixjax.training.checkpoints import (
    CheckpointConfig,
    Progress,
    ResumeConfig,
    TrainingCheckpoints,
    abstract_tree,
    is_finished,
    load_model,
)
from ixjax.training.optimizer import OptimizerConfig
from ixjax.training.preemption import Preempted, noted_sigterm

OnStep = Callable[[dict[str, Any]], None]


class LossFunction(Protocol):
    """What a training minimises; equal objectives must be the same object, it is a cache key."""

    def __call__(
        self, model: Transformer, batch: Any, /
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Summed loss of a batch, the weight to divide by, and metrics summed alike."""
        ...


@dataclasses.dataclass(frozen=True)
class Training:
    """One training, ready to run.

    loss: the objective.
    batch: host arrays of the batch of a step.
    num_tokens: tokens of a batch, padding left out.
    steps: optimiser steps in all.
    optimizer: its settings.
    inputs: fingerprint of all of this and of the data.
    validation: batches that the validation loss is the mean of; empty: none.
    eval_every: steps between validations.
    patience: validations without a better loss after which training stops; 0: never.
    checkpoint_every: steps between checkpoints.
    log_every: steps between reports.
    check_first: called with the first step's metrics before anything of it is kept.
    """

    loss: LossFunction
    batch: Callable[[int], Any]
    num_tokens: Callable[[Any], int]
    steps: int
    optimizer: OptimizerConfig
    inputs: str
    validation: Sequence[Any] = ()
    eval_every: int = 50
    patience: int = 0
    checkpoint_every: int = 100
    log_every: int = 10
    check_first: Callable[[dict[str, float]], None] = lambda metrics: None


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted functions of one objective on one mesh.

    abstract_state: (params, optimiser state) as shapes with their shardings.
    init: params -> optimiser state.
    train: (state, batch, learning rate) -> (state, metrics); the state is donated.
    """

    abstract_state: Any
    init: Callable[..., Any]
    train: Callable[..., Any]


@functools.lru_cache(maxsize=16)
def make_steps(
    config: ModelConfig, mesh: Mesh, loss: LossFunction, optimizer: optax.GradientTransformation
) -> Steps:
    """Equal arguments give the same functions, and so one compilation per batch shape."""
    graph = nnx.graphdef(Transformer(config))
    abstract = _abstract_state(config, mesh, optimizer)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def train_step(state: Any, batch: Any, learning_rate: jax.Array) -> tuple[Any, Any]:
        params, opt_state = state

        def mean_loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            total, weight, sums = loss(nnx.merge(graph, params), batch)
            weight = jnp.maximum(weight, 1.0)
            return total / weight, {name: value / weight for name, value in sums.items()}

        (value, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p - (learning_rate * u).astype(p.dtype), params, updates)
        metrics |= {"loss": value, "grad_norm": optax.tree.norm(grads)}
        return (params, opt_state), metrics

    return Steps(
        abstract_state=abstract,
        init=jax.jit(optimizer.init, in_shardings=shardings[:1], out_shardings=shardings[1]),
        train=jax.jit(
            train_step,
            in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        ),
    )


@functools.lru_cache(maxsize=16)
def make_eval_step(config: ModelConfig, mesh: Mesh, function: Callable[..., Any]) -> Any:
    """`function(model, batch)`, jitted as (params, batch) -> result, which every device holds."""
    graph = nnx.graphdef(Transformer(config))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_tree(config, mesh))
    return jax.jit(
        lambda params, batch: function(nnx.merge(graph, params), batch),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def _abstract_state(
    config: ModelConfig, mesh: Mesh, optimizer: optax.GradientTransformation
) -> tuple[Any, Any]:
    """(params, optimiser state) as shapes: moments lie as parameters do, counters everywhere."""
    params = abstract_tree(config, mesh)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=replicated(mesh)
        ),
    )
    return params, opt_state


def train(
    model: Transformer,
    training: Training,
    *,
    mesh: Mesh,
    directory: str | Path,
    on_step: OnStep,
    checkpoints: CheckpointConfig | None = None,
    resume: ResumeConfig | None = None,
) -> Transformer:
    """Train to the end, continuing from the newest checkpoint in `directory`.

    Args:
        model: where to start from; its parameters are not changed.
        training: what to do.
        mesh: the devices.
        directory: checkpoints while it runs, the final model after.
        on_step: called every `log_every` steps with step, steps, steps_since (the last report;
            at first also those of an earlier, interrupted call), learning_rate and metrics; the
            first time after an interruption also resumed_at, the step that it continued behind.
        checkpoints: which states are kept while it runs.
        resume: what it may continue from.

    Returns:
        The trained model: that of the best validation where there is one.

    Raises:
        ValueError: the mesh does not divide the batch.
        FloatingPointError: the loss is not finite; the newest checkpoint is still there.
        InputError: the newest checkpoint is damaged.
        OSError: a checkpoint could not be written; those before are still there.
        Preempted: SIGTERM came; the state is saved.
    """
    states = TrainingCheckpoints(directory, training.inputs, config=checkpoints, resume=resume)
    if is_finished(directory, training.inputs):
        states.discard()
        return load_model(directory, mesh=mesh)
    with noted_sigterm() as told_to_leave, states:
        params = _Loop(model, training, mesh, states, on_step, told_to_leave).run()
        states.finish(params, model.config)
    return nnx.merge(nnx.graphdef(model), params)


class _Loop:
    """A training in progress: its state on the devices, and what it knows of itself."""

    def __init__(
        self,
        model: Transformer,
        training: Training,
        mesh: Mesh,
        checkpoints: TrainingCheckpoints,
        on_step: OnStep,
        told_to_leave: Callable[[], bool],
    ):
        self.training = training
        self.config = model.config
        self.mesh = mesh
        self.checkpoints = checkpoints
        self.on_step = on_step
        self.told_to_leave = told_to_leave
        self.rates = training.optimizer.learning_rates(training.steps)
        self.compiled = make_steps(model.config, mesh, training.loss, training.optimizer.to_optax())
        self.state, self.best, self.progress = self._resume(model)
        self.resumed_at = self.progress.step
        self.reported_at = 0
        self.tokens = 0
        self.clock: float | None = None  # None: nothing was timed yet (the first step compiles)

    def _resume(self, model: Transformer) -> tuple[Any, Any, Progress]:
        """State, best parameters and progress: from the newest checkpoint, or from the start."""
        abstract = self.compiled.abstract_state
        best = abstract[0] if self.training.validation else None
        found = self.checkpoints.latest(abstract, best)
        if found is not None:
            return found
        # Copied: the step donates its state, and the caller's model must live on.
        params = _copy(place_params(model, self.mesh))
        best = _copy(params) if self.training.validation else None
        return (params, self.compiled.init(params)), best, Progress()

    def run(self) -> Any:
        """To the last step; returns the parameters to keep."""
        training, progress = self.training, self.progress
        while progress.step < training.steps and not progress.stopped:
            self.checkpoints.check()
            batch = training.batch(progress.step)
            rate = self.rates[progress.step]
            self.tokens += training.num_tokens(batch)
            self.state, metrics = self.compiled.train(
                self.state, place_batch(batch, self.mesh), rate
            )
            progress.step += 1
            last = progress.step == training.steps
            validates = training.validation and (self._due(training.eval_every) or last)
            leaves = self.told_to_leave() and not last
            saves = (self._due(training.checkpoint_every) or leaves) and not last
            reports = self._due(training.log_every) or last or progress.step == 1 or validates
            if reports or saves:
                # Checked before a checkpoint, too: one that is kept is good.
                facts = {"learning_rate": float(rate), **self._fetch(metrics)}
                facts |= self._speed() if reports else {}
                if validates:
                    facts["validation_loss"] = self._validate()
                if reports:
                    self._report(facts)
                if saves:
                    loss = facts.get("validation_loss")
                    self.checkpoints.save(self.state, self.best, progress, validation_loss=loss)
                if leaves:
                    self._leave()
                self.clock = time.monotonic() if reports else self.clock
        return self.best if training.validation else self.state[0]

    def _leave(self) -> NoReturn:
        self.checkpoints.wait()
        raise Preempted(
            f"told to end (SIGTERM): the state behind step {self.progress.step} of "
            f"{self.training.steps} is saved"
        )

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def _fetch(self, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """Metrics of the last step on the host; waits for it."""
        fetched = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self.progress.step == 1:
            self.training.check_first(fetched)
        if not math.isfinite(fetched["loss"]) or not math.isfinite(fetched["grad_norm"]):
            raise FloatingPointError(
                f"at step {self.progress.step} of {self.training.steps} the loss is "
                f"{fetched['loss']} and the gradient norm {fetched['grad_norm']}; lower "
                "optimizer.learning_rate or optimizer.clip_norm"
            )
        return fetched

    def _speed(self) -> dict[str, float]:
        """Tokens a second since the last report; none at first, which would time the compiler."""
        tokens, self.tokens = self.tokens, 0
        if self.clock is None:
            return {}
        return {"tokens_per_second": tokens / (time.monotonic() - self.clock)}

    def _validate(self) -> float:
        """The validation loss; the best parameters yet are kept."""
        loss = self.training.loss
        value = _mean_loss(self.state[0], loss, self.training.validation, self.config, self.mesh)
        if self.progress.improve(value, self.training.patience):
            self.best = _copy(self.state[0])
        return value

    def _report(self, facts: dict[str, float]) -> None:
        step = self.progress.step
        since, self.reported_at = step - self.reported_at, step
        if self.resumed_at:
            facts["resumed_at"] = self.resumed_at
            self.resumed_at = 0
        self.on_step({"step": step, "steps": self.training.steps, "steps_since": since, **facts})


def mean_loss(model: Transformer, loss: LossFunction, batches: Sequence[Any]) -> float:
    """Mean loss over all batches (host arrays of one shape), each weight counting the same."""
    mesh = mesh_of(model)
    return _mean_loss(place_params(model, mesh), loss, batches, model.config, mesh)


def _mean_loss(
    params: Any, loss: LossFunction, batches: Sequence[Any], config: ModelConfig, mesh: Mesh
) -> float:
    evaluate = make_eval_step(config, mesh, loss)
    sums = [evaluate(params, place_batch(batch, mesh))[:2] for batch in batches]
    totals = np.array(jax.device_get(sums), np.float64).sum(axis=0)
    return float(totals[0] / max(totals[1], 1.0))


def place_params(model: Transformer, mesh: Mesh) -> Any:
    """The parameters as a training on `mesh` holds them; nothing moves if they lie so already."""
    abstract = abstract_tree(model.config, mesh)
    return jax.device_put(
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
        jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )


def mesh_of(model: Transformer) -> Mesh:
    """The mesh that the parameters lie on; one of a single device for those made without any."""
    sharding = jax.tree.leaves(nnx.state(model, nnx.Param))[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    return make_mesh(devices=sorted(sharding.device_set, key=lambda device: device.id))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays on the devices, rows without weight added until they can be dealt out equally.

    Every process makes the whole batch and hands its devices their rows: it is some megabytes of
    integers, and so the same however many processes there are.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return to_devices(pad_rows(batch, multiple=shards), batch_sharding(mesh))


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
