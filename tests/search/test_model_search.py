"""A search with models: the same trees next to any others, and nothing compiled once warm."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.generation import (
    EngineConfig,
    EngineStats,
    ModelSpeaker,
    SamplingConfig,
    speaker_engine,
)
from ixjax.generation.cache import BLOCK
from ixjax.generation.sampling import identity_keys
from ixjax.generation.speakers import ModelParticipant
from ixjax.generation.turns import hashed
from ixjax.io import InputError
from ixjax.models import param_shardings
from ixjax.parallel import MeshConfig, make_mesh
from ixjax.search import FinishedTree, SearchConfig, run, warm_up
from ixjax.search.imcts import search_tokens
from ixjax.testing import byte_tokenizer, tiny_model
from tests.generation.near_ties import NEAR, gap

SAMPLING = SamplingConfig(max_new_tokens=6)
SEED = 3
ENGINE = EngineConfig(rows=8, steps=8, in_flight=2)
CONFIG = SearchConfig(trees=3, iterations=3, width=3, leaves=2, rollouts=2, max_turns=3)


Draws = dict[tuple[int, ...], tuple[list[int], list[int]]]


@pytest.fixture
def draws(monkeypatch) -> dict[ModelSpeaker, Draws]:
    """Record each speaker's turns by identity: the tokens before a turn, and its own."""
    settle, found = ModelParticipant.settle, {}

    def recorded(self, request):
        length = len(self.context) - len(request.tokens) + request.ended
        own = found.setdefault(self.speaker, {})
        own[request.identity] = self.context.tokens[:length], list(request.tokens)
        return settle(self, request)

    monkeypatch.setattr(ModelParticipant, "settle", recorded)
    return found


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_tokenizer(byte_tokenizer())


@pytest.fixture(scope="module")
def sides(template):
    return speakers(template)


def speakers(
    template, *, stats: EngineStats | None = None, max_length: int = 192, mesh: Mesh | None = None
):
    """Policy and user; a twelfth of all bytes end a turn, so that lengths differ."""
    ends = dataclasses.replace(template, end_ids=(5, *range(7, 263, 12)))
    found = []
    for seed, role in enumerate(("policy", "user")):
        model = tiny_model(template.vocab_size, max_length=max_length, seed=seed)
        if mesh is not None:
            params = jax.device_put(nnx.state(model), param_shardings(model.config, mesh))
            model = nnx.merge(nnx.graphdef(model), params)
        view = View(get_scenario("sandbox"), role, ends)
        engine = speaker_engine(model, view, SAMPLING, ENGINE, stats=stats)
        found.append(ModelSpeaker(engine, view, SAMPLING, seed=SEED))
    return found


def roots(count: int) -> list[Dialogue]:
    found = []
    for i in range(count):
        condition = UserCondition(f"c{i}", {"need": "advice", "distress": 4, "patience": 3})
        found.append(Dialogue(f"d{i}", condition, (Turn("user", "hi ." * (i % 5 + 1)),)))
    return found


def search(sides, given, config=CONFIG) -> dict[str, FinishedTree]:
    scenario = sides[0].view.scenario
    return {tree.condition_id: tree for tree in run(*sides, scenario, given, config)}


@pytest.mark.slow
def test_a_tree_is_the_same_alone_among_others_and_in_another_order(sides):
    together = search(sides, roots(7))
    assert len({tree.nodes for tree in together.values()}) == 7
    turned = search(sides, roots(7)[::-1])
    assert turned == together  # values too, to the bit
    for i in (0, 4):
        assert search(sides, roots(7)[i : i + 1]) == {f"c{i}": together[f"c{i}"]}
    side_by_side = dataclasses.replace(CONFIG, trees=7)
    assert search(sides, roots(7), side_by_side) == together


@pytest.mark.slow
def test_a_tree_is_the_same_among_sixty_four_others(sides):
    many = search(sides, roots(65), dataclasses.replace(CONFIG, trees=65))
    for i in (0, 31, 64):
        assert search(sides, roots(65)[i : i + 1])[f"c{i}"] == many[f"c{i}"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 1, 2), (2, 2, 2)])
