"""Opening of a run directory: a new one, or one made with the same settings and sources.

All checks come before the first write, so that other settings never replace existing results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ixjax import io
from ixjax.dialogue.scenarios import get_scenario
from ixjax.generation.outcomes import OUTCOME_TOKENS
from ixjax.pipeline.base_model import check_base
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.inputs import paths
from ixjax.pipeline.metrics import check_packages
from ixjax.pipeline.preferences import check_preferences
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import PREFERENCES
from ixjax.search import check_reaction_weight
from ixjax.training.steps import trained_paths


def open_run(config: RunConfig) -> Run:
    """Create or continue the run directory `config.out`.

    Raises:
        InputError: the directory belongs to another configuration (names the differences), or has
            other content.
    """
    if not config.out:
        raise io.InputError("--out is missing; expected a run directory")
    get_scenario(config.scenario)  # raises for an unknown name
    _check_settings(config)
    directory = io.RunDirectory(Path(config.out))
    mine, run = _settings(config), Run(config, directory)
    if directory.config.exists():
        theirs = yaml.safe_load(directory.config.read_text()) or {}
        _refuse_other_config(run, io.flatten(theirs))
        _refuse_changed_sources(run)
        _refuse_changed_preferences(run)
        _check_files(run)
        if theirs != yaml.safe_load(yaml.safe_dump(mine)):  # differences that change no result
            io.write_text(directory.config, yaml.safe_dump(mine, sort_keys=False))
    elif directory.root.exists() and not directory.root.is_dir():
        raise io.InputError(f"--out is {directory.root}, a file; expected a folder")
    elif directory.root.exists() and any(directory.root.iterdir()):
        raise io.InputError(
            f"--out is {directory.root}, a folder with files but no config.yaml; expected a run "
            "directory, or a new or empty folder"
        )
    else:
        _check_files(run)
        directory.root.mkdir(parents=True, exist_ok=True)
        io.write_text(directory.config, yaml.safe_dump(mine, sort_keys=False))
    return run


def _check_files(run: Run) -> None:
    """Raise for files that a later stage could not read."""
    check_base(run)
    check_preferences(run)


def _check_frozen(config: RunConfig) -> None:
    """Raise for unknown weights; those of a checkpoint are checked when it is read."""
    if not config.model.path:
        for stage, training in (("sft", config.sft), ("dpo", config.dpo)):
            try:
                trained_paths(config.model.to_config(1), training.frozen)
            except io.InputError as error:
                raise io.InputError(f"{stage}.{error}") from None


def _check_settings(config: RunConfig) -> None:
    """Raise for settings that would fail in a later stage."""
    check_packages(config.metrics)
    _check_frozen(config)
    if config.sft.lora.rank and not config.model.path:
        raise io.InputError(
            f"--sft.lora.rank is {config.sft.lora.rank} without --model.path; expected a "
            "checkpoint to adapt, or --sft.lora.rank 0"
        )
    check_reaction_weight(config.search, get_scenario(config.scenario))
    if not 0 <= config.seed < 2**31:
        raise io.InputError(f"--seed is {config.seed}; expected 0 or more, below 2^31")
    if config.search.width < 2:
        raise io.InputError(
            f"--search.width is {config.search.width}; expected 2 or more: a pair has two responses"
        )
    longest, turn = config.model.max_length, config.sampling.max_new_tokens
    if longest <= turn + OUTCOME_TOKENS:
        raise io.InputError(
            f"--sampling.max-new-tokens is {turn} with --model.max-length {longest}; expected "
            f"fewer than {longest - OUTCOME_TOKENS}: a context holds history, a turn, and "
            f"{OUTCOME_TOKENS} tokens of an outcome line"
        )


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain values, without the settings of one start."""
    settings = dataclasses.asdict(config)
    for name in ("out", "processes", "distributed", "resume"):
        del settings[name]
    return settings


def _refuse_other_config(run: Run, theirs: Mapping[str, Any]) -> None:
    """Raise for settings that make a finished stage stale.

    Settings of later stages may change, and those that change no result. A setting that is newer
    than the run directory had its default there.
    """
    here = paths(run.config)
    mine = io.flatten(io.plain(run.config)) | here
    known = io.flatten(io.plain(RunConfig())) | dict.fromkeys(here, "") | dict(theirs)
    differing = [key for key in sorted(mine) if known.get(key) != mine[key]]
    made = run.manifest.made
    for key in here:
        if made and key in differing and mine[key] and not Path(mine[key]).exists():
            raise io.InputError(
                f"--{key} is {mine[key]!r}, no such file or folder; expected {known[key]!r}, from "
                f"which {run.directory.root} was made"
            )
    stale = [stage for stage, inputs in made.items() if inputs != run.inputs(stage)]
    if differing and stale:
        lines = [f"  {k}: {known.get(k)!r} there, {mine[k]!r} now" for k in differing]
        raise io.InputError(
            f"{run.directory.config}: this run was made with another configuration:\n"
            + "\n".join(lines)
            + f"\nMade with it: {', '.join(stale)}. Set another --out, or the same settings."
        )


def _refuse_changed_sources(run: Run) -> None:
    """Raise if the files that models were trained on have changed.

    Before any training, `prepare` may read them again.
    """
    recorded = run.recorded_sources
    changed = [name for name in recorded if run.sources.get(name) != recorded[name]]
    trained = [stage for stage in run.manifest.made if stage != "prepare"]
    if changed and trained:
        lines = [f"  {name}: {paths(run.config)[name]!r}" for name in changed]
        raise io.InputError(
            f"{run.directory.root}: files that this run was made from have changed:\n"
            + "\n".join(lines)
            + f"\nMade with it: {', '.join(trained)}. "
            "Set another --out, or restore the files."
        )


def _refuse_changed_preferences(run: Run) -> None:
    """Raise if a policy was aligned on another file of preferences."""
    aligned, path = f"dpo/{PREFERENCES}", Path(run.config.preferences.path)
    made = run.manifest.made.get(aligned)
    if path.is_file() and made not in (None, run.inputs(aligned)):
        raise io.InputError(
            f"{run.directory.root}: {aligned} was made from other preferences than {path} has now. "
            "Set another --out, or restore the file."
        )
