"""Files that a run reads from outside its directory, as fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ixjax import io
from ixjax.pipeline.config import RunConfig

PATHS = ("data.path", "tokenizer.path", "model.path")  # `prepare` reads them
SMALL_BYTES = 20_000_000  # larger files of a checkpoint count by name and size alone


def paths(config: RunConfig) -> dict[str, str]:
    """Return the settings that name files, by their dotted names."""
    prepared = (config.data.path, config.tokenizer.path, config.model.path)
    return dict(zip(PATHS, prepared, strict=True)) | {"preferences.path": config.preferences.path}


def sources(config: RunConfig) -> dict[str, object]:
    """Return the present content of each of `PATHS`, as JSON."""
    source = Path(config.data.path) if config.data.path else None
    corpus = io.folder_fingerprint(source) if source is not None and source.exists() else ""
    given = {"tokenizer.path": config.tokenizer.path, "model.path": config.model.path}
    return {"data.path": corpus, **{name: _checkpoint(path) for name, path in given.items()}}


def corpus_inputs(config: RunConfig, found: Mapping[str, object]) -> str:
    """Return the fingerprint of the corpus, the tokenizer and the base model.

    Args:
        config: of the run.
        found: content of each of `PATHS`, from `sources`.
    """
    given = [found[name] for name in PATHS]
    return io.fingerprint(config.data, config.tokenizer, config.scenario, config.seed, *given)


def _checkpoint(path: str) -> list[list[object]]:
    """Return names and sizes of a folder's files (or of a file), and the content of small ones."""
    found = Path(path)
    if not path or not found.exists():
        return [[path]]
    listed = found.iterdir() if found.is_dir() else [found]
    files = sorted(file for file in listed if file.is_file())
    return [
        [file.name, size, io.file_fingerprint(file) if size <= SMALL_BYTES else ""]
        for file in files
        for size in [file.stat().st_size]
    ]
