"""Where weights lie changes no number."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ixjax.models import ModelConfig, abstract_params, init_model, param_shardings
from ixjax.models.transformer import weight_specs
from ixjax.parallel import MeshConfig, batch_sharding, make_mesh

CONFIG = ModelConfig(
    vocab_size=24,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=32,
)
MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
TOKENS = np.random.default_rng(0).integers(0, 24, (8, 6))


@jax.jit
def logits(model, tokens):
    return model(tokens)


@pytest.fixture(scope="module")
def single():
    """Drawn on one device."""
    return init_model(CONFIG, seed=3, mesh=make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def eight():
    """Drawn on eight devices, along all three mesh axes."""
    return init_model(CONFIG, seed=3, mesh=MESH)


def test_every_parameter_has_the_sharding_of_its_spec():
    shardings = dict(nnx.to_flat_state(param_shardings(CONFIG, MESH)))
    assert {".".join(path) for path in shardings} == set(weight_specs(CONFIG))
    query = shardings["layers", "query"].get_value()
    assert query.spec == PartitionSpec(None, "fsdp", "tensor")
    assert query.shard_shape((2, 16, 16)) == (2, 8, 8)


def test_eight_devices_draw_the_weights_of_one_device(single, eight):
    assert eight.layers.down[...].sharding.shard_shape((2, 32, 16)) == (2, 16, 8)
    pairs = zip(
        nnx.to_flat_state(nnx.state(single, nnx.Param)),
        nnx.to_flat_state(nnx.state(eight, nnx.Param)),
        strict=True,
    )
    for (path, a), (_, b) in pairs:
        np.testing.assert_allclose(a[...], b[...], atol=1e-7, err_msg=str(path))


def test_sharded_params_give_the_single_device_logits(single, eight):
    expected = np.asarray(logits(single, TOKENS))
    found = logits(eight, jax.device_put(TOKENS, batch_sharding(MESH)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_abstract_params_describe_the_real_ones(single):
    real = nnx.state(single, nnx.Param)
    described = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(CONFIG))
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype), real)
