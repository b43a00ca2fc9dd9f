"""What each stage is made from, as one fingerprint.

A stage's fingerprint covers its own settings and the fingerprints of the stages before it, down to
the corpus: a stage is fresh if the manifest holds the fingerprint that it would be made from now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ixjax import io
from ixjax.pipeline.config import RunConfig

SPEAKERS = ("policy", "simulator", "simulator_heldout")
SIMULATORS = ("simulator", "simulator_heldout")
SOURCES = ("human", "imcts", "mix")
PATHS = ("data.path", "tokenizer.path", "model.path")  # settings that count by what lies there
SMALL_BYTES = 20_000_000  # of a checkpoint, larger files are told apart by name and size alone


def stage_inputs(stage: str, config: RunConfig, prepared: str) -> str:
    """The fingerprint of everything that `stage` is made from.

    Args:
        stage: its name in the manifest.
        config: of the run.
        prepared: the fingerprint of `prepare`, from `corpus_inputs`.
    """

    def of(name: str) -> str:
        return stage_inputs(name, config, prepared)

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
        "dpo": lambda: [of("pairs"), of("sft/policy"), config.dpo, config.pairs, which],
        "evaluate": lambda: [
            [of(f"dpo/{source}") for source in SOURCES],
            [of(f"sft/{name}") for name in SIMULATORS],
            config.evaluation,
        ],
    }
    return io.fingerprint(stage, *parts[kind]())


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
    return dict(
        zip(PATHS, (config.data.path, config.tokenizer.path, config.model.path), strict=True)
    )


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
