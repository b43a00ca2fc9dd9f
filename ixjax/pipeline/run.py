"""An open run directory: its configuration, what is finished in it, and what stages share.

Each stage states what it was made from as one fingerprint. A stage whose fingerprint stands in
the manifest is not done again, so the same command continues an interrupted run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml
from jax.sharding import Mesh

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.dialogue.corpora import read_dialogues
from ixjax.dialogue.scenarios import Scenario, get_scenario
from ixjax.dialogue.tokenizer import load_tokenizer
from ixjax.dialogue.types import Dialogue, Role
from ixjax.generation import Account, ModelSpeaker, speaker_engine
from ixjax.generation.speakers import OUTCOME_TOKENS
from ixjax.models import Transformer
from ixjax.parallel import describe, make_mesh
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.inputs import corpus_inputs, stage_inputs
from ixjax.training import load_model

CONDITIONS_SCHEMA = "ixjax.conditions"
COMMANDS = {"pairs": "search"}  # of stages that are not named like the command that does them


class Reporter(Protocol):
    """Who is told how a stage goes; `ixjax.commands.progress` draws it."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """A piece of work of `total` units begins."""
        ...

    def advance(self, count: int = 1, **metrics: float) -> None:
        """`count` units are done; metrics are the latest figures."""
        ...

    def finish(self, **facts: Any) -> None:
        """The piece of work is done."""
        ...

    def note(self, text: str) -> None:
        """One line worth reading."""
        ...


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
    def account(self) -> Account:
        """What the generation engines of this process have done."""
        return Account()

    def speaker(self, directory: Path, role: Role, *, seed_offset: int = 0) -> ModelSpeaker:
        """A trained model of this run as one side of the dialogue."""
        model, view, sampling = self.load(directory), self.view(role), self.config.sampling
        return ModelSpeaker(
            model,
            view,
            sampling,
            seed=self.config.seed + seed_offset,
            readout=self.config.readout,
            engine=speaker_engine(model, view, sampling, self.config.engine, account=self.account),
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

    def root(self, dialogue: Dialogue) -> Dialogue:
        """Where the policy first moves under a dialogue's condition."""
        return dialogue.before(0 if self.scenario.policy_opens else 1)

    def roots(self, split: str) -> list[Dialogue]:
        """Where the policy first moves under each condition of a split: train or test."""
        records = io.read_jsonl(self.directory.conditions, schema=CONDITIONS_SCHEMA)
        return [Dialogue.from_json(r["root"]) for r in records if r["split"] == split]

    def inputs(self, stage: str) -> str:
        """The fingerprint of what a stage is made from now."""
        return stage_inputs(stage, self.config, self._prepared)

    @functools.cached_property
    def _prepared(self) -> str:
        # A corpus that is not at hand any more leaves what was prepared from it as it is.
        entry = self.manifest.get("prepare")
        path = self.config.data.path
        if entry is not None and path and not Path(path).exists():
            return entry["corpus"]
        return corpus_inputs(self.config)

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
            "search": [d.trees],
            "pairs": [d.pairs, d.human_pairs],
            "dpo": [d.policy_dpo / which / "model"],
            "evaluate": [d.evaluation],
        }[kind]

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
        self.manifest.start(name, inputs)
        facts: dict[str, Any] = {}
        started = time.monotonic()
        yield facts
        self.manifest.record(name, inputs, seconds=round(time.monotonic() - started, 1), **facts)

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in metrics.items()
        }
        io.append_jsonl(self.directory.metrics, {"stage": stage, **finite})


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


def open_run(config: RunConfig) -> Run:
    """Create or continue the run directory `config.out`.

    Raises:
        InputError: the directory belongs to another configuration (names what differs), or holds
            something that is not a run.
    """
    if not config.out:
        raise io.InputError("out: no run directory given; set --out RUN")
    get_scenario(config.scenario)  # an unknown name is said before anything is written
    _check_settings(config)
    directory = io.RunDirectory(Path(config.out))
    mine, run = _settings(config), Run(config, directory)
    if directory.config.exists():
        theirs = yaml.safe_load(directory.config.read_text()) or {}
        _refuse_other_config(run, _flatten(theirs))
        if theirs != yaml.safe_load(yaml.safe_dump(mine)):  # in what changes no result
            io.write_text(directory.config, yaml.safe_dump(mine, sort_keys=False))
    elif directory.root.exists() and any(directory.root.iterdir()):
        raise io.InputError(
            f"{directory.root}: holds files but no config.yaml, so it is not a run directory; "
            "give an empty or new folder as --out"
        )
    else:
        directory.root.mkdir(parents=True, exist_ok=True)
        io.write_text(directory.config, yaml.safe_dump(mine, sort_keys=False))
    return run


def _check_settings(config: RunConfig) -> None:
    """Refuse now what would fail hours later."""
    if not 0 <= config.seed < 2**31:
        raise io.InputError(f"seed is {config.seed}; expected 0 or more, below 2^31")
    if config.search.width < 2:
        raise io.InputError(
            f"search.width is {config.search.width}; expected 2 or more: a pair needs two responses"
        )
    longest, turn = config.model.max_length, config.sampling.max_new_tokens
    if longest <= turn + OUTCOME_TOKENS:
        raise io.InputError(
            f"sampling.max_new_tokens is {turn}, model.max_length {longest}: a context must hold "
            f"a turn, {OUTCOME_TOKENS} tokens of an outcome line, and some history; expected "
            f"model.max_length to be more than {turn + OUTCOME_TOKENS}"
        )


def _settings(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, without the place it is written to."""
    settings = dataclasses.asdict(config)
    del settings["out"]
    return settings


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _refuse_other_config(run: Run, theirs: Mapping[str, Any]) -> None:
    """Refuse settings that something in the run directory was made without.

    Settings of stages that are yet to be done may change, and those that change no result. A
    setting that is newer than the run directory was at its default there.
    """
    mine, default = _flatten(io.plain(run.config)), _flatten(io.plain(RunConfig()))
    known = {**default, **theirs}
    differing = [key for key in sorted(mine) if known.get(key) != mine[key]]
    made = run.manifest.made
    stale = [stage for stage, inputs in made.items() if inputs != run.inputs(stage)]
    if differing and stale:
        lines = [f"  {k}: {known.get(k)!r} there, {mine[k]!r} now" for k in differing]
        raise io.InputError(
            f"{run.directory.config}: this run was made with another configuration:\n"
            + "\n".join(lines)
            + f"\nMade with it: {', '.join(stale)}. Give another --out, or the same settings."
        )
