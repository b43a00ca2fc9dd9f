"""Meshes have the configured sizes, and the rules give the shardings of weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ixjax.parallel import (
    MeshConfig,
    abstract_mesh,
    batch_sharding,
    constrain,
    describe,
    make_mesh,
    partition_spec,
    replicated,
)

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1)),
        (MeshConfig(data=-1, fsdp=2, tensor=2), (2, 2, 2)),
        (MeshConfig(data=2, fsdp=1, tensor=-1), (2, 1, 4)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape


def test_one_device_is_a_mesh_of_one():
    assert make_mesh(devices=jax.devices()[:1]).devices.shape == (1, 1, 1)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (-1, -1, 1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"mesh is data=.*at most one of them -1"):
        MeshConfig(*sizes)


def test_sizes_that_do_not_divide_the_devices_are_refused():
    with pytest.raises(ValueError, match="needs a multiple of 3 devices; 8 found"):
        make_mesh(MeshConfig(data=-1, fsdp=3))


def test_sizes_that_leave_devices_idle_are_refused():
    with pytest.raises(ValueError, match="needs 4 devices; 8 found"):
        make_mesh(MeshConfig(data=2, fsdp=1, tensor=2))


def test_weights_lie_on_the_axes_of_the_rules():
    mesh = make_mesh(MESH)
    axes = ("layers", "embed", "heads")
    assert partition_spec(axes, (3, 8, 8), mesh) == PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec((None,), (8,), mesh) == PartitionSpec(None)


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    spec = partition_spec(("embed", "kv_heads"), (8, 6), mesh)
    assert spec == PartitionSpec("fsdp", None)


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match="expected distinct mesh axes"):
        partition_spec(("heads", "mlp"), (8, 8), make_mesh(MESH))


def test_batches_are_split_over_data_and_fsdp():
    mesh = make_mesh(MESH)
    batch = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
    whole = jax.device_put(np.zeros((8, 3)), replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 3)}


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(1, -1, 2), MeshConfig(2, 2, -1)])
def test_an_abstract_mesh_has_the_sizes_of_a_real_one(config):
    assert abstract_mesh(config, 8).shape == make_mesh(config).shape
    assert abstract_mesh(config, 4096).size == 4096


def test_an_abstract_mesh_is_refused_as_a_real_one_is():
    with pytest.raises(ValueError, match="needs a multiple of 3 devices; 4096 found"):
        abstract_mesh(MeshConfig(data=-1, fsdp=3), 4096)


def test_nothing_is_constrained_where_no_mesh_is_in_use():
    x = np.ones((8, 3))
    assert constrain(x, ("rows", None)) is x


def test_description_names_platform_and_layout():
    assert describe(make_mesh(MESH)) == "8 cpu devices (data=2 x fsdp=2 x tensor=2)"
