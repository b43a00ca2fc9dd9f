"""What play is said to hold is what engines allocate."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from ixjax.generation import Engine, EngineConfig
from ixjax.generation.memory import cache_bytes, play_memory
from ixjax.generation.scheduler import rows_in_play
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
def test_a_cache_takes_on_a_device_what_an_engine_allocates_there(sizes):
    mesh = make_mesh(MeshConfig(*sizes), devices=jax.devices()[: sizes[0] * sizes[1] * sizes[2]])
    engine = Engine(init_model(CONFIG, seed=0, mesh=mesh), ENGINE)
    cache = engine.empty(8).cache
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(cache))
    assert (
        cache_bytes(CONFIG, abstract_mesh(MeshConfig(*sizes), mesh.size), 8, cache.columns) == held
    )


def test_play_holds_two_models_and_the_rows_of_both_sides():
    mesh = abstract_mesh(MeshConfig(), 1)
    found = play_memory(CONFIG, mesh, ENGINE, games=100, kept=7, apart=True)
    assert found.weights == 2 * 4 * CONFIG.num_parameters
    rows = rows_in_play(ENGINE, 100, shared=False) + 7
    assert rows == 17
    assert found.cache == 2 * cache_bytes(CONFIG, mesh, rows, 256)
    assert 0 < found.copies < found.weights
    assert found.peak == sum(dataclasses.astuple(found))


def test_what_is_kept_beside_grows_with_what_asks_for_it():
    mesh = abstract_mesh(MeshConfig(), 1)
    one = play_memory(CONFIG, mesh, ENGINE, games=100, kept=8, apart=False)
    more = play_memory(CONFIG, mesh, ENGINE, games=100, kept=80, apart=False, models=3)
    assert (one.copies, more.weights) == (0, one.weights * 3 // 2)
    assert more.cache > one.cache
    assert (more.batches, more.reading) == (one.batches, one.reading)
