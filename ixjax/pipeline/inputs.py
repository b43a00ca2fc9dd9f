"""What each stage is made from, as one fingerprint.

A stage's fingerprint covers its own settings and the fingerprints of the stages before it, down to
the corpus: a stage is fresh if the manifest holds the fingerprint that it would be made from now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from ixjax import io
from ixjax.pipeline.config import RunConfig

SPEAKERS = ("policy", "simulator", "simulator_heldout")
SIMULATORS = ("simulator", "simulator_heldout")
SOURCES = ("human", "imcts", "mix")  # of pairs that the run makes itself
PREFERENCES = "preferences"  # the source that is a file
PATHS = ("data.path", "tokenizer.path", "model.path")  # that count by what lies there
SMALL_BYTES = 20_000_000  # of a checkpoint, larger files are told apart by name and size alone


def stage_inputs(stage: str, config: RunConfig, prepared: str, preferences: str = "") -> str:
    """The fingerprint of everything that `stage` is made from.

    Args:
        stage: its name in the manifest.
        config: of the run.
        prepared: the fingerprint of `prepare`, from `corpus_inputs`.
        preferences: the fingerprint of the file `preferences.path`.
    """

    def of(name: str) -> str:
        return stage_inputs(name, config, prepared, preferences)

    def dpo() -> list[object]:
        if which == PREFERENCES:
            given = dataclasses.replace(config.preferences, alone=False)  # touches others alone
            return [preferences, of("sft/policy"), config.dpo, given, which]
        return [of("pairs"), of("sft/policy"), config.dpo, config.pairs, which]

    kind, _, which = stage.partition("/")
    parts: Mapping[str, Callable[[], list[object]]] = {
        "prepare": lambda: [prepared],
        "sft": lambda: [of("prepare"), config.sft, config.model, speaker_seed(which, config.seed)],
        "search": lambda: [
            [of("sft/policy"), of("sft/simulator")],
            config.search,
            config.sampling,
            config.readout,
            config.seed,
        ],
        "pairs": lambda: [of("search"), config.pairs],
        "dpo": dpo,
        "evaluate": lambda: [
            [of(f"dpo/{source}") for source in pair_sources(config)],
            [of(f"sft/{name}") for name in SIMULATORS],
            # What the chain above holds only where a policy was aligned on the search's pairs.
            [config.sampling, config.readout, config.search.c_uct],
            config.evaluation,
        ],
    }
    return io.fingerprint(stage, *parts[kind]())


def pair_sources(config: RunConfig) -> tuple[str, ...]:
    """The sources of pairs that a run aligns a policy on, each by itself."""
    given = (PREFERENCES,) if config.preferences.path else ()
    return given if config.preferences.alone else SOURCES + given


def corpus_inputs(config: RunConfig, found: Mapping[str, object]) -> str:
    """The fingerprint of what `prepare` reads: the corpus, and a given tokenizer or checkpoint.

    Args:
        config: of the run.
        found: what lies at each of `PATHS`, from `sources`.
    """
    given = [found[name] for name in PATHS]
    return io.fingerprint(config.data, config.tokenizer, config.scenario, config.seed, *given)


def sources(config: RunConfig) -> dict[str, object]:
    """What lies at each of `PATHS` now, as JSON."""
    source = Path(config.data.path) if config.data.path else None
    corpus = io.folder_fingerprint(source) if source is not None and source.exists() else ""
    given = {"tokenizer.path": config.tokenizer.path, "model.path": config.model.path}
    return {"data.path": corpus, **{name: _checkpoint(path) for name, path in given.items()}}


def paths(config: RunConfig) -> dict[str, str]:
    """The settings that count by what lies there, by their dotted names."""
    prepared = (config.data.path, config.tokenizer.path, config.model.path)
    return dict(zip(PATHS, prepared, strict=True)) | {"preferences.path": config.preferences.path}


def speaker_seed(name: str, seed: int) -> int:
    """Of one model's first weights and order of examples: another for each speaker and run."""
    return 10 * seed + 1 + SPEAKERS.index(name)


def _checkpoint(path: str) -> list[list[object]]:
    """Names and sizes of a folder's files, and what is in the small ones."""
    folder = Path(path)
    if not path or not folder.is_dir():
        return [[path]]
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [
        [file.name, size, io.file_fingerprint(file) if size <= SMALL_BYTES else ""]
        for file in files
        for size in [file.stat().st_size]
    ]
