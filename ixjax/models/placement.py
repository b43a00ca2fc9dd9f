"""Bytes of a model on one device: `weight_specs` under the sharding rules.

The mesh may be abstract (`ixjax.parallel.abstract_mesh`), so that the devices need not exist.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from flax import nnx

from ixjax.models.config import ModelConfig
from ixjax.models.sharding import param_shardings, path_name
from ixjax.models.transformer import WeightSpec, weight_specs
from ixjax.parallel import AnyMesh

MOMENTS = 2  # of AdamW, each with the shape and sharding of its parameter
FLOAT32_BYTES = 4  # of a number in moments and gradients, for every type of parameter


@dataclasses.dataclass(frozen=True)
class PlacedWeight:
    """One weight and its placement.

    name: attribute path.
    shape: unsharded shape.
    axes: logical axes.
    mesh_axes: mesh axes of each dimension; None for a dimension that is not split.
    device_numbers: numbers in the largest shard.
    device_bytes: bytes of the largest shard.
    trained: whether it is trained.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    mesh_axes: tuple[Any, ...]
    device_numbers: int
    device_bytes: int
    trained: bool


@dataclasses.dataclass(frozen=True)
class Placement:
    """The placement of every weight of a model on a mesh."""

    weights: tuple[PlacedWeight, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on one device."""
        return sum(weight.device_bytes for weight in self.weights)

    @property
    def trained_bytes(self) -> int:
        """Bytes of the trained weights on one device."""
        return sum(weight.device_bytes for weight in self.weights if weight.trained)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients on one device, in float32."""
        return FLOAT32_BYTES * sum(w.device_numbers for w in self.weights if w.trained)

    @property
    def state_bytes(self) -> int:
        """Bytes of AdamW's moments on one device, in float32."""
        return MOMENTS * self.gradient_bytes


def describe_sharding(
    config: ModelConfig, mesh: AnyMesh, *, trained: Collection[str] | None = None
) -> Placement:
    """Return each weight with its logical axes, its mesh axes and its bytes on one device.

    Args:
        config: the model.
        mesh: real or abstract.
        trained: paths of the trained weights; default all, or the adapters if there are any.
    """
    if trained is None:
        trained = [n for n in weight_specs(config) if config.lora is None or "_lora_" in n]
    shardings = {
        path_name(path): leaf.get_value()
        for path, leaf in nnx.to_flat_state(param_shardings(config, mesh))
    }
    size = jnp.dtype(config.param_dtype).itemsize

    def placed(name: str, spec: WeightSpec) -> PlacedWeight:
        numbers = math.prod(shardings[name].shard_shape(spec.shape))
        return PlacedWeight(
            name=name,
            shape=spec.shape,
            axes=spec.axes,
            mesh_axes=tuple(shardings[name].spec),
            device_numbers=numbers,
            device_bytes=numbers * size,
            trained=name in trained,
        )

    return Placement(tuple(placed(name, spec) for name, spec in weight_specs(config).items()))


def device_share(config: ModelConfig, mesh: AnyMesh) -> ModelConfig:
    """Return the network that one device computes: its part of heads, MLP and vocabulary.

    A size that `tensor` does not divide is not split (see `ixjax.parallel.partition_spec`).
    """
    parts = mesh.shape["tensor"]

    def share(size: int) -> int:
        return size // parts if size % parts == 0 else size

    heads = share(config.num_heads)
    return dataclasses.replace(
        config,
        vocab_size=share(config.vocab_size),
        num_heads=heads,
        # If KV heads are not split, a device uses those of its query heads alone.
        num_kv_heads=math.gcd(heads, share(config.num_kv_heads)),
        intermediate_size=share(config.intermediate_size),
    )
