"""Finished models on disk, through Orbax.

Each is a folder `model/`: the parameters and, written last, their configuration. Models that are
adapters of one base have only the adapters there, and the place of the base. Arrays are restored to
the shards of the present mesh. https://orbax.readthedocs.io
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from ixjax import io
from ixjax.distributed import first_then_others, is_first, to_host, wait_for_all
from ixjax.models import (
    ModelConfig,
    Transformer,
    abstract_params,
    adapter_paths,
    model_of,
    param_shardings,
    weights_by_path,
)
from ixjax.models.config import DType
from ixjax.parallel import make_mesh

MODEL_SCHEMA = "ixjax.model"
LONGEST_CAUSE = 300  # characters shown of another library's error
RECORD = "model.json"  # in the folder of a model: its configuration
# Orbax logs normal operation as WARNING, and pages of text that it also raises as ERROR.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# Of several failed reads one is raised; asyncio would log the others in full.
logging.getLogger("asyncio").addFilter(
    lambda record: not (record.exc_info and "tensorstore" in str(record.exc_info[1]).lower())
)


def save_model(model: Transformer, directory: str | Path, *, inputs: str = "") -> None:
    """Write parameters and configuration to `directory/model`, replacing an existing model.

    Args:
        model: the model.
        directory: the folder that holds `model/`.
        inputs: fingerprint of what it was made from.
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    save_params(params, model.config, Path(directory), inputs=inputs)


def save_params(
    params: Any, config: ModelConfig, directory: Path, *, inputs: str, base: Path | None = None
) -> None:
    """Write a model as `save_model` does.

    Args:
        params: its parameters as nested dictionaries.
        config: its configuration.
        directory: the folder that holds `model/`.
        inputs: see `save_model`.
        base: folder of the saved model that it adapts; only its adapters are written.
    """
    path = directory.absolute() / "model"
    if is_first():
        path.mkdir(parents=True, exist_ok=True)
        (path / RECORD).unlink(missing_ok=True)
    wait_for_all("the folder of a model")
    written = params if base is None else split(params, adapter_paths(config))[0]
    ocp.save(str(path / "params"), written, overwrite=True)
    # Written last: a folder without it is not finished.
    record = {
        "schema": MODEL_SCHEMA,
        "version": io.SCHEMA_VERSION,
        "inputs": inputs,
        "config": dataclasses.asdict(config),
    }
    if base is not None:
        folder = os.path.relpath(base.absolute(), directory.absolute())
        record["base"] = {"folder": folder, "inputs": _record(base)["inputs"]}
    with first_then_others("a model is written"):
        if is_first():
            io.write_json(path / RECORD, record)


def is_finished(directory: str | Path, inputs: str | None = None) -> bool:
    """Return whether `directory` holds a finished model (of these inputs, if given)."""
    path = Path(directory) / "model" / RECORD
    return path.exists() and (inputs is None or io.read_json(path).get("inputs") == inputs)


def base_of(directory: str | Path) -> Path | None:
    """Return the folder of the saved model that a saved model adapts; None for a whole model.

    Raises:
        InputError: `directory` holds no finished model, or its base is another one by now.
    """
    base = _record(Path(directory)).get("base")
    if base is None:
        return None
    folder = Path(os.path.normpath(Path(directory).absolute() / base["folder"]))
    if not is_finished(folder, base["inputs"]):
        raise io.InputError(
            f"{directory}: its base {folder} is missing or another model; expected the one whose "
            f"`inputs` are {base['inputs']}"
        )
    return folder


def load_model(
    directory: str | Path, *, mesh: Mesh | None = None, dtype: DType | None = None
) -> Transformer:
    """Read a model that `save_model` or a training wrote, directly into its shards.

    Args:
        directory: the folder that holds `model/`.
        mesh: the devices; None: all of them, with a copy of the model on each.
        dtype: type of the parameters and of the computation; None: as written.

    Raises:
        InputError: `directory` holds no finished model, or see `base_of`.
    """
    base, config = base_of(directory), saved_config(directory, dtype)
    mesh = mesh or make_mesh()
    if base is None:
        return nnx.merge(nnx.graphdef(Transformer(config)), _read(directory, config, mesh, None))
    weights = weights_by_path(load_model(base, mesh=mesh, dtype=dtype))
    return model_of(config, weights | load_adapter_weights(directory, mesh=mesh, dtype=dtype))


