"""The described placement equals the shards of a real model."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from flax import nnx

from ixjax.models import LoraConfig, ModelConfig, init_model
from ixjax.models.placement import describe_sharding, device_share
from ixjax.parallel import MeshConfig, abstract_mesh, make_mesh
from ixjax.training import OptimizerConfig

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=4,
    intermediate_size=64,
)
SIZES = [(8, 1, 1), (1, 8, 1), (1, 2, 4), (2, 2, 2)]


def on_device_0(tree) -> int:
    shards = [x.addressable_shards[0].data for x in jax.tree.leaves(tree)]
    return sum(shard.nbytes for shard in shards)


@pytest.mark.parametrize("sizes", SIZES)
def test_bytes_are_those_of_a_real_models_shards(sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    params = nnx.to_pure_dict(nnx.state(init_model(CONFIG, seed=0, mesh=mesh), nnx.Param))
    placement = describe_sharding(CONFIG, mesh)
    assert placement.weight_bytes == on_device_0(params)
    optimizer = OptimizerConfig().to_optax()
    moments = [x for x in jax.tree.leaves(jax.eval_shape(optimizer.init, params)) if x.ndim]
    whole = sum(x.size * x.dtype.itemsize for x in moments)
    one = describe_sharding(CONFIG, abstract_mesh(MeshConfig(), 1))
    assert one.state_bytes == whole


def test_an_abstract_mesh_gives_what_a_real_one_does():
    config = MeshConfig(2, 2, 2)
    abstract, real = abstract_mesh(config, 8), make_mesh(config)
    assert describe_sharding(CONFIG, abstract) == describe_sharding(CONFIG, real)


def test_weights_and_state_shrink_as_one_over_fsdp():
    whole = describe_sharding(CONFIG, abstract_mesh(MeshConfig(), 1))
    norms = sum(w.device_bytes for w in whole.weights if "norm" in w.name)  # never split
    for fsdp in (2, 4, 8):
        shared = describe_sharding(CONFIG, abstract_mesh(MeshConfig(1, fsdp, 1), fsdp))
        assert shared.weight_bytes - norms == (whole.weight_bytes - norms) / fsdp
        assert shared.state_bytes == 2 * shared.weight_bytes


def test_rows_name_logical_and_mesh_axes():
    placement = describe_sharding(CONFIG, abstract_mesh(MeshConfig(1, 2, 4), 8))
    [query] = [w for w in placement.weights if w.name == "layers.query"]
    assert query.axes == ("layers", "embed", "heads")
    assert query.mesh_axes == (None, "fsdp", "tensor")
    assert query.device_bytes == 4 * 2 * 32 * 32 // 8


def test_with_adapters_they_alone_have_a_state():
    adapted = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4, targets=("query",)))
    placement = describe_sharding(adapted, abstract_mesh(MeshConfig(), 1))
    assert placement.state_bytes == 2 * 4 * (2 * 32 * 4 + 2 * 4 * 32)


@pytest.mark.parametrize(("tensor", "heads", "kv_heads"), [(2, 4, 2), (4, 2, 1), (8, 1, 1)])
def test_a_devices_share_is_of_heads_mlp_and_vocabulary(tensor, heads, kv_heads):
    share = device_share(CONFIG, abstract_mesh(MeshConfig(1, 1, tensor), tensor))
    assert (share.num_heads, share.num_kv_heads) == (heads, kv_heads)
    assert (share.intermediate_size, share.vocab_size) == (64 // tensor, 64 // tensor)
    assert share.hidden_size == CONFIG.hidden_size
