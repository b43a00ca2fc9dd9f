"""Models and training states on disk, through Orbax.

A finished model is a folder `model/`: the parameters and, written last, their configuration.
A training in progress keeps its newest state beside it, under `steps/`; Orbax writes each to a
temporary name and renames it, so one that was cut off while it was written is never read.
https://orbax.readthedocs.io
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from ixjax import io
from ixjax.models import ModelConfig, Transformer, abstract_params, param_shardings
from ixjax.models.config import DType
from ixjax.parallel import make_mesh

MODEL_SCHEMA = "ixjax.model"
LONGEST_CAUSE = 300  # characters of another library's error that are worth showing
RECORD = "model.json"  # in the folder of a model: its configuration
# Orbax and its storage layer tell at WARNING level of things that are as they should be.
logging.getLogger("absl").setLevel(logging.ERROR)


def save_model(model: Transformer, directory: str | Path) -> None:
    """Write parameters and configuration to `directory/model`, replacing what is there."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    _save_params(params, model.config, Path(directory), inputs="")


def _save_params(params: Any, config: ModelConfig, directory: Path, *, inputs: str) -> None:
    path = directory.absolute() / "model"
    path.mkdir(parents=True, exist_ok=True)
    (path / RECORD).unlink(missing_ok=True)
    ocp.save(str(path / "params"), params, overwrite=True)
    # Written last: a folder without it is not finished.
    record = {
        "schema": MODEL_SCHEMA,
        "version": io.SCHEMA_VERSION,
        "inputs": inputs,
        "config": dataclasses.asdict(config),
    }
    io.write_json(path / RECORD, record)


def is_finished(directory: str | Path, inputs: str | None = None) -> bool:
    """Whether `directory` holds a whole model (made from just these inputs, where given)."""
    path = Path(directory) / "model" / RECORD
    return path.exists() and (inputs is None or io.read_json(path).get("inputs") == inputs)


def load_model(
    directory: str | Path, *, mesh: Mesh | None = None, dtype: DType | None = None
) -> Transformer:
    """Read what `save_model` or a finished training wrote, straight into its shards.

    Args:
        directory: the folder that holds `model/`.
        mesh: the devices; None: all of them, the model whole on each.
        dtype: type of the parameters and of the computation; None: as they were written.

    Raises:
        InputError: there is no whole model of ours in `directory`.
    """
    path = Path(directory).absolute() / "model"
    if not is_finished(directory):
        raise io.InputError(
            f"{directory}: holds no finished model (model/{RECORD} is missing); train it first"
        )
    config = _read_config(path / RECORD)
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
    with _readable(path / "params", remedy=f"remove {path} and train again"):
        params = ocp.load(str(path / "params"), abstract_tree(config, mesh or make_mesh()))
    return nnx.merge(nnx.graphdef(Transformer(config)), params)


@contextlib.contextmanager
def _readable(path: Path, *, remedy: str) -> Iterator[None]:
    """A block that reads what Orbax wrote to `path`.

    Raises:
        InputError: in place of the errors of files that are missing or damaged, whose types and
            pages of text are Orbax's own.
    """
    if not path.exists():
        raise io.InputError(f"{path}: no such folder; {remedy}")
    try:
        yield
    except Exception as error:  # Orbax raises bare `Exception`, too
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (MemoryError, jax.errors.JaxRuntimeError)):
            raise  # a device without room says nothing of the files
        first_line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise io.InputError(
            f"{path}: what was saved can't be read, its files are damaged or of another form "
            f"({first_line[:LONGEST_CAUSE]}); {remedy}"
        ) from None


