"""The estimate of the memory of play equals what engines allocate."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from ixjax.generation import Engine, EngineConfig
from ixjax.generation import cache as kv
from ixjax.generation.memory import cache_bytes, dialogue_tokens, play_memory
from ixjax.models import ModelConfig, init_model
from ixjax.parallel import MeshConfig, abstract_mesh, make_mesh

CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=64,
    max_length=100,
)
ENGINE = EngineConfig(rows=4, in_flight=2, prefill_tokens=64)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_blocks_take_on_a_device_what_an_engine_allocates_there(sizes):
    mesh = make_mesh(MeshConfig(*sizes), devices=jax.devices()[: math.prod(sizes)])
    engine = Engine(init_model(CONFIG, seed=0, mesh=mesh), ENGINE)
    engine.pool.reserve(30 * kv.BLOCK)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(engine.pool.arrays))
    size = engine.pool.size
    assert size >= 30
    assert cache_bytes(CONFIG, abstract_mesh(MeshConfig(*sizes), mesh.size), size) == held


def memory(**changes):
    mesh = abstract_mesh(MeshConfig(), 1)
    given = {"tokens": 1000, "longest": 90, "paged": False} | changes
    engine = given.pop("engine", ENGINE)
    return play_memory(CONFIG, mesh, engine, **given)


def test_play_holds_two_models_their_contexts_and_both_batches():
    mesh, found = abstract_mesh(MeshConfig(), 1), memory()
    assert found.weights == 2 * 4 * CONFIG.num_parameters
    assert found.cache == cache_bytes(CONFIG, mesh, 16)  # blocks of 64 tokens
    # 4 rows of each side: two blocks of the context and the turn buffer.
    assert found.batches == 2 * cache_bytes(CONFIG, mesh, 4 * 3)
    assert 0 < found.copies < found.weights
    assert found.peak == sum(dataclasses.astuple(found))


def test_what_is_held_grows_with_what_asks_for_it():
    one, more = memory(), memory(tokens=10_000, models=3)
    assert (more.copies, more.weights) == (one.copies, one.weights * 3 // 2)
    assert more.cache > one.cache
    assert (more.batches, more.reading) == (one.batches, one.reading)


def test_a_limit_bounds_the_cache_and_the_paged_layout_copies_no_context():
    limited = dataclasses.replace(ENGINE, pool_tokens=500)
    assert memory(tokens=10_000, engine=limited).cache == memory(tokens=500).cache
    mesh = abstract_mesh(MeshConfig(), 1)
    assert memory(paged=True).batches == 2 * cache_bytes(CONFIG, mesh, 4)


def test_the_tokens_of_a_dialogue_are_those_of_its_turns_and_markup():
    assert dialogue_tokens(2, 20, 1000) == 4 * (20 + 16) + kv.BLOCK
    assert dialogue_tokens(200, 20, 1000) == 1000 + kv.BLOCK
