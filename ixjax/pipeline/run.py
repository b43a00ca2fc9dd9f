"""An open run directory: its configuration, what is finished in it, and what stages share.

Each stage states what it was made from as one fingerprint. A stage whose fingerprint stands in
the manifest is not done again, so the same command continues an interrupted run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.dialogue.corpora import read_dialogues
from ixjax.dialogue.scenarios import Scenario, get_scenario
from ixjax.dialogue.tokenizer import load_tokenizer
from ixjax.dialogue.types import Dialogue, Role
from ixjax.distributed import first_then_others, is_first
from ixjax.generation import BlockPool, EngineStats, ModelSpeaker, speaker_engine
from ixjax.models import ModelConfig, Transformer
from ixjax.parallel import describe, make_mesh
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.environment import versions
from ixjax.pipeline.inputs import PREFERENCES, corpus_inputs, paths, sources, stage_inputs
from ixjax.pipeline.metrics import Sink, open_sinks
from ixjax.training import Profiler, load_model

CONDITIONS_SCHEMA = "ixjax.conditions"
WARM_UP_SECONDS = 10.0  # between two words about a warm-up
COMMANDS = {"pairs": "search"}  # of stages that are not named like the command that does them


class Reporter(Protocol):
    """Who is told how a stage goes; `ixjax.commands.progress` draws it."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """A piece of work of `total` units begins."""
        ...

    def advance(self, count: int = 1, *, earlier: int = 0, **metrics: float) -> None:
        """`count` units are done; metrics are the latest figures.

        `earlier` units more were done before this start of the stage: they tell nothing of its
        speed.
        """
        ...

    def finish(self, **facts: Any) -> None:
        """The piece of work is done."""
        ...

    def note(self, text: str) -> None:
        """One line worth reading."""
        ...


class SilentReporter:
    """A `Reporter` for programs that show no progress."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """See `Reporter`."""

    def advance(self, count: int = 1, *, earlier: int = 0, **metrics: float) -> None:
        """See `Reporter`."""

    def finish(self, **facts: Any) -> None:
        """See `Reporter`."""

    def note(self, text: str) -> None:
        """See `Reporter`."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory and what its stages share."""

    config: RunConfig
    directory: io.RunDirectory

    @functools.cached_property
    def scenario(self) -> Scenario:
        """Whose dialogues these are."""
        return get_scenario(self.config.scenario)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices that train."""
        return make_mesh(self.config.mesh)

    @property
    def devices(self) -> str:
        """One line about the devices, for people."""
        return describe(self.mesh)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer of the run and its chat template."""
        return ChatTemplate.from_tokenizer(load_tokenizer(self.directory.tokenizer))

    def view(self, role: Role) -> View:
        """How one side sees a dialogue."""
        return View(scenario=self.scenario, role=role, template=self.template)

    def dialogues(self, split: str) -> list[Dialogue]:
        """The dialogues of one split: train, train_heldout, valid or test."""
        return read_dialogues(self.directory.data / f"{split}.jsonl")

    def load(self, directory: Path) -> Transformer:
        """A trained model of this run."""
        return load_model(directory, mesh=self.mesh)

    @functools.cached_property
    def account(self) -> EngineStats:
        """What the generation engines of this process have done."""
        return EngineStats()

    @functools.cached_property
    def _pools(self) -> weakref.WeakValueDictionary[ModelConfig, BlockPool]:
        """KV caches of engines in use: models of one shape share one."""
        return weakref.WeakValueDictionary()

    def speaker(self, directory: Path, role: Role, *, seed_offset: int = 0) -> ModelSpeaker:
        """Return a trained model of this run as one side of the dialogue."""
        model, view, sampling = self.load(directory), self.view(role), self.config.sampling
        engine = speaker_engine(
            model,
            view,
            sampling,
            self.config.engine,
            stats=self.account,
            pool=self._pools.get(model.config),
        )
        self._pools[model.config] = engine.pool
        return ModelSpeaker(
            model,
            view,
            sampling,
            seed=self.config.seed + seed_offset,
            readout=self.config.readout,
            engine=engine,
        )

    @contextlib.contextmanager
    def engine_at_work(
        self, stage: str, reporter: Reporter, warm_up: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Tell of the generation engines what they are, and after the block what they did.

        Args:
            stage: whose work it is.
            reporter: is told.
            warm_up: compiles all that the block needs; called where the settings ask for it.
        """
        engine, debug = self.config.engine, self.config.debug
        before, started = self.account.copy(), time.monotonic()
        if warm_up is not None and (engine.warm_up or debug.forbid_recompile):
            with self._telling(f"{stage}: warming up", reporter):
                warm_up()
            compiled = (self.account - before).compilations
            seconds = time.monotonic() - started
            reporter.note(f"{stage}: warmed up, {compiled} programs in {seconds:.1f} s")
            self.account.forbidden = debug.forbid_recompile
            before, started = self.account.copy(), time.monotonic()
        try:
            yield
        finally:
            self.account.forbidden = False
        report = (self.account - before).report(time.monotonic() - started)
        self.log(stage, {"engine": report})
        reporter.note(f"{stage}: {_engine_line(report)}")

    @contextlib.contextmanager
    def _telling(self, what: str, reporter: Reporter) -> Iterator[None]:
        """Say every few seconds of a long block how many programs it has compiled."""
        before, started, over = self.account.compilations, time.monotonic(), threading.Event()

        def tell() -> None:
            while not over.wait(WARM_UP_SECONDS):
                count, seconds = self.account.compilations - before, time.monotonic() - started
                reporter.note(f"{what}, {count} programs so far ({seconds:.0f} s)")

        reporter.note(f"{what}: every size that may occur is compiled now")
        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()

    def root(self, dialogue: Dialogue) -> Dialogue:
        """Where the policy first moves under a dialogue's condition."""
        return dialogue.before(0 if self.scenario.policy_opens else 1)

    def roots(self, split: str) -> list[Dialogue]:
        """Where the policy first moves under each condition of a split: train or test."""
        records = io.read_jsonl(self.directory.conditions, schema=CONDITIONS_SCHEMA)
        return [Dialogue.from_json(r["root"]) for r in records if r["split"] == split]

    def inputs(self, stage: str) -> str:
        """The fingerprint of what a stage is made from now."""
        return stage_inputs(stage, self.config, self._prepared, self.preferences_fingerprint)

    @functools.cached_property
    def sources(self) -> dict[str, object]:
        """What the run is prepared from, path by path.

        What is not at hand any more leaves what was prepared from it as it is.
        """
        recorded = self.recorded_sources
        given = {name: Path(path) for name, path in paths(self.config).items() if path}
        gone = {name for name, path in given.items() if not path.exists()} & recorded.keys()
        return sources(self.config) | {name: recorded[name] for name in gone}

    @property
    def recorded_sources(self) -> Mapping[str, object]:
        """What the run was prepared from, as the manifest has it; empty before that."""
        return (self.manifest.get("prepare") or {}).get("sources", {})

    @functools.cached_property
    def preferences_fingerprint(self) -> str:
        """The fingerprint of the file of preferences; of one that is gone, as it was read."""
        path = self.config.preferences.path
        if Path(path).is_file():
            return io.file_fingerprint(path)
        recorded = self.manifest.get(f"dpo/{PREFERENCES}") or {}
        return recorded.get("file", "") if path else ""

    @functools.cached_property
    def _prepared(self) -> str:
        return corpus_inputs(self.config, self.sources)

    def require(self, *stages: str) -> None:
        """See to it that stages are finished, and from what they would be made from now.

        Raises:
            InputError: one is not; names the command that does it.
        """
        for stage in stages:
            entry = self.manifest.get(stage)
            command = COMMANDS.get(stage, stage.partition("/")[0])
            if entry is None or not all(path.exists() for path in self._outputs(stage)):
                state = "is not finished here"
            elif entry["inputs"] != self.inputs(stage):
                state = "was made from other data or settings than the present ones"
            else:
                continue
            raise io.InputError(
                f"{self.directory.root}: {stage} {state}; run `ixjax {command}` with the same "
                "--config and --out first"
            )

    def facts(self, stage: str) -> dict[str, Any]:
        """What the manifest holds of a finished stage.

        Raises:
            InputError: see `require`.
        """
        self.require(stage)
        return dict(self.manifest.stages[stage])

    def _outputs(self, stage: str) -> list[Path]:
        """What a finished stage has left, by which it is known to be still there."""
        d, (kind, _, which) = self.directory, stage.partition("/")
        return {
            "prepare": [d.data, d.conditions, d.tokenizer],
            "sft": [d.root / ("policy_sft" if which == "policy" else which) / "model"],
            "search": [d.all_trees],
            "pairs": [d.pairs, d.human_pairs],
            "dpo": [d.policy_dpo / which / "model"],
            "evaluate": [d.evaluation],
        }[kind]

    def _has_states(self, stage: str) -> bool:
        """Whether a training has left something to continue from."""
        return any(any(path.parent.glob("steps/*")) for path in self._outputs(stage))

    @property
    def manifest(self) -> io.Manifest:
        """What is finished, read anew."""
        return io.Manifest.load(self.directory.manifest)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any] | None]:
        """Do a piece of work once.

        Yields:
            A dictionary for facts to record with the finished stage; None where the manifest
            holds it already, made from the same inputs, and its output is still there.
        """
        inputs = self.inputs(name)
        there = all(path.exists() for path in self._outputs(name))
        if there and self.manifest.is_done(name, inputs):
            yield None
            return
        if is_first():
            self.manifest.start(name, inputs)
        facts: dict[str, Any] = {}
        started = time.monotonic()
        try:
            yield facts
        except BaseException:
            if is_first() and not self._has_states(name):
                self.manifest.forget(name)
            raise
        seconds = round(time.monotonic() - started, 1)
        made_with = {**versions(), "devices": self.devices}
        with first_then_others(f"{name} is finished"):
            if is_first():
                self.manifest.record(name, inputs, made_with=made_with, seconds=seconds, **facts)

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, and tell the sinks that the run asks for.

        Of processes that train together the first one does.
        """
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
        """Traces the steps of a training that the run asks for."""
        folder = self.directory.root / "profile" / stage
        if jax.process_count() > 1:
            folder /= f"process-{jax.process_index()}"
        return Profiler(self.config.profile, folder)


def tell_steps(
    reporter: Reporter, what: str, metrics: dict[str, Any], *, shown: Sequence[str]
) -> None:
    """Tell of a training's steps, and once where an interrupted one goes on.

    Args:
        reporter: is told.
        what: the training.
        metrics: as the trainer reports them; `resumed_at` is taken out.
        shown: which of them a person watches.
    """
    earlier = metrics.pop("resumed_at", 0)
    if earlier:
        reporter.note(f"{what}: continued behind step {earlier} of {metrics['steps']}")
    figures = {name: metrics[name] for name in shown if metrics.get(name) is not None}
    reporter.advance(metrics["steps_since"] - earlier, earlier=earlier, **figures)


def _engine_line(report: Mapping[str, float]) -> str:
    shares = ", ".join(
        f"{name} {100 * report[f'{name}_share']:.0f} %"
        for name in ("prefill", "decode", "score", "host")
    )
    return (
        f"{report['tokens_per_second']:,.0f} tokens/s, "
        f"occupancy {100 * report['occupancy']:.0f} %, "
        f"{report['compilations']:.0f} compilations ({report['compile_seconds']:.1f} s); {shares}"
    )
