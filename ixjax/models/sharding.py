"""Shardings of a model: `weight_specs` under the rules of `ixjax.parallel`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from ixjax.models.config import DType, ModelConfig
from ixjax.models.transformer import Transformer, weight_specs
from ixjax.parallel import AnyMesh, make_mesh, partition_spec


def param_shardings(config: ModelConfig, mesh: AnyMesh) -> nnx.State:
    """Return a sharding for each parameter, in the structure of `nnx.split(model)[1]`."""
    specs = weight_specs(config)
    # A head is never split: its halves are rotated together.
    counts = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}

    def sharding(path: tuple, _: object) -> NamedSharding:
        spec = specs[path_name(path)]
        shape = [
            counts.get(name or "", size) for name, size in zip(spec.axes, spec.shape, strict=True)
        ]
        return NamedSharding(mesh, partition_spec(spec.axes, shape, mesh))

    return nnx.map_state(lambda path, v: v.replace(sharding(path, v)), abstract_params(config))


def mesh_of(model: Transformer) -> Mesh:
    """Return the mesh of a model; a mesh of one device for a model without a named sharding."""
    weight = model.embedding[...]
    mesh = getattr(weight.sharding, "mesh", None)
    return mesh if isinstance(mesh, Mesh) else make_mesh(devices=list(weight.devices()))


def path_name(path: tuple) -> str:
    """Return the name in `weight_specs` of an NNX path."""
    return ".".join(map(str, path))


def abstract_params(config: ModelConfig) -> nnx.State:
    """Return the parameter tree with `jax.ShapeDtypeStruct` leaves."""
    return nnx.state(Transformer(config), nnx.Param)


def weights_by_path(model: Transformer) -> dict[str, jax.Array]:
    """Return the model's arrays by the attribute paths of `weight_specs`."""
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {path_name(path): variable.get_value() for path, variable in params}


def cast(model: Transformer, dtype: DType) -> Transformer:
    """Return the model with parameters and computation of another type."""
    config = dataclasses.replace(model.config, param_dtype=dtype, compute_dtype=dtype)
    weights = weights_by_path(model)
    return model_of(config, {path: weight.astype(dtype) for path, weight in weights.items()})


def model_of(config: ModelConfig, weights: Mapping[str, jax.Array]) -> Transformer:
    """Return a model of arrays by the attribute paths of `weight_specs`, without copies."""

    def weight(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(weights[path_name(path)])

    params = nnx.map_state(weight, abstract_params(config))
    return nnx.merge(nnx.graphdef(Transformer(config)), params)


def init_model(config: ModelConfig, *, seed: int, mesh: Mesh) -> Transformer:
    """Draw a new model directly into its shards."""
    params = _drawing(config, mesh)(jax.random.key(seed))
    return nnx.merge(nnx.graphdef(Transformer(config)), params)


@functools.lru_cache
def _drawing(config: ModelConfig, mesh: Mesh) -> Callable[[jax.Array], nnx.State]:
    """Return the jitted initialiser of a config; models that differ in their seed share it."""

    def draw(key: jax.Array) -> nnx.State:
        return nnx.state(Transformer(config, rngs=nnx.Rngs(params=key)), nnx.Param)

    return jax.jit(draw, out_shardings=param_shardings(config, mesh))
