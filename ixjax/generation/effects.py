"""Effects that an engine serves: turns to decode, contexts to read, continuations to score."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import ClassVar

import numpy as np

from ixjax.generation.blocks import Context
from ixjax.generation.driver import Effect, Kind
from ixjax.generation.engine import Engine
from ixjax.generation.requests import Request


@dataclasses.dataclass(eq=False)
class EngineWork(Effect):
    """A turn to decode or a context to read; one call of the engine serves both."""

    engine: Engine
    kind: ClassVar[Kind] = "turns"

    @property
    def group(self) -> Hashable:
        """See `Effect`."""
        return (EngineWork, self.engine)

    @property
    def fills(self) -> int:
        """See `Effect`."""
        return self.engine.config.rows

    def serve(self, effects: Sequence[EngineWork]) -> Iterable[tuple[Effect, None]]:
        """See `Effect`."""
        requests = {e.request: e for e in effects if isinstance(e, Decode)}
        reads = [e for e in effects if isinstance(e, Read)]
        done = self.engine.step(list(requests), [read.context for read in reads])
        finished = [read for read in reads if not read.context.unread]
        return [(effect, None) for effect in (*(requests[r] for r in done), *finished)]


@dataclasses.dataclass(eq=False)
class Decode(EngineWork):
    """A turn to decode; the request holds the result."""

    request: Request

    def __post_init__(self) -> None:
        self.turns = self.request.turns


@dataclasses.dataclass(eq=False)
class Read(EngineWork):
    """A context to read up to its last token, so that forks share it."""

    context: Context


@dataclasses.dataclass(eq=False)
class Score(Effect):
    """Continuations to score; the result is `[C]` float32 log-probabilities."""

    engine: Engine
    context: Context
    prefix: Sequence[int]
    candidates: Sequence[Sequence[int]]
    kind: ClassVar[Kind] = "outcomes"

    @property
    def group(self) -> Hashable:
        """See `Effect`."""
        return (Score, self.engine)

    @property
    def fills(self) -> int:
        """See `Effect`."""
        return max(self.engine.config.rows // 4, 1)

    def serve(self, effects: Sequence[Score]) -> Iterable[tuple[Effect, np.ndarray]]:
        """See `Effect`."""
        most = max(len(effect.candidates) for effect in effects)
        scores = self.engine.score(
            [effect.context for effect in effects],
            [effect.prefix for effect in effects],
            [[*e.candidates, *[()] * (most - len(e.candidates))] for e in effects],
        )
        return [(e, row[: len(e.candidates)]) for e, row in zip(effects, scores, strict=True)]
