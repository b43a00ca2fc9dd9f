"""The stages of a run, in one table: names, commands, inputs and outputs.

A stage's fingerprint covers its own settings and the fingerprints of the stages before it, down to
the corpus. A stage is up to date if the manifest holds the fingerprint that it would have now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from ixjax import io
from ixjax.dialogue.types import Role
from ixjax.pipeline.config import RunConfig

SPEAKERS = ("policy", "simulator", "simulator_heldout")
SIMULATORS = SPEAKERS[1:]
SOURCES = ("human", "imcts", "mix")  # of pairs that the run makes
PREFERENCES = "preferences"  # the source that is a file


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The settings and files that fingerprints are computed from.

    config: of the run.
    corpus: fingerprint of the files and settings that `prepare` reads.
    preferences: fingerprint of the file `preferences.path`.
    """

    config: RunConfig
    corpus: str
    preferences: str = ""

    def of(self, stage: str) -> str:
        """Return the fingerprint of a stage made from these inputs."""
        return io.fingerprint(stage, *STAGES[stage].made_from(self))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A piece of work that a run does once.

    name: its key in the manifest.
    command: `ixjax COMMAND` runs it.
    made_from: inputs -> parts of its fingerprint.
    leaves: files and folders that exist once it is finished; a model's folder comes first.
    writes: further files and folders.
    role: the side that its model speaks for; None: it makes no model.
    """

    name: str
    command: str
    made_from: Callable[[Inputs], list[object]]
    leaves: Callable[[io.RunDirectory], list[Path]]
    writes: Callable[[io.RunDirectory], list[Path]] = lambda directory: []
    role: Role | None = None

    @property
    def member(self) -> str:
        """Return the speaker or source of pairs in its name: `imcts` of `dpo/imcts`."""
        return self.name.partition("/")[2]

    @property
    def title(self) -> str:
        """Return its name as it is printed: `dpo imcts`."""
        return self.name.replace("/", " ")

    def finished(self, directory: io.RunDirectory) -> bool:
        """Return whether every file and folder that it leaves exists."""
        return all(path.exists() for path in self.leaves(directory))

    def model(self, directory: io.RunDirectory) -> Path:
        """Return the folder of a stage's model, which holds `model/`."""
        return self.leaves(directory)[0].parent

    def resumable(self, directory: io.RunDirectory) -> bool:
        """Return whether a training has left a state to continue from."""
        return self.role is not None and any(self.model(directory).glob("steps/*"))


def speaker_seed(name: str, seed: int) -> int:
    """Return the seed of one model's weights and order of examples: one per speaker and run."""
    return 10 * seed + 1 + SPEAKERS.index(name)


def _sft(name: str, role: Role) -> Stage:
    folder = "policy_sft" if name == "policy" else name
    return Stage(
        f"sft/{name}",
        "sft",
        lambda inputs: [
            inputs.of("prepare"),
            inputs.config.sft,
            inputs.config.model,
            speaker_seed(name, inputs.config.seed),
        ],
        lambda directory: [directory.root / folder / "model"],
        lambda directory: [directory.base],
        role=role,
    )


def _dpo(source: str) -> Stage:
    def made_from(inputs: Inputs) -> list[object]:
        config, policy = inputs.config, inputs.of("sft/policy")
        if source == PREFERENCES:
            # `alone` decides about the other sources only.
            settings = dataclasses.replace(config.preferences, alone=False)
            return [inputs.preferences, policy, config.dpo, settings, source]
        return [inputs.of("pairs"), policy, config.dpo, config.pairs, source]

    return Stage(
        f"dpo/{source}",
        "dpo",
        made_from,
        lambda directory: [directory.policy_dpo / source / "model"],
        role="policy",
    )


def _evaluation_inputs(inputs: Inputs) -> list[object]:
    config = inputs.config
    return [
        [inputs.of(f"dpo/{source}") for source in pair_sources(config)],
        [inputs.of(f"sft/{name}") for name in SIMULATORS],
        # A policy aligned on a file alone depends on none of these.
        [config.sampling, config.readout, config.search.c_uct],
        config.evaluation,
    ]


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            "prepare",
            lambda inputs: [inputs.corpus],
            lambda directory: [directory.data, directory.conditions, directory.tokenizer],
        ),
        _sft("policy", "policy"),
        _sft("simulator", "user"),
        _sft("simulator_heldout", "user"),
        Stage(
            "search",
            "search",
            lambda inputs: [
                [inputs.of("sft/policy"), inputs.of("sft/simulator")],
                inputs.config.search,
                inputs.config.sampling,
                inputs.config.readout,
                inputs.config.seed,
            ],
            lambda directory: [directory.all_trees],
        ),
        Stage(
            "pairs",
            "search",
            lambda inputs: [inputs.of("search"), inputs.config.pairs],
            lambda directory: [directory.pairs, directory.human_pairs],
            lambda directory: [directory.pairs_trl, directory.pairs_llama_factory],
        ),
        *map(_dpo, (*SOURCES, PREFERENCES)),
        Stage(
            "evaluate",
            "evaluate",
            _evaluation_inputs,
            lambda directory: [directory.evaluation],
            lambda directory: [directory.played],
        ),
    )
}


def pair_sources(config: RunConfig) -> tuple[str, ...]:
    """Return the sources of pairs; a run aligns one policy on each."""
    given = (PREFERENCES,) if config.preferences.path else ()
    return given if config.preferences.alone else SOURCES + given


def model_stages(config: RunConfig) -> list[Stage]:
    """Return the stages of a run that make a model, in their order."""
    names = [f"sft/{name}" for name in SPEAKERS]
    return [STAGES[name] for name in (*names, *(f"dpo/{s}" for s in pair_sources(config)))]


def stage_names(directory: io.RunDirectory) -> Iterator[str]:
    """Yield the names of files and folders in a run directory that belong to stages."""
    for stage in STAGES.values():
        for path in (*stage.leaves(directory), *stage.writes(directory)):
            yield path.relative_to(directory.root).parts[0]
