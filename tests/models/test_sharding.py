"""Shardings do not change results."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ixjax.models import (
    ModelConfig,
    Transformer,
    abstract_params,
    init_model,
    param_shardings,
)
from ixjax.models.transformer import weight_specs
from ixjax.parallel import MeshConfig, batch_sharding, make_mesh, on
from tests.models.tiny import random_model

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


def test_every_parameter_has_the_sharding_of_its_spec():
    shardings = dict(nnx.to_flat_state(param_shardings(CONFIG, MESH)))
    assert {".".join(path) for path in shardings} == set(weight_specs(CONFIG))
    query = shardings["layers", "query"].get_value()
    assert query.spec == PartitionSpec(None, "fsdp", "tensor")
    assert query.shard_shape((2, 16, 16)) == (2, 8, 8)


def test_weights_are_drawn_into_their_shards_as_one_device_draws_them():
    params = nnx.state(init_model(CONFIG, seed=3, mesh=MESH), nnx.Param)
    assert jax.tree.map(lambda x: x.sharding, params) == param_shardings(CONFIG, MESH)
    # Only the embedding, which has the first key: drawing all again would compile for seconds.
    key = nnx.Rngs(params=jax.random.key(3)).params()
    expected = weight_specs(CONFIG)["embedding"].draw(key, jax.numpy.float32)
    np.testing.assert_allclose(params["embedding"][...], expected, atol=1e-7)
    for path, spec in weight_specs(CONFIG).items():
        value = np.asarray(params[path] if "." not in path else params["layers"][path[7:]])
        assert value.std() == pytest.approx(spec.scale or 0.0, rel=0.3), path


def test_sharded_params_give_the_single_device_logits():
    model = random_model(CONFIG)
    expected = np.asarray(logits(model, TOKENS))
    graph, params = nnx.split(model)
    sharded = nnx.merge(graph, jax.device_put(params, param_shardings(CONFIG, MESH)))
    assert sharded.layers.down[...].sharding.shard_shape((2, 32, 16)) == (2, 16, 8)
    found = logits(sharded, jax.device_put(TOKENS, batch_sharding(MESH)))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_hidden_states_that_are_split_as_the_batch_give_the_same_logits():
    model = random_model(CONFIG)
    expected = np.asarray(logits(model, TOKENS))
    graph, params = nnx.split(model)
    sharded = nnx.merge(graph, jax.device_put(params, param_shardings(CONFIG, MESH)))
    tokens = jax.device_put(TOKENS, batch_sharding(MESH))

    @jax.jit
    def both(model, tokens):
        with on(MESH):
            return model.hidden(tokens), model(tokens)

    split, found = both(sharded, tokens)
    assert split.sharding.shard_shape(split.shape) == (2, 6, 16)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_abstract_params_describe_the_real_ones():
    real = jax.eval_shape(lambda: nnx.state(Transformer(CONFIG, rngs=nnx.Rngs(0)), nnx.Param))
    described = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(CONFIG))
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype), real)
