"""A run of seconds: every stage real, everything small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from ixjax.dialogue.corpora import DataConfig
from ixjax.dialogue.tokenizer import TokenizerConfig
from ixjax.evaluation import EvaluationConfig
from ixjax.generation import SamplingConfig
from ixjax.models import ModelArguments
from ixjax.parallel import MeshConfig, make_mesh
from ixjax.pipeline import Run, RunConfig, open_run
from ixjax.search import PairsConfig, SearchConfig
from ixjax.training import DPOConfig, SFTConfig


def tiny_run(out: Path, **changes: Any) -> RunConfig:
    """Settings whose batches divide by eight devices."""
    settings: dict[str, Any] = {
        "out": str(out),
        "data": DataConfig(sandbox_dialogues=80),
        "tokenizer": TokenizerConfig(vocab_size=420),
        "model": ModelArguments(
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            intermediate_size=64,
            max_length=224,
        ),
        "sft": SFTConfig(steps=4, batch_size=8, eval_every=2, checkpoint_every=2, log_every=1),
        "sampling": SamplingConfig(max_new_tokens=8),
        "search": SearchConfig(
            conditions=4, trees=2, iterations=2, width=3, rollouts=1, max_turns=3
        ),
        "pairs": PairsConfig(min_margin=0.0),
        "dpo": DPOConfig(steps=4, batch_size=8, checkpoint_every=2, log_every=1),
        "evaluation": EvaluationConfig(
            conditions=4, batch=4, max_turns=2, bootstrap=50, candidates=2, fidelity_dialogues=4
        ),
    }
    return RunConfig(**(settings | changes))


def opened(config: RunConfig, *, devices: int = 1) -> Run:
    """Open a run on the first devices: eight virtual ones share two cores, and take their time."""
    run = open_run(config)
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), devices=jax.devices()[:devices])
    vars(run)["mesh"] = mesh
    return run


class Silent:
    """A reporter that counts what it is told.

    In the stage `stop_in` it stops once `after` units are done, like Ctrl-C.
    """

    def __init__(self, stop_in: str | None = None, *, after: int = 3):
        self.told = 0
        self._stop_in, self._after = stop_in, after
        self._stage, self._count = "", 0

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.told += 1
        self._stage, self._count = stage, 0

    def advance(self, count: int = 1, *, earlier: int = 0, **metrics: float) -> None:
        self.told += 1
        before, self._count = self._count, self._count + count + earlier
        if self._stage == self._stop_in and before < self._after <= self._count:
            raise KeyboardInterrupt(self._stage)

    def finish(self, **facts: Any) -> None:
        self.told += 1

    def note(self, text: str) -> None:
        self.told += 1


class Notes(Silent):
    """A reporter that keeps what it is told in words."""

    def __init__(self, stop_in: str | None = None) -> None:
        super().__init__(stop_in, after=1)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
