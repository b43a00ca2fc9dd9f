"""An open run directory: its configuration, its finished stages, and the objects that they share.

A finished stage is recorded in the manifest with the fingerprint of its inputs (`stages.py`). A
stage with an unchanged fingerprint is not done again, so a command continues an interrupted run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.dialogue.corpora import read_dialogues
from ixjax.dialogue.scenarios import Scenario, get_scenario
from ixjax.dialogue.tokenizer import load_tokenizer
from ixjax.dialogue.types import Dialogue, Role
from ixjax.distributed import first_then_others, is_first
from ixjax.generation import EngineStats, ModelSpeaker
from ixjax.models import Transformer
from ixjax.parallel import describe, make_mesh
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.engines import Engines
from ixjax.pipeline.environment import versions
from ixjax.pipeline.inputs import corpus_inputs, paths, sources
from ixjax.pipeline.metrics import Sink, open_sinks
from ixjax.pipeline.stages import PREFERENCES, STAGES, Inputs
from ixjax.training import Profiler, load_model

CONDITIONS_SCHEMA = "ixjax.conditions"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory and the objects that its stages share."""

    config: RunConfig
    directory: io.RunDirectory

    @functools.cached_property
    def scenario(self) -> Scenario:
        """Return the scenario of the dialogues."""
        return get_scenario(self.config.scenario)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """Return the devices that train."""
        return make_mesh(self.config.mesh)

    @property
    def devices(self) -> str:
        """Return one line that describes the devices."""
        return describe(self.mesh)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """Return the chat template of the run, with its tokenizer."""
        return ChatTemplate.from_tokenizer(load_tokenizer(self.directory.tokenizer))

    def view(self, role: Role) -> View:
        """Return how one side sees a dialogue."""
        return View(scenario=self.scenario, role=role, template=self.template)

    def dialogues(self, split: str) -> list[Dialogue]:
        """Return the dialogues of one split: train, train_heldout, valid or test."""
        return read_dialogues(self.directory.data / f"{split}.jsonl")

    def model_folder(self, stage: str) -> Path:
        """Return the folder of the model that a stage makes: `sft/policy`, `dpo/imcts`, ..."""
        return STAGES[stage].model(self.directory)

    def load(self, directory: Path) -> Transformer:
        """Return a trained model of this run."""
        return load_model(directory, mesh=self.mesh)

    @functools.cached_property
    def engine_stats(self) -> EngineStats:
        """Return the statistics of the generation engines of this process."""
        return EngineStats()

    @functools.cached_property
    def engines(self) -> Engines:
        """Return the engines of this process."""
        return Engines(self.config, self.mesh, self.engine_stats)

    def speaker(self, directory: Path, role: Role, *, seed_offset: int = 0) -> ModelSpeaker:
        """Return a trained model of this run as one side of the dialogue."""
        return self.engines.speaker(directory, self.view(role), seed=self.config.seed + seed_offset)

    def root(self, dialogue: Dialogue) -> Dialogue:
        """Return the beginning of a dialogue up to the policy's first turn."""
        return dialogue.before(0 if self.scenario.policy_opens else 1)

    def roots(self, split: str) -> list[Dialogue]:
        """Return the root of every condition of a split: train or test."""
        records = io.read_jsonl(self.directory.conditions, schema=CONDITIONS_SCHEMA)
        return [Dialogue.from_json(r["root"]) for r in records if r["split"] == split]

    def inputs(self, stage: str) -> str:
        """Return the fingerprint that a stage would have now."""
        return Inputs(self.config, self._corpus, self.preferences_fingerprint).of(stage)

    @functools.cached_property
    def _corpus(self) -> str:
        return corpus_inputs(self.config, self.sources)

    @functools.cached_property
    def sources(self) -> dict[str, object]:
        """Return the content of the files that `prepare` reads, as recorded if they are removed."""
        recorded = self.recorded_sources
        given = {name: Path(path) for name, path in paths(self.config).items() if path}
        gone = {name for name, path in given.items() if not path.exists()} & recorded.keys()
        return sources(self.config) | {name: recorded[name] for name in gone}

    @property
    def recorded_sources(self) -> Mapping[str, object]:
        """Return the content of these files at `prepare`; empty before it."""
        return (self.manifest.get("prepare") or {}).get("sources", {})

    @functools.cached_property
    def preferences_fingerprint(self) -> str:
        """Return the fingerprint of the file of preferences, as recorded if it is removed."""
        path = self.config.preferences.path
        if Path(path).is_file():
            return io.file_fingerprint(path)
        recorded = self.manifest.get(f"dpo/{PREFERENCES}") or {}
        return recorded.get("file", "") if path else ""

    @property
    def manifest(self) -> io.Manifest:
        """Return the record of finished stages, read anew."""
        return io.Manifest.load(self.directory.manifest)

    def require(self, *stages: str) -> None:
        """Raise unless each stage is finished and up to date.

        Raises:
            InputError: names the first that is not, and the command that runs it.
        """
        for name in stages:
            stage, record = STAGES[name], self.manifest.get(name)
            if record is None or not stage.finished(self.directory):
                state = "is not finished here"
            elif record["inputs"] != self.inputs(name):
                state = "was made from other data or settings than the present ones"
            else:
                continue
            raise io.InputError(
                f"{self.directory.root}: {name} {state}; run `ixjax {stage.command}` with the same "
                "--config and --out first"
            )

    def facts(self, stage: str) -> dict[str, Any]:
        """Return the manifest's record of a finished stage.

        Raises:
            InputError: see `require`.
        """
        self.require(stage)
        return dict(self.manifest.stages[stage])

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any] | None]:
        """Do the work of a stage once.

        Yields:
            A dictionary for facts to record with the finished stage; None if it is finished and up
            to date.
        """
        stage, inputs = STAGES[name], self.inputs(name)
        if stage.finished(self.directory) and self.manifest.is_done(name, inputs):
            yield None
            return
        if is_first():
            self.manifest.start(name, inputs)
        facts: dict[str, Any] = {}
        started = time.monotonic()
        try:
            yield facts
        except BaseException:
            if is_first() and not stage.resumable(self.directory):
                self.manifest.forget(name)
            raise
        seconds = round(time.monotonic() - started, 1)
        made_with = {**versions(), "devices": self.devices}
        with first_then_others(f"{name} is finished"):
            if is_first():
                self.manifest.record(name, inputs, made_with=made_with, seconds=seconds, **facts)

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl and pass it to the sinks; the first process does."""
        if not is_first():
            return
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in metrics.items()
        }
        io.append_jsonl(self.directory.metrics, {"stage": stage, **finite})
        for sink in self._sinks:
            sink.log(stage, finite)

    @functools.cached_property
    def _sinks(self) -> list[Sink]:
        if self.config.processes.index > 0:
            return []
        settings = dataclasses.asdict(self.config)
        return open_sinks(self.config.metrics, self.directory, settings)

    def profiler(self, stage: str) -> Profiler:
        """Return the profiler of a training, for the steps that the settings name."""
        folder = self.directory.root / "profile" / stage
        if jax.process_count() > 1:
            folder /= f"process-{jax.process_index()}"
        return Profiler(self.config.profile, folder)
