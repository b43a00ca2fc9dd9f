"""Settings of tools: their own, and those of an existing run.

A stage takes all settings of a run. A tool reads a finished run: `--out RUN` supplies the settings
that it shares with the run, and no settings are written.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ixjax.commands.arguments import take
from ixjax.commands.flags import read_flags
from ixjax.gguf_file import is_gguf
from ixjax.io import InputError
from ixjax.models import sampling_settings
from ixjax.models.hf_generation import GENERATION
from ixjax.pipeline import Run, RunConfig, read_run


def parse_tool(
    cls: type[Any], arguments: Sequence[str], *, tool: str, summary: str
) -> tuple[Any, Run | None]:
    """Return a tool's settings: its defaults, then those of the run at `--out`, then flags.

    Args:
        cls: frozen dataclass of the tool's settings, with a field `out`. Fields with the name and
            type of a run's setting take the run's value.
        arguments: the command line after the tool.
        tool: for the help page.
        summary: the tool's purpose in one line, for the help page.

    Returns:
        The settings, and the run if `--out` names one.

    Raises:
        InputError: the run does not exist, its settings are damaged, or a flag is wrong.
    """
    out, _ = take(arguments, "--out")
    run = None if out is None else read_run(out)
    if run is None:
        default = _as_folder_says(cls(), take(arguments, "--model")[0])
    else:
        default = dataclasses.replace(cls(), **_shared(cls, run.config))
    settings = read_flags(
        cls,
        arguments,
        prog=f"ixjax {tool}",
        description=f"{summary} With --out RUN, settings without a flag are those of that run.",
        default=default,
    )
    scenario = getattr(settings, "scenario", None)
    if run is not None and scenario not in (None, run.config.scenario):
        raise InputError(
            f"--scenario is {scenario!r}; expected {run.config.scenario!r}, the scenario of {out}"
        )
    return settings, run


def _as_folder_says(settings: Any, model: str | None) -> Any:
    """Return a tool's defaults, with the sampling settings of the checkpoint if one is named.

    Raises:
        InputError: a sampling setting of the checkpoint is out of its range.
    """
    sampling = getattr(settings, "sampling", None)
    if not model or sampling is None or not (Path(model).is_dir() or is_gguf(model)):
        return settings
    found = sampling_settings(Path(model), longest_turn=sampling.max_new_tokens)
    try:
        return dataclasses.replace(settings, sampling=dataclasses.replace(sampling, **found))
    except ValueError as error:
        raise InputError(f"{Path(model) / GENERATION}: {error}") from None


def _shared(cls: type[Any], config: RunConfig) -> dict[str, Any]:
    mine, theirs = typing.get_type_hints(cls), typing.get_type_hints(RunConfig)
    return {name: getattr(config, name) for name in mine if mine[name] == theirs.get(name)}
