"""What of a model lies on one device: `weight_specs` read through the rules, in bytes.

The mesh may be abstract (`ixjax.parallel.abstract_mesh`), of devices that do not exist.
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

MOMENTS = 2  # of AdamW, each of a parameter's shape, lying as it does
FLOAT32_BYTES = 4  # of moments and gradients, whatever the parameters are


@dataclasses.dataclass(frozen=True)
class PlacedWeight:
    """One weight and where it lies.

    name: attribute path.
    shape: of the whole.
    axes: logical axes.
    mesh_axes: mesh axes of each dimension, None where it is whole.
    device_numbers: in the largest share.
    device_bytes: of the largest share.
    trained: whether it learns.
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
    """Where every weight of a model lies on a mesh."""

    weights: tuple[PlacedWeight, ...]

    @property
    def weight_bytes(self) -> int:
        """Weights on one device."""
        return sum(weight.device_bytes for weight in self.weights)

    @property
    def trained_bytes(self) -> int:
        """Those that learn."""
        return sum(weight.device_bytes for weight in self.weights if weight.trained)

    @property
    def gradient_bytes(self) -> int:
        """Their gradients, in float32."""
        return FLOAT32_BYTES * sum(w.device_numbers for w in self.weights if w.trained)

    @property
    def state_bytes(self) -> int:
        """AdamW's moments on one device, in float32."""
        return MOMENTS * self.gradient_bytes


def describe_sharding(
    config: ModelConfig, mesh: AnyMesh, *, trained: Collection[str] | None = None
) -> Placement:
    """Each weight with its logical axes, its mesh axes and its bytes on one device.

    Args:
        config: of the model.
        mesh: real or abstract.
        trained: paths of the weights that learn; default all, or adapters where there are any.
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
    """The network as one device computes it: its part of heads, MLP and vocabulary.

    What `tensor` does not divide stays whole (see `ixjax.parallel.partition_spec`).
    """
    parts = mesh.shape["tensor"]

    def share(size: int) -> int:
        return size // parts if size % parts == 0 else size

    heads = share(config.num_heads)
    return dataclasses.replace(
        config,
        vocab_size=share(config.vocab_size),
        num_heads=heads,
        # Whole KV heads on a device that has some of the query heads: those that they read.
        num_kv_heads=math.gcd(heads, share(config.num_kv_heads)),
        intermediate_size=share(config.intermediate_size),
    )
