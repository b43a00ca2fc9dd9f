"""What the tools share: settings of their own beside those of a run that is there.

A stage continues a run, so it is given all of the run's settings. A tool looks at what a run has
made: `--out RUN` alone brings the settings that it shares with the run, and writes none.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ixjax.commands.arguments import load, take
from ixjax.commands.flags import read_flags
from ixjax.io import InputError, RunDirectory
from ixjax.models import turn_tokens
from ixjax.pipeline import Run, RunConfig


def parse_tool(
    cls: type[Any], arguments: Sequence[str], *, tool: str, summary: str
) -> tuple[Any, Run | None]:
    """A tool's settings: its defaults, then those of the run at `--out`, then flags.

    Args:
        cls: frozen dataclass of the tool's settings, with a field `out`. A field that a run has
            too, by name and type, is the run's.
        arguments: command line behind the tool's name.
        tool: for the help page.
        summary: what the tool does, in a line, for the help page.

    Returns:
        The settings, and the run if one was named.

    Raises:
        InputError: there is no such run, or its settings can't be read. tyro ends the process
            itself for bad flags.
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
            f"scenario is {scenario!r}; {out} holds a run of {run.config.scenario!r}: leave "
            "--scenario or --out out"
        )
    return settings, run


def _as_folder_says(settings: Any, model: str | None) -> Any:
    """A tool's defaults, with turns as long as a Hugging Face folder's are, where one is named."""
    sampling = getattr(settings, "sampling", None)
    if not model or sampling is None or not Path(model).is_dir():
        return settings
    tokens = turn_tokens(Path(model), default=sampling.max_new_tokens)
    return dataclasses.replace(
        settings, sampling=dataclasses.replace(sampling, max_new_tokens=tokens)
    )


def read_run(out: str) -> Run:
    """The run at a directory, by the settings that it was made with; nothing is written.

    Raises:
        InputError: there is no run, or its config.yaml is damaged.
    """
    directory = RunDirectory.existing(out)
    config = load(RunConfig, str(directory.config))
    return Run(dataclasses.replace(config, out=out), directory)


def _shared(cls: type[Any], config: RunConfig) -> dict[str, Any]:
    mine, theirs = typing.get_type_hints(cls), typing.get_type_hints(RunConfig)
    return {name: getattr(config, name) for name in mine if mine[name] == theirs.get(name)}
