"""Opening a run directory: a new one, or one that was made with the same settings and sources.

What a person has made is never lost to other settings: everything is refused before it is written.
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
        _refuse_changed_sources(run)
        _refuse_changed_preferences(run)
        _check_files(run)
        if theirs != yaml.safe_load(yaml.safe_dump(mine)):  # in what changes no result
            io.write_text(directory.config, yaml.safe_dump(mine, sort_keys=False))
    elif directory.root.exists() and not directory.root.is_dir():
        raise io.InputError(f"{directory.root}: a file; expected a folder as --out")
    elif directory.root.exists() and any(directory.root.iterdir()):
        raise io.InputError(
            f"{directory.root}: holds files but no config.yaml, so it is not a run directory; "
            "give an empty or new folder as --out"
        )
    else:
        _check_files(run)
        directory.root.mkdir(parents=True, exist_ok=True)
        io.write_text(directory.config, yaml.safe_dump(mine, sort_keys=False))
    return run


def _check_files(run: Run) -> None:
    """Refuse now what could not be read hours later."""
    check_base(run)
    check_preferences(run)


def _check_frozen(config: RunConfig) -> None:
    """Names of weights, where the network is known: one of a checkpoint is read later."""
    if not config.model.path:
        for stage, training in (("sft", config.sft), ("dpo", config.dpo)):
            try:
                trained_paths(config.model.to_config(1), training.frozen)
            except io.InputError as error:
                raise io.InputError(f"{stage}.{error}") from None


def _check_settings(config: RunConfig) -> None:
    """Refuse now what would fail hours later."""
    check_packages(config.metrics)
    _check_frozen(config)
    if config.sft.lora.rank and not config.model.path:
        raise io.InputError(
            f"sft.lora.rank is {config.sft.lora.rank}, but no model.path is given: adapters would "
            "be learned over random weights; expected a checkpoint to adapt, or sft.lora.rank 0"
        )
    check_reaction_weight(config.search, get_scenario(config.scenario))
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
    """The configuration as plain values, without what belongs to one start of it alone."""
    settings = dataclasses.asdict(config)
    for name in ("out", "processes", "distributed", "resume"):
        del settings[name]
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
    here = paths(run.config)
    mine = _flatten(io.plain(run.config)) | here
    known = _flatten(io.plain(RunConfig())) | dict.fromkeys(here, "") | dict(theirs)
    differing = [key for key in sorted(mine) if known.get(key) != mine[key]]
    made = run.manifest.made
    for key in here:
        if made and key in differing and mine[key] and not Path(mine[key]).exists():
            raise io.InputError(
                f"{key}: no such file or folder {mine[key]!r}; {run.directory.root} was made from "
                f"{known[key]!r}"
            )
    stale = [stage for stage, inputs in made.items() if inputs != run.inputs(stage)]
    if differing and stale:
        lines = [f"  {k}: {known.get(k)!r} there, {mine[k]!r} now" for k in differing]
        raise io.InputError(
            f"{run.directory.config}: this run was made with another configuration:\n"
            + "\n".join(lines)
            + f"\nMade with it: {', '.join(stale)}. Give another --out, or the same settings."
        )


def _refuse_changed_sources(run: Run) -> None:
    """Refuse to go on where what the models were made from is no longer what lies at its path.

    Before anything is trained, `prepare` may take the corpus in anew.
    """
    recorded = run.recorded_sources
    changed = [name for name in recorded if run.sources.get(name) != recorded[name]]
    trained = [stage for stage in run.manifest.made if stage != "prepare"]
    if changed and trained:
        lines = [f"  {name}: {paths(run.config)[name]!r}" for name in changed]
        raise io.InputError(
            f"{run.directory.root}: what this run was made from has changed since:\n"
            + "\n".join(lines)
            + f"\nMade with it: {', '.join(trained)}. "
            "Give another --out, or put back what was there."
        )


def _refuse_changed_preferences(run: Run) -> None:
    """Refuse to align anew, in the place of what was aligned on other rows."""
    aligned, path = f"dpo/{PREFERENCES}", Path(run.config.preferences.path)
    made = run.manifest.made.get(aligned)
    if path.is_file() and made not in (None, run.inputs(aligned)):
        raise io.InputError(
            f"{run.directory.root}: {aligned} was made from other preferences than those that are "
            f"in {path} now. Give another --out, or put back what was there."
        )
