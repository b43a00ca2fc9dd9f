"""One loop for every objective: batches in order, a jitted step, checkpoints, early stopping.

A training is a function of its inputs: the batch of a step follows from (seed, step). An
interrupted training continues from its newest state and ends in the same parameters, bit for bit,
on the same mesh. `ixjax.training.steps` has the steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ixjax.devices import known_kind
from ixjax.models import Transformer
from ixjax.models.costs import training_flops
from ixjax.training.batching import Rows
from ixjax.training.checkpoints import (
    CheckpointConfig,
    Progress,
    ResumeConfig,
    TrainingCheckpoints,
)
from ixjax.training.config import TrainerConfig
from ixjax.training.preemption import Agreement, Preempted, noted_sigterm
from ixjax.training.profiling import ProfileConfig, Profiler
from ixjax.training.saved_models import is_finished, load_model, split
from ixjax.training.steps import (
    Objective,
    join,
    loss_of,
    make_steps,
    place_batch,
    place_params,
    total_weight,
    trained_paths,
)

OnStep = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Training:
    """One training, ready to run.

    config: its settings.
    objective: the loss to minimise.
    batch: step -> host arrays of its batch.
    rows: batch -> its rows, whose tokens are counted.
    inputs: fingerprint of all of this and of the data.
    validation: batches that the validation loss is the mean of; empty: none.
    check_first: receives the metrics of the first step before any state is kept.
    members: step -> the members of its batch, for the message that names a bad one.
    """

    config: TrainerConfig
    objective: Objective
    batch: Callable[[int], Any]
    rows: Callable[[Any], Rows]
    inputs: str
    validation: Sequence[Any] = ()
    check_first: Callable[[dict[str, float]], None] = lambda metrics: None
    members: Callable[[int], str] = lambda step: "unknown"


def train(
    model: Transformer,
    training: Training,
    *,
    mesh: Mesh,
    directory: str | Path,
    on_step: OnStep,
    checkpoints: CheckpointConfig | None = None,
    resume: ResumeConfig | None = None,
    profiler: Profiler | None = None,
    base: Path | None = None,
) -> Transformer:
    """Train to the last step, continuing from the newest state in `directory`.

    Args:
        model: the initial model; its parameters are not changed.
        training: its settings, objective and data.
        mesh: the devices.
        directory: of the states, and of the final model.
        on_step: called every `log_every` steps with step, steps, steps_since (steps since the last
            call), learning_rate and metrics. The first call of a resumed training also has
            resumed_at, the step that it resumed from, and counts steps_since from step 0.
        checkpoints: states to keep.
        resume: states to continue from.
        profiler: traces steps.
        base: see `ixjax.training.saved_models.save_params`.

    Returns:
        The trained model; with validation, that of the lowest validation loss.

    Raises:
        InputError: `frozen` names no weight, or the newest state is damaged.
        FloatingPointError: the loss is not finite; saved states are kept.
        OSError: a state could not be written; earlier states are kept.
        Preempted: SIGTERM came; the state is saved.
    """
    done = finished_model(directory, training.inputs, mesh=mesh)
    if done is not None:
        return done
    states = TrainingCheckpoints(directory, training.inputs, config=checkpoints, resume=resume)
    profiler = profiler or Profiler(ProfileConfig(), directory)
    with noted_sigterm() as preempted, states, profiler:
        loop = _Loop(model, training, mesh, states, on_step, preempted, profiler)
        params = loop.run()
        states.finish(params, model.config, base=base)
    return nnx.merge(nnx.graphdef(model), params)


def finished_model(directory: str | Path, inputs: str, *, mesh: Mesh) -> Transformer | None:
    """Return the model of a finished training and remove its states; None if unfinished."""
    if not is_finished(directory, inputs):
        return None
    TrainingCheckpoints(directory, inputs).discard()
    return load_model(directory, mesh=mesh)


class _Loop:
    """A training in progress: its state on the devices, and its progress."""

    def __init__(
        self,
        model: Transformer,
        training: Training,
        mesh: Mesh,
        checkpoints: TrainingCheckpoints,
        on_step: OnStep,
        preempted: Callable[[], bool],
        profiler: Profiler,
    ):
        self.training, self.settings = training, training.config
        self.model_config = model.config
        self.mesh = mesh
        self.checkpoints = checkpoints
        self.on_step = on_step
        self.preempted = preempted
        self.profiler = profiler
        self.rates = self.settings.optimizer.learning_rates(self.settings.steps)
        trained = trained_paths(model.config, self.settings.frozen)
        self.compiled = make_steps(
            model.config,
            mesh,
            training.objective,
            self.settings.optimizer.to_optax(),
            trained=trained,
            micro_batches=self.settings.micro_batches,
        )
        self.validation_weight = total_weight(training.objective, training.validation)
        self.initial, self.frozen = split(place_params(model, mesh), trained)
        self.state, self.best, self.progress = self._resume()
        self.resumed_at = self.progress.step
        self.reported_at = 0
        self.saved_at, self.late = time.monotonic(), Agreement()
        self.tokens = self.scored = 0
        self.pending: list[dict[str, jax.Array]] = []  # metrics of steps, not fetched yet
        self.clock: float | None = None  # None before the first report: the first step compiles

    def _resume(self) -> tuple[Any, Any, Progress]:
        """Return state, best parameters and progress of the newest state, or of the start."""
        abstract = self.compiled.abstract_state
        best = abstract[0] if self.training.validation else None
        found = self.checkpoints.latest(abstract, best)
        if found is not None:
            return found
        # Copied: the step donates its state, and the caller keeps the model.
        params = _copy(self.initial)
        best = _copy(params) if self.training.validation else None
        return (params, self.compiled.init(params)), best, Progress()

    def run(self) -> Any:
        """Train to the last step and return the parameters to keep."""
        training, settings, progress = self.training, self.settings, self.progress
        while progress.step < settings.steps and not progress.stopped:
            self.checkpoints.check()
            rate = self.rates[progress.step]
            self._take_step(rate)
            last = progress.step == settings.steps
            validates = training.validation and (self._due(settings.eval_every) or last)
            leaves = self.preempted() and not last
            late = self._late()
            saves = (self._due(settings.checkpoint_every) or late or leaves) and not last
            saves = saves or (validates and self.checkpoints.keeps_best and not last)
            reports = self._due(settings.log_every) or last or progress.step == 1 or validates
            if reports or saves:
                # Fetching raises for a loss that is not finite, so that no such state is saved.
                facts = {"learning_rate": float(rate), **self._fetch()}
                facts |= self._speed() if reports else {}
                if validates:
                    facts["validation_loss"] = self._validate()
                if reports:
                    self._report(facts)
                if saves:
                    loss = facts.get("validation_loss")
                    self.checkpoints.save(self.state, self.best, progress, validation_loss=loss)
                    self.saved_at = time.monotonic()
                    self.late.forget()
                if leaves:
                    self._leave()
                self.clock = time.monotonic() if reports else self.clock
        return join(self.best if training.validation else self.state[0], self.frozen)

    def _take_step(self, rate: Any) -> None:
        """Start the next step on the devices, without waiting for it."""
        with self.profiler.step(self.progress.step + 1):
            batch = self.training.batch(self.progress.step)
            rows = self.training.rows(batch)
            self.tokens += rows.num_tokens
            self.scored += rows.num_scored
            placed = place_batch(batch, self.mesh, parts=self.settings.micro_batches)
            self.state, metrics = self.compiled.train(self.state, self.frozen, placed, rate)
            self.pending.append(metrics)
            self.progress.step += 1

    def _leave(self) -> NoReturn:
        self.checkpoints.wait()
        raise Preempted(
            f"SIGTERM came: the state after step {self.progress.step} of "
            f"{self.settings.steps} is saved"
        )

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def _late(self) -> bool:
        """Return whether the last state was saved `checkpoint_minutes` ago, in some process."""
        minutes = self.settings.checkpoint_minutes
        return minutes > 0 and self.late(time.monotonic() - self.saved_at >= 60 * minutes)

    def _fetch(self) -> dict[str, float]:
        """Return the metrics of the last step; waits for it.

        Raises:
            FloatingPointError: the loss or gradient of a step since the last call is not finite.
        """
        steps = jax.device_get(self.pending)
        first = self.progress.step - len(steps) + 1
        self.pending = []
        for step, metrics in enumerate(steps, start=first):
            if step == 1:
                self.training.check_first({k: float(v) for k, v in metrics.items()})
            if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
                raise FloatingPointError(self._not_finite(step, metrics))
        return {name: float(value) for name, value in steps[-1].items()}

    def _not_finite(self, step: int, metrics: Mapping[str, Any]) -> str:
        kept = None
        with contextlib.suppress(OSError):  # a full disk is the smaller problem
            kept = self.checkpoints.newest_step()
        good = "no state is saved" if kept is None else f"the newest saved state is of step {kept}"
        return (
            f"at step {step} of {self.settings.steps} the loss is {metrics['loss']} and the "
            f"gradient norm {metrics['grad_norm']}, in {self.training.members(step - 1)}; expected "
            f"finite numbers. Lower optimizer.learning_rate or optimizer.clip_norm, or examine "
            f"these data ({good})."
        )

    def _speed(self) -> dict[str, float]:
        """Return the speed since the last report; nothing at first, to leave compilation out.

        For devices with a known peak also the model FLOPs utilisation, estimated from products with
        weights (Chowdhery et al. 2022, PaLM, appendix B).
        """
        tokens, scored = self.tokens, self.scored
        self.tokens = self.scored = 0
        if self.clock is None:
            return {}
        seconds = time.monotonic() - self.clock
        rate = tokens / seconds
        known = known_kind(self.mesh.devices.flat[0].device_kind)
        if known is None:
            return {"tokens_per_second": rate}
        # An estimate: without attention, with gradients of all weights.
        flops = training_flops(self.model_config, tokens, length=0, scored=scored) / seconds
        peak = known.peak_tflops * 1e12 * self.mesh.size
        return {"tokens_per_second": rate, "mfu": flops / peak}

    def _validate(self) -> float:
        """Return the validation loss; keep the parameters if it is the best so far."""
        params = join(self.state[0], self.frozen)
        value = loss_of(
            params,
            self.training.objective,
            self.training.validation,
            self.validation_weight,
            config=self.model_config,
            mesh=self.mesh,
        )
        if self.progress.improve(value, self.settings.patience):
            self.best = _copy(self.state[0])
        return value

    def _report(self, facts: dict[str, float]) -> None:
        step = self.progress.step
        since, self.reported_at = step - self.reported_at, step
        if self.resumed_at:
            facts["resumed_at"] = self.resumed_at
            self.resumed_at = 0
        self.on_step({"step": step, "steps": self.settings.steps, "steps_since": since, **facts})


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