def load_adapter_weights(
    directory: str | Path, *, mesh: Mesh, dtype: DType | None = None
) -> dict[str, jax.Array]:
    """Return the adapter of a model that was saved without its base, by path.

    Args:
        directory: see `load_model`.
        mesh: the devices.
        dtype: see `load_model`.

    Raises:
        InputError: see `load_model`.
    """
    config = saved_config(directory, dtype)
    found = _read(directory, config, mesh, adapter_paths(config))
    return nnx.traversals.flatten_mapping(found, sep=".")


def _read(
    directory: str | Path, config: ModelConfig, mesh: Mesh, paths: Sequence[str] | None
) -> Any:
    """Return the saved parameters, those at `paths` only if they are given."""
    path = Path(directory).absolute() / "model"
    abstract = abstract_tree(config, mesh)
    with readable(path / "params", remedy=f"remove {path} and train again"):
        return ocp.load(
            str(path / "params"), abstract if paths is None else split(abstract, paths)[0]
        )


def saved_inputs(directory: str | Path) -> str:
    """Return the fingerprint of what a saved model was made from."""
    return _record(Path(directory))["inputs"]


def saved_config(directory: str | Path, dtype: DType | None = None) -> ModelConfig:
    """Return the configuration of a saved model.

    Args:
        directory: see `load_model`.
        dtype: see `load_model`.

    Raises:
        InputError: `directory` holds no finished model, or its record is damaged.
    """
    record = _record(Path(directory))
    try:
        config = ModelConfig.from_json(record["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        path = Path(directory) / "model" / RECORD
        raise io.InputError(f"{path}: `config` does not describe a model ({error})") from None
    if dtype is None:
        return config
    return dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)


def _record(directory: Path) -> dict[str, Any]:
    if not is_finished(directory):
        raise io.InputError(
            f"{directory}: holds no finished model (model/{RECORD} is missing). Train it first."
        )
    return io.read_document(directory / "model" / RECORD, schema=MODEL_SCHEMA)


def split(params: Any, paths: Sequence[str]) -> tuple[Any, Any]:
    """Split parameters into those at these paths and the others, as nested dictionaries."""
    flat = nnx.traversals.flatten_mapping(params, sep=".")
    chosen = {path: leaf for path, leaf in flat.items() if path in paths}
    others = {path: leaf for path, leaf in flat.items() if path not in paths}
    nested = nnx.traversals.unflatten_mapping
    return nested(chosen, sep="."), nested(others, sep=".")


@contextlib.contextmanager
def readable(path: Path, *, remedy: str) -> Iterator[None]:
    """Raise one-line errors in a block that reads `path` through Orbax.

    Raises:
        InputError: files are missing or damaged; Orbax raises many types, with pages of text.
    """
    if not path.exists():
        raise io.InputError(f"{path}: no such folder; {remedy}")
    try:
        yield
    except Exception as error:  # Orbax raises bare `Exception`, too
        cause = root_cause(error)
        if isinstance(cause, (MemoryError, jax.errors.JaxRuntimeError)):
            raise  # a full device does not mean that files are damaged
        raise io.InputError(
            f"{path}: the files can't be read; they are damaged or of another form "
            f"({first_line(cause)}); {remedy}"
        ) from None


def root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """Return the line of another library's error that is shown."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.partition(" [tensorstore_spec")[0][:LONGEST_CAUSE]


def model_fingerprint(model: Transformer) -> str:
    """Return 16 hex digits of configuration and parameters, independent of their sharding."""
    digest = hashlib.sha256(io.fingerprint(model.config).encode())
    # Leaf by leaf, so that the host never holds the whole model.
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        digest.update(np.ascontiguousarray(to_host(leaf)).tobytes())
    return digest.hexdigest()[:16]


def abstract_tree(config: ModelConfig, mesh: Mesh) -> Any:
    """Return the parameters as nested `jax.ShapeDtypeStruct` with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nnx.to_pure_dict(abstract_params(config)),
        nnx.to_pure_dict(param_shardings(config, mesh)),
    )
