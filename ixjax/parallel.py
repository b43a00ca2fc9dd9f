"""The device mesh, and one table that maps logical axes of weights to mesh axes.

Three mesh axes: `data` replicates the model, `fsdp` shards the model and splits the batch, `tensor`
splits heads and the MLP. A single device is a mesh of one, so no code treats it separately.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ixjax.io import InputError

AnyMesh = Mesh | AbstractMesh
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# logical axis of a weight or of a KV cache -> mesh axes
RULES: Mapping[str, tuple[str, ...]] = {
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "rows": BATCH_AXES,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The layout of devices; -1 takes the remaining ones."""

    data: int = -1
    """Copies of the model, each on its own slice of the batch; -1: all remaining devices."""
    fsdp: int = 1
    """Devices that share one copy's weights and optimiser state (and split its batch)."""
    tensor: int = 1
    """Devices that split heads and MLP of one layer."""

    def __post_init__(self) -> None:
        """Refuse sizes that fit no device count."""
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh is data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}; expected "
                "sizes of 1 or more, at most one of them -1"
            )


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with axes (data, fsdp, tensor) over `devices` (default: all).

    Raises:
        InputError: the sizes do not multiply to the device count.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(config or MeshConfig(), len(devices))
    return Mesh(np.array(devices).reshape(sizes), AXES)


def abstract_mesh(config: MeshConfig, count: int) -> AbstractMesh:
    """Return the mesh of `make_mesh` over `count` devices, which need not exist.

    Raises:
        InputError: see `make_mesh`.
    """
    return AbstractMesh(_sizes(config, count), AXES)


def _sizes(config: MeshConfig, count: int) -> tuple[int, int, int]:
    """Return the sizes of the three axes over `count` devices."""
    sizes = (config.data, config.fsdp, config.tensor)
    fixed = math.prod(size for size in sizes if size != -1)
    if count % fixed:
        raise InputError(
            f"a mesh of data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} needs a "
            f"multiple of {fixed} devices; {count} found"
        )
    data, fsdp, tensor = (count // fixed if size == -1 else size for size in sizes)
    if data * fsdp * tensor != count:
        raise InputError(
            f"a mesh of data={data}, fsdp={fsdp}, tensor={tensor} needs {data * fsdp * tensor} "
            f"devices; {count} found. Set one of --mesh.data, --mesh.fsdp, --mesh.tensor to -1"
        )
    return data, fsdp, tensor


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh
) -> PartitionSpec:
    """Return the mesh axes of an array whose dimensions have the logical names `axes`.

    A dimension that its mesh axes do not divide is not split (two KV heads on four devices).

    Raises:
        ValueError: two dimensions of one array map to the same mesh axis.
    """
    placed = []
    for name, size in zip(axes, shape, strict=True):
        over = RULES.get(name or "", ())
        divides = size % math.prod(mesh.shape[axis] for axis in over) == 0
        placed.append(over if divides else ())
    used = [axis for over in placed for axis in over]
    if len(used) != len(set(used)):
        raise ValueError(f"axes are {tuple(axes)}; expected distinct mesh axes, found {placed}")
    return PartitionSpec(*(over[0] if len(over) == 1 else over or None for over in placed))


def on(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which traced code shards its activations on this mesh (`constrain`)."""
    if mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Shard an activation by `RULES` on the mesh of `on`, if any.

    Weights and batch are both split over `fsdp`. Without a constraint XLA may gather the batch
    instead of the weights, and every device then holds the activations of the whole batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis of a batch over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def describe(mesh: Mesh) -> str:
    """Return platform, device count and layout as one line."""
    kind = mesh.devices.flat[0].platform
    layout = " x ".join(f"{name}={mesh.shape[name]}" for name in AXES)
    return f"{mesh.devices.size} {kind} device{'s' * (mesh.devices.size > 1)} ({layout})"
