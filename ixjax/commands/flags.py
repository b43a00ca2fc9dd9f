"""Flags of a command line, read by tyro.

tyro prints an error as a box and ends the process. The box's first sentence is put here into the
form that every other error has: setting, found, expected, on one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from ixjax.io import InputError
from ixjax.pipeline.settings import nearest, subject

HELP = ("-h", "--help")
WIDE = "10000"  # columns
FRAME = "╭╮╰╯│|+ "  # ASCII where the terminal has no more
CHOICE = re.compile(r"invalid choice (.+) for argument '(--[^']+)'.* one of \((.*)\)")
NO_VALUE = re.compile(r"Missing value for argument '([^']+)'")
UNKNOWN = re.compile(r"Unrecognized options: (\S+)")
VALUE = re.compile(r"Error parsing (\S+): (.*)")
TYPES = {
    r"invalid literal for int\(\) with base \d+: (.*)": "a whole number",
    r"could not convert string to float: (.*)": "a number",
    r"no type matching .*FLOAT.* from \[(.*)\]": "a number",
}


def read_flags(
    cls: type[Any], arguments: Sequence[str], *, prog: str, description: str, default: Any
) -> Any:
    """Return `default` with the settings that a command line gives.

    Args:
        cls: the frozen dataclass of all settings.
        arguments: the command line after the command. `--help` prints a page and ends the process.
        prog: the command, for the page.
        description: the command's purpose, for the page.
        default: the settings without flags.

    Raises:
        InputError: a flag is unknown, or its value is missing or wrong.
    """
    page = {"prog": prog, "description": description, "default": default}
    if any(argument in HELP for argument in arguments):
        return tyro.cli(cls, args=list(arguments), **page)
    printed = io.StringIO()
    try:
        with _columns(WIDE), contextlib.redirect_stderr(printed):
            settings = tyro.cli(cls, args=list(arguments), **page)
    except SystemExit as ended:
        if not ended.code:
            raise
        raise InputError(_worded(printed.getvalue(), cls)) from None
    except ValueError as error:  # a combination of values
        raise InputError(str(error)) from None
    sys.stderr.write(printed.getvalue())
    return settings


@contextlib.contextmanager
def _columns(width: str) -> Iterator[None]:
    """Set the width that tyro wraps its errors to."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = width
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def _worded(box: str, cls: type[Any]) -> str:
    """Return the first sentence of an error's box in the form of our own errors."""
    lines = [line.strip(FRAME) for line in box.splitlines()[1:]]
    lines = [line for line in lines if line.strip("─-")]  # without rules
    text = lines[0] if lines else box.strip()
    if found := UNKNOWN.match(text):
        return _unknown(found[1].rstrip(","), lines)
    if found := NO_VALUE.match(text):
        return f"{found[1]}: expected a value after it"
    if found := CHOICE.match(text):
        value, flag, listed = found.groups()
        return f"{flag} is {value}; expected {_choices(value.strip(chr(39)), listed)}"
    if found := VALUE.match(text):
        return _bad_value(found[1], found[2], cls)
    return text


def _unknown(token: str, lines: Sequence[str]) -> str:
    if not token.startswith("-"):
        return f"unexpected argument {token!r}; expected flags (--NAME VALUE)"
    near = next((line.split()[0].rstrip(",") for line in lines[1:] if line.startswith("--")), "")
    return f"unknown flag {token}" + (f"; perhaps you meant {near}" if near else "")


def _choices(value: str, listed: str) -> str:
    """Return choices in alphabetical order, the one nearest to a value first."""
    names = sorted(name for name in re.findall(r"'([^']*)'", listed) if name != "None")
    near = nearest(value, names)
    return f"one of {', '.join(sorted(names, key=lambda name: name != near))}"


def _bad_value(place: str, message: str, cls: type[Any]) -> str:
    """Return the error of a flag's type, or of a section's check.

    Args:
        place: a flag, a section, or anything else for the settings as a whole.
        message: the reason.
        cls: of all settings.
    """
    for pattern, expected in TYPES.items():
        if found := re.match(pattern, message):
            return f"{place} is {found[1]}; expected {expected}"
    if place.startswith("--"):
        return f"{place}: {message}"
    section = place.replace("-", "_")
    for name in section.split("."):
        cls = typing.get_type_hints(cls).get(name, type(None))
        if not dataclasses.is_dataclass(cls):
            return message
    setting, rest = subject(message, section, [field.name for field in dataclasses.fields(cls)])
    return f"--{setting.replace('_', '-')}{rest}"
