"""Engines of a run's models in play: what models have in common is in memory once."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path

from jax.sharding import Mesh

from ixjax.dialogue.chat import View
from ixjax.generation import BlockPool, Engine, EngineStats, ModelSpeaker, speaker_engine
from ixjax.models import ModelConfig, Transformer, add_lora
from ixjax.pipeline.config import RunConfig
from ixjax.training.saved_models import (
    base_of,
    load_adapter_weights,
    load_model,
    saved_config,
    saved_inputs,
)

ADAPTERS = 3  # most models of a base that play at once: policy, its simulator, the user


@dataclasses.dataclass
class _Place:
    """A place for an adapter in an engine.

    index: its number there.
    model: folder and fingerprint of the model whose adapter it holds.
    users: speakers that are in use.
    """

    index: int
    model: tuple[Path, str] | None = None
    users: weakref.WeakSet[ModelSpeaker] = dataclasses.field(default_factory=weakref.WeakSet)


class Engines:
    """Makes speakers of a run's trained models.

    Models of one shape share a pool of blocks. Models that adapt one base share its weights and its
    decode batch, too. Nothing is kept once its speakers are gone.

    Args:
        config: of the run.
        mesh: the devices.
        stats: counts what all engines do.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, stats: EngineStats):
        self._config, self._mesh, self._stats = config, mesh, stats
        self._pools: weakref.WeakValueDictionary[ModelConfig, BlockPool]
        self._pools = weakref.WeakValueDictionary()
        self._places: weakref.WeakKeyDictionary[Engine, tuple[ModelConfig, Path, list[_Place]]]
        self._places = weakref.WeakKeyDictionary()
        self._room, self._kept = 0, list[BlockPool]()

    @contextlib.contextmanager
    def room_for(self, tokens: int) -> Iterator[None]:
        """Give pools that are made in a block room for so many tokens, and keep them to its end.

        Passes are compiled for the size of a pool: one that grows compiles them again.
        """
        self._room = tokens
        try:
            yield
        finally:
            self._room = 0
            self._kept.clear()

    def speaker(self, folder: Path, view: View, *, seed: int) -> ModelSpeaker:
        """Return the trained model in a folder as one side of the dialogue."""
        base = base_of(folder)
        if base is None:
            return self._speaker(
                self._engine(load_model(folder, mesh=self._mesh), view), view, seed
            )
        engine, place = self._place(base, folder, view)
        speaker = self._speaker(engine, view, seed, adapter=place.index)
        place.users.add(speaker)
        return speaker

    def _place(self, base: Path, folder: Path, view: View) -> tuple[Engine, _Place]:
        """Return an engine that holds the adapter in a folder, and its place there."""
        config, model = saved_config(folder), (folder, saved_inputs(folder))
        alike = [
            (engine, place)
            for engine, (of, on, places) in self._places.items()
            if (of, on) == (config, base)
            for place in places
        ]
        for engine, place in alike:
            if place.model == model:
                return engine, place
        free = [(engine, place) for engine, place in alike if not place.users]
        engine, place = free[0] if free else self._new(base, config, view)
        engine.set_adapter(place.index, load_adapter_weights(folder, mesh=self._mesh))
        place.model = model
        return engine, place

    def _new(self, base: Path, config: ModelConfig, view: View) -> tuple[Engine, _Place]:
        """Return an engine with places for adapters of a base, and the first of them."""
        assert config.lora is not None
        lora = dataclasses.replace(config.lora, adapters=ADAPTERS)
        engine = self._engine(add_lora(load_model(base, mesh=self._mesh), lora, seed=0), view)
        places = [_Place(index) for index in range(ADAPTERS)]
        self._places[engine] = config, base, places
        return engine, places[0]

    def _engine(self, model: Transformer, view: View) -> Engine:
        config, pool = self._config, self._pools.get(model.config)
        engine = speaker_engine(
            model, view, config.sampling, config.engine, stats=self._stats, pool=pool
        )
        if pool is None:
            self._pools[model.config] = engine.pool
            if self._room:
                engine.pool.reserve(self._room)
                self._kept.append(engine.pool)
        return engine

    def _speaker(self, engine: Engine, view: View, seed: int, *, adapter: int = 0) -> ModelSpeaker:
        config = self._config
        return ModelSpeaker(
            engine, view, config.sampling, seed=seed, readout=config.readout, adapter=adapter
        )