def test_eight_devices_grow_the_trees_of_one(template, shape, draws):
    """Except for draws so near a border between two tokens that rounding may cross it."""
    sides, others = speakers(template), speakers(template, mesh=make_mesh(MeshConfig(*shape)))
    one, eight = search(sides, roots(7)), search(others, roots(7))
    different = []
    for name, tree in one.items():
        first = first_difference(draws, sides, others, name)
        if first is None:
            assert said(tree) == said(eight[name])
            values = [node.value for node in tree.nodes]
            found = [node.value for node in eight[name].nodes]
            np.testing.assert_allclose(found, values, atol=1e-3)
            continue
        different.append(name)
        assert first < NEAR, name
    assert len(different) <= 1


def first_difference(draws, sides, others, name: str) -> float | None:
    """Return how near another token a tree's first different draw was; None without one.

    A draw follows from earlier ones: up to the first difference all of them are equal.
    """
    changed = False
    for side, other in zip(sides, others, strict=True):
        mine = {i: draw for i, draw in draws[side].items() if i[1] == hashed(name)}
        for identity, (before, tokens) in mine.items():
            their_before, theirs = draws[other].get(identity, ((), ()))
            if (before, tokens) == (their_before, theirs):
                continue
            changed = True
            if before != their_before:
                break  # it follows from what the other side has said
            at = next(i for i, (t, o) in enumerate(zip(tokens, theirs, strict=False)) if t != o)
            logits = np.asarray(side.model(np.array([[*before, *tokens[:at]]])))[0, -1]
            parts = np.array([identity], np.uint32)
            [key] = identity_keys(jax.random.key(SEED)[None], parts)
            return gap(logits, jax.random.fold_in(key, at))
    assert not changed, f"{name}: other leaves were selected, though nothing else was said"
    return None


def said(tree: FinishedTree) -> list:
    return [(node.text, node.visits) for node in tree.nodes]


def test_contexts_that_were_freed_are_read_again(sides):
    few = dataclasses.replace(CONFIG, contexts=0, iterations=5, leaves=1, rollouts=1, width=2)
    trees = search(sides, roots(4), few)
    assert sum(tree.account["context_misses"] for tree in trees.values()) > 0
    # A context that begins near an ancestor's is the same next to any others.
    assert search(sides, roots(4)[2:3], few) == {"c2": trees["c2"]}


def test_the_blocks_of_finished_trees_are_free(sides):
    search(sides, roots(3))
    assert [side.engine.pool.used for side in sides] == [0, 0]


def test_trees_are_the_same_if_the_pool_evicts_contexts(sides, template):
    few = [blocks_for(side, blocks=12) for side in sides]
    config = dataclasses.replace(CONFIG, trees=2)
    assert search(few, roots(3), config) == search(sides, roots(3), config)
    assert all(side.engine.stats.evictions for side in few)


def blocks_for(side: ModelSpeaker, *, blocks: int) -> ModelSpeaker:
    """Return the same speaker with an engine whose pool holds this many blocks."""
    config = dataclasses.replace(ENGINE, pool_tokens=blocks * BLOCK)
    engine = speaker_engine(side.engine.model(), side.view, SAMPLING, config)
    return ModelSpeaker(engine, side.view, SAMPLING, seed=SEED)


@pytest.mark.slow
def test_once_warm_a_whole_search_compiles_nothing(template):
    """With models of another length: nothing that they need was compiled for another test."""
    stats = EngineStats()
    sides = speakers(template, stats=stats, max_length=160)
    given = roots(5)
    warm_up(*sides, given, CONFIG)
    assert stats.compilations > 10
    for side in sides:
        most = search_tokens(CONFIG, side.sampling.max_new_tokens, side.limit)
        assert side.engine.pool.size >= min(CONFIG.trees, len(given)) * most // BLOCK
    before, stats.forbidden = stats.copy(), True
    trees = search(sides, given)
    assert (stats - before).compilations == 0
    assert sum(tree.account["simulations"] for tree in trees.values()) > 50


def test_an_opening_turn_longer_than_the_context_is_refused(sides):
    [root] = roots(1)
    long = dataclasses.replace(root, turns=(Turn("user", "help me please . " * 40),))
    with pytest.raises(InputError, match="newest turn"):
        search(sides, [long])
