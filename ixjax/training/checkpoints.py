"""States of an unfinished training on disk, through Orbax.

They are stored under `steps/`, next to the finished model (`ixjax.training.saved_models`). Each is
written asynchronously to a temporary name and renamed: a partial state is never read. A state holds
parameters, optimiser state, best parameters and progress. With the training's `inputs` (the
fingerprint of its configuration, seed and data) this is complete: the batch of a step is a function
of (seed, step). Arrays are restored to the shards of the present mesh. https://orbax.readthedocs.io
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ixjax import io
from ixjax.distributed import first_then_others, is_first
from ixjax.models import ModelConfig
from ixjax.training.ranges import COUNT, NOT_NEGATIVE, check_ranges
from ixjax.training.saved_models import first_line, readable, root_cause, save_params

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Progress:
    """The state of a training without its arrays.

    step: finished optimiser steps.
    best_loss: lowest validation loss so far.
    without_gain: validations since then.
    stopped: early stopping has ended it.
    """

    step: int = 0
    best_loss: float = math.inf
    without_gain: int = 0
    stopped: bool = False

    def improve(self, loss: float, patience: int) -> bool:
        """Record a validation loss; return whether it is the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.without_gain = loss, 0
            return True
        self.without_gain += 1
        self.stopped = 0 < patience <= self.without_gain
        return False


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """States that an unfinished training keeps."""

    keep: int = 2
    """Newest states kept: one to continue from, the others in case it is damaged."""
    keep_best: int = 0
    """States of the lowest validation losses also kept, until the training is finished."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_ranges(self, keep=COUNT, keep_best=NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """States that an interrupted training may continue from."""

    allow_older: bool = False
    """If the newest state is damaged, remove it and continue from the one before."""


class TrainingCheckpoints:
    """Saves and restores the states of one training.

    A context manager that exits when the last state is on disk. All processes call the same methods
    in the same order.

    Args:
        directory: of the training; states are stored in `directory/steps`.
        inputs: fingerprint of the training; states with another one are discarded.
        config: states to keep.
        resume: states to continue from.
    """

    def __init__(
        self,
        directory: str | Path,
        inputs: str,
        *,
        config: CheckpointConfig | None = None,
        resume: ResumeConfig | None = None,
    ):
        self._root = Path(directory).absolute() / "steps"
        self._inputs = inputs
        self._config = config or CheckpointConfig()
        self._resume = resume or ResumeConfig()
        self._orbax: ocp.training.Checkpointer | None = None
        self._writing: tuple[int, Any] | None = None  # step, and Orbax's pending response
        self._newest = 0  # step of the newest state

    def __enter__(self) -> TrainingCheckpoints:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: Any) -> None:
        failed = kind is not None
        if failed and jax.process_count() > 1:
            return  # a failed process must not wait for the others, which may wait for it
        # The first error is reported, not that of a state saved after it.
        with contextlib.suppress(Exception) if failed else contextlib.nullcontext():
            self.wait()
            self._close()

    def latest(self, abstract_state: Any, abstract_best: Any) -> tuple[Any, Any, Progress] | None:
        """Restore state, best parameters and progress from the newest state of this training.

        Args:
            abstract_state: (params, optimiser state) as `jax.ShapeDtypeStruct` with shardings.
            abstract_best: the parameters in the same form; None without validation.

        Raises:
            InputError: the newest is damaged, and there is no older one or it may not be used.
        """
        checkpointer = self._open()
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints][::-1]
        damaged: list[int] = []
        for step, older in itertools.zip_longest(steps, steps[1:]):
            try:
                with readable(self._root / str(step), remedy=self._remedy(older)):
                    found = self._read(checkpointer, step, abstract_state, abstract_best)
            except io.InputError as error:
                if older is None or not self._may_use_older:
                    raise
                damaged.append(step)
                logger.warning("%s", error)
                continue
            for gone in steps if found is None else damaged:
                checkpointer.delete(gone)
            self._newest = 0 if found is None else step
            return found
        return None

    def _read(
        self, checkpointer: ocp.training.Checkpointer, step: int, state: Any, best: Any
    ) -> tuple[Any, Any, Progress] | None:
        """Return the state of a step; None if it belongs to another training."""
        kept = checkpointer.metadata(step).custom_metadata
        if not isinstance(kept, dict) or "inputs" not in kept:
            raise ValueError("its metadata name no training")
        if kept["inputs"] != self._inputs:
            return None
        tree = checkpointer.load(step, _to_tree(state, best))
        leaves = [tree["state"][name] for name in sorted(tree["state"])]
        restored = jax.tree.unflatten(jax.tree.structure(state), leaves)
        return restored, tree.get("best"), Progress(**json.loads(str(kept["progress"])))

    @property
    def _may_use_older(self) -> bool:
        # With several processes, damage may be visible to some of them only.
        return self._resume.allow_older and jax.process_count() == 1

    def _remedy(self, older: int | None) -> str:
        if older is None:
            return f"remove {self._root} to train from the start"
        flag = "" if jax.process_count() > 1 else "give --resume.allow-older, or "
        return f"{flag}remove this folder, to continue from step {older}"

    def save(
        self, state: Any, best: Any, progress: Progress, *, validation_loss: float | None = None
    ) -> None:
        """Save the state after `progress.step` steps asynchronously.

        The state is copied first, so that the next step may take it as a donated argument.

        Args:
            state: (params, optimiser state).
            best: parameters of the best validation so far, or None.
            progress: of the training.
            validation_loss: of this state, if known.

        Raises:
            OSError: this state, or the one before, could not be written.
        """
        self.wait()
        if progress.step == self._newest:
            return
        facts: dict[str, Any] = {
            "inputs": self._inputs,
            "progress": json.dumps(dataclasses.asdict(progress)),
        }
        metrics: Any = None if validation_loss is None else {"validation_loss": validation_loss}
        with self._failing_as_one_line(progress.step):
            response = self._open().save_async(
                progress.step,
                _to_tree(state, best),
                metrics=metrics,
                custom_metadata=facts,
                force=True,  # the trainer decides when to save, not a policy of Orbax
            )
        self._writing, self._newest = (progress.step, response), progress.step

    @property
    def keeps_best(self) -> bool:
        """Whether the states of the lowest validation losses are kept, so each is saved."""
        return self._config.keep_best > 0

    def newest_step(self) -> int | None:
        """Return the step of the newest state, once it is on disk; None if there is none."""
        self.wait()
        return self._newest or None

    def check(self) -> None:
        """Re-raise a failed asynchronous save; does not block.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is not None and not self._open().is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until the state is on disk.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is None:
            return
        (step, response), self._writing = self._writing, None
        with self._failing_as_one_line(step):
            response.result()

    @contextlib.contextmanager
    def _failing_as_one_line(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of Orbax, its storage layer or the file system
            whole = [path.name for path in self._root.glob("*") if path.name.isdecimal()]
            states = ", ".join(sorted(whole, key=int)) or "none"
            raise OSError(
                f"{self._root}: the state of step {step} could not be written "
                f"({first_line(root_cause(error))}); complete states: {states}"
            ) from error

    def finish(self, params: Any, config: ModelConfig, *, base: Path | None = None) -> None:
        """Write the final model as `save_params` does, then remove the states."""
        self.wait()
        save_params(params, config, self._root.parent, inputs=self._inputs, base=base)
        self.discard()

    def discard(self) -> None:
        """Remove every state."""
        self._close()
        with first_then_others("states are removed"):
            if is_first():
                shutil.rmtree(self._root, ignore_errors=True)
        self._newest = 0

    def _open(self) -> ocp.training.Checkpointer:
        if self._orbax is None:
            kept = ocp.training.preservation_policies
            best = kept.BestN(
                n=self._config.keep_best,
                get_metric_fn=lambda metrics: -metrics["validation_loss"],
                keep_checkpoints_without_metrics=False,
            )
            policy: Any = kept.AnyPreservationPolicy([kept.LatestN(self._config.keep), best])
            self._root.mkdir(parents=True, exist_ok=True)
            # Synchronous: Orbax's threads would wait forever for a folder that can't be made.
            folders_first = ocp.options.AsyncOptions(create_directories_asynchronously=False)
            self._orbax = ocp.training.Checkpointer(
                str(self._root),
                context=ocp.Context(async_options=folders_first),
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            )
        return self._orbax

    def _close(self) -> None:
        checkpointer, self._orbax = self._orbax, None
        if checkpointer is not None:
            checkpointer.close()


def _to_tree(state: Any, best: Any) -> dict[str, Any]:
    """Return the leaves of a state by number, so that files depend on no type of Optax."""
    leaves = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    return {"state": leaves} | ({} if best is None else {"best": best})
