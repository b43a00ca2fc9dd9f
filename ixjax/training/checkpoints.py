"""Models and training states on disk, through Orbax.

A finished model is a folder `model/` with the parameters and, as metadata, their configuration.
A training in progress keeps its newest states beside it, under `steps/`; Orbax writes each to a
temporary name and renames it, so one that was cut off while it was written is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from ixjax import io
from ixjax.models import ModelConfig, Transformer, abstract_params, param_shardings
from ixjax.parallel import make_mesh

MODEL_SCHEMA = "ixjax.model"
# Orbax and its storage layer tell at WARNING level of things that are as they should be.
logging.getLogger("absl").setLevel(logging.ERROR)


def save_model(model: Transformer, directory: str | Path) -> None:
    """Write parameters and configuration to `directory/model`, replacing what is there."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    _save_params(params, model.config, Path(directory), inputs="")


def _save_params(params: Any, config: ModelConfig, directory: Path, *, inputs: str) -> None:
    path = directory.absolute() / "model"
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.json").unlink(missing_ok=True)
    ocp.save(path / "params", params, overwrite=True)
    # Written last: a folder without it is not finished.
    record = {"schema": MODEL_SCHEMA, "inputs": inputs, "config": dataclasses.asdict(config)}
    io.write_json(path / "model.json", record)


def is_finished(directory: str | Path, inputs: str | None = None) -> bool:
    """Whether `directory` holds a whole model (made from just these inputs, where given)."""
    path = Path(directory) / "model" / "model.json"
    return path.exists() and (inputs is None or io.read_json(path).get("inputs") == inputs)


def load_model(directory: str | Path, *, mesh: Mesh | None = None) -> Transformer:
    """Read what `save_model` wrote, straight into its shards.

    Raises:
        InputError: there is no whole model of ours in `directory`.
    """
    path = Path(directory).absolute() / "model"
    if not is_finished(directory):
        raise io.InputError(f"{directory}: holds no finished model (model/model.json is missing)")
    record = io.read_json(path / "model.json")
    if record.get("schema") != MODEL_SCHEMA:
        raise io.InputError(f"{path / 'model.json'}: expected schema {MODEL_SCHEMA}")
    settings = record["config"]
    if settings["rope_scaling"] is not None:
        settings["rope_scaling"] = tuple(settings["rope_scaling"])
    config = ModelConfig(**settings)
    target = abstract_tree(config, mesh or make_mesh())
    params = ocp.load(path / "params", target)
    return nnx.merge(nnx.graphdef(Transformer(config)), params)


def abstract_tree(config: ModelConfig, mesh: Mesh) -> Any:
    """The parameters as nested dictionaries of `jax.ShapeDtypeStruct` with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nnx.to_pure_dict(abstract_params(config)),
        nnx.to_pure_dict(param_shardings(config, mesh)),
    )


class TrainingCheckpoints:
    """The states of one training: the newest is kept, and continued from.

    Args:
        directory: of the training; states lie in `directory/steps`.
        inputs: fingerprint of what the training is made from; states of another are discarded.
    """

    def __init__(self, directory: str | Path, inputs: str):
        self._root = Path(directory).absolute() / "steps"
        self._inputs = inputs

    def latest(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, facts) of the newest whole state; None if there is none of this training."""
        with self._open() as checkpointer:
            if checkpointer.latest is None:
                return None
            step = checkpointer.latest.step
            metadata = dict(checkpointer.metadata(step).custom_metadata or {})
            if metadata.get("inputs") == self._inputs:
                state = checkpointer.load(step, abstract_state)
                return step, state, json.loads(metadata["facts"])
        shutil.rmtree(self._root)
        return None

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Write the state after `step` steps; older ones go."""
        metadata = {"inputs": self._inputs, "facts": json.dumps(facts)}
        with self._open() as checkpointer:
            checkpointer.save(step, state, custom_metadata=metadata, overwrite=True)

    def finish(self, params: Any, config: ModelConfig) -> None:
        """Write the final model, then drop the states."""
        _save_params(params, config, self._root.parent, inputs=self._inputs)
        shutil.rmtree(self._root, ignore_errors=True)

    @contextlib.contextmanager
    def _open(self) -> Iterator[ocp.training.Checkpointer]:
        self._root.mkdir(parents=True, exist_ok=True)
        with ocp.training.Checkpointer(
            self._root,
            preservation_policy=ocp.training.preservation_policies.LatestN(1),
            cleanup_tmp_directories=True,
        ) as checkpointer:
            yield checkpointer
