"""The device mesh and the one table that says which weight axis lies on which mesh axis.

Three mesh axes: `data` replicates the model, `fsdp` shards it over the axis that it also splits
the batch on, `tensor` splits heads and the MLP. One device is a mesh of one: no code asks.
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
    """How devices are laid out; -1 takes what is left."""

    data: int = -1
    """Copies of the model, each on its own slice of the batch; -1: as many as devices allow."""
    fsdp: int = 1
    """Devices that share one copy's weights and optimiser state (and split its batch)."""
    tensor: int = 1
    """Devices that split heads and MLP of one layer."""

    def __post_init__(self) -> None:
        """Refuse sizes that no device count can satisfy."""
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh sizes must be positive, at most one of them -1; found "
                f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"
            )


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes (data, fsdp, tensor) over `devices` (default: all).

    Raises:
        InputError: the sizes do not multiply to the device count.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(config or MeshConfig(), len(devices))
    return Mesh(np.array(devices).reshape(sizes), AXES)


def abstract_mesh(config: MeshConfig, count: int) -> AbstractMesh:
    """The mesh that `make_mesh` would make of so many devices, which need not exist.

    Raises:
        InputError: see `make_mesh`.
    """
    return AbstractMesh(_sizes(config, count), AXES)


def _sizes(config: MeshConfig, count: int) -> tuple[int, int, int]:
    """Sizes of the three axes over so many devices."""
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
            f"a mesh of {data} x {fsdp} x {tensor} has {data * fsdp * tensor} places; "
            f"{count} devices found: set one of mesh.data, mesh.fsdp, mesh.tensor to -1"
        )
    return data, fsdp, tensor


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh
) -> PartitionSpec:
    """Mesh axes of an array whose dimensions carry the logical names `axes`.

    A dimension that its mesh axes do not divide stays whole (two KV heads on four devices).

    Raises:
        ValueError: two dimensions of one array fall on the same mesh axis.
    """
    placed = []
    for name, size in zip(axes, shape, strict=True):
        over = RULES.get(name or "", ())
        divides = size % math.prod(mesh.shape[axis] for axis in over) == 0
        placed.append(over if divides else ())
    used = [axis for over in placed for axis in over]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {tuple(axes)} fall on the same mesh axis: {placed}")
    return PartitionSpec(*(over[0] if len(over) == 1 else over or None for over in placed))


def on(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """What is traced within lays its activations out on this mesh (`constrain`)."""
    if mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """An activation, laid out as the rules say on the mesh in use (`on`), if any.

    Weights and batch are both split over `fsdp`, and a compiler that is not told which of them to
    gather has been seen to gather the batch: activations then take as much on every device as on
    one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch, split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def describe(mesh: Mesh) -> str:
    """One line for people: platform, device count and layout."""
    kind = mesh.devices.flat[0].platform
    layout = " x ".join(f"{name}={mesh.shape[name]}" for name in AXES)
    return f"{mesh.devices.size} {kind} device{'s' * (mesh.devices.size > 1)} ({layout})"
