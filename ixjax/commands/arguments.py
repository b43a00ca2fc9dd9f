"""A command line: `--config`, then flags over its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ixjax.commands.flags import read_flags
from ixjax.io import InputError
from ixjax.pipeline.settings import load, presets

PRESET = "quickstart"  # if there is no --config


def parse(cls: type[Any], arguments: Sequence[str], *, stage: str, summary: str) -> Any:
    """Return the settings of a run: dataclass defaults, then `--config` (or `PRESET`), then flags.

    `out` defaults to runs/NAME, where NAME is the name of the file or preset.

    Args:
        cls: the frozen dataclass of all settings; has a field `out`.
        arguments: the command line after the stage.
        stage: for the help page.
        summary: the stage's purpose in one line, for the help page.

    Raises:
        InputError: the file or a flag is wrong.
    """
    name, rest = take(arguments, "--config")
    name = PRESET if name is None else name
    default = load(cls, name)
    settings = read_flags(
        cls,
        rest,
        prog=f"ixjax {stage}",
        description=f"{summary} --config PATH-or-preset ({', '.join(presets())}) is read first; "
        "every setting in it is a flag too.",
        default=default,
    )
    if not settings.out:
        settings = dataclasses.replace(settings, out=f"runs/{Path(name).stem}")
    return settings


def take(arguments: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """Remove `FLAG X` and `FLAG=X` from a command line; return the last X and the rest.

    Raises:
        InputError: the flag has no value.
    """
    rest, value = [], None
    remaining = iter(arguments)
    for argument in remaining:
        if argument == flag:
            value = next(remaining, None)
            if value is None:
                raise InputError(f"{flag}: expected a value after it")
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return value, rest