def _read_config(path: Path) -> ModelConfig:
    record = io.read_json(path)
    expected = (MODEL_SCHEMA, io.SCHEMA_VERSION)
    if not isinstance(record, dict) or (record.get("schema"), record.get("version")) != expected:
        raise io.InputError(f"{path}: expected schema {expected[0]} version {expected[1]}")
    try:
        return ModelConfig.from_json(record["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise io.InputError(f"{path}: `config` does not describe a model ({error})") from None


def model_fingerprint(model: Transformer) -> str:
    """16 hex digits of configuration and parameters, the same however they are sharded."""
    digest = hashlib.sha256(io.fingerprint(model.config).encode())
    # Leaf by leaf: the whole model is never in host memory at once.
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def abstract_tree(config: ModelConfig, mesh: Mesh) -> Any:
    """The parameters as nested dictionaries of `jax.ShapeDtypeStruct` with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nnx.to_pure_dict(abstract_params(config)),
        nnx.to_pure_dict(param_shardings(config, mesh)),
    )


@dataclasses.dataclass
class Progress:
    """What a training knows of itself beside its arrays.

    step: optimiser steps done.
    best_loss: lowest validation loss yet.
    without_gain: validations since then.
    stopped: early stopping has ended it.
    """

    step: int = 0
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


class TrainingCheckpoints:
    """The states of one training: the newest is kept, and continued from.

    Args:
        directory: of the training; states lie in `directory/steps`.
        inputs: fingerprint of what the training is made from; states of another are discarded.
    """

    def __init__(self, directory: str | Path, inputs: str):
        self._root = Path(directory).absolute() / "steps"
        self._inputs = inputs

    def latest(self, abstract_state: Any, abstract_best: Any) -> tuple[Any, Any, Progress] | None:
        """State, best parameters and progress of the newest whole checkpoint of this training.

        Args:
            abstract_state: (params, optimiser state) as `jax.ShapeDtypeStruct` with shardings.
            abstract_best: the parameters alike, or None where no best ones are kept.
        """
        with self._open() as checkpointer:
            newest = checkpointer.latest
            if newest is None:
                return None
            kept = checkpointer.metadata(newest.step).custom_metadata
            if isinstance(kept, dict) and kept.get("inputs") == self._inputs:
                remedy = f"remove {self._root} to train from the start"
                with _readable(self._root, remedy=remedy):
                    tree = checkpointer.load(newest.step, _to_tree(abstract_state, abstract_best))
                leaves = [tree["state"][name] for name in sorted(tree["state"])]
                state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
                return state, tree.get("best"), Progress(**json.loads(str(kept["progress"])))
        self.discard()
        return None

    def newest_step(self) -> int | None:
        """Steps behind the newest state; None where there is none."""
        if not self._root.exists():
            return None
        with self._open() as checkpointer:
            return None if checkpointer.latest is None else checkpointer.latest.step

    def save(self, state: Any, best: Any, progress: Progress) -> None:
        """Write the state after `progress.step` steps; older ones go."""
        facts: dict[str, Any] = {
            "inputs": self._inputs,
            "progress": json.dumps(dataclasses.asdict(progress)),
        }
        with self._open() as checkpointer:
            tree = _to_tree(state, best)
            checkpointer.save(progress.step, tree, custom_metadata=facts, overwrite=True)

    def finish(self, params: Any, config: ModelConfig) -> None:
        """Write the final model, then drop the states."""
        _save_params(params, config, self._root.parent, inputs=self._inputs)
        self.discard()

    def discard(self) -> None:
        """Remove every state."""
        shutil.rmtree(self._root, ignore_errors=True)

    @contextlib.contextmanager
    def _open(self) -> Iterator[ocp.training.Checkpointer]:
        self._root.mkdir(parents=True, exist_ok=True)
        newest_alone: Any = ocp.training.preservation_policies.LatestN(1)
        with ocp.training.Checkpointer(
            str(self._root), preservation_policy=newest_alone, cleanup_tmp_directories=True
        ) as checkpointer:
            yield checkpointer


def _to_tree(state: Any, best: Any) -> dict[str, Any]:
    """State leaves by number, so that a checkpoint depends on no type of Optax's."""
    leaves = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    return {"state": leaves} | ({} if best is None else {"best": best})
