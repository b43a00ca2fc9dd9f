"""Writes docs/configuration.md from the settings' dataclasses: `python docs/make_configuration.py`.

A setting is described once, by the line under its field, which `--help` shows as well.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

from ixjax.commands.main import PREVIEWS, TOOLS
from ixjax.pipeline import RunConfig

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Every setting

Written by `python docs/make_configuration.py` from the code; a test compares them.

A setting is a flag (`--search.width 6`) or a key in the file of `--config` (`width: 6` below
`search:`); a flag takes precedence. The defaults are those of the code; presets have their own,
which `ixjax STAGE --config PRESET --help` shows. Engagement is in [0, 1]. In flags, `_` may be
written as `-`, the values of a list follow each other (`--sampling.stop "User:" "###"`), and
`--no-NAME` turns a `yes` off. With `--quiet`, a stage prints only the summary and errors.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD, "## A run", *_tables(RunConfig)]
    run = typing.get_type_hints(RunConfig)
    for command in PREVIEWS | TOOLS:
        settings = importlib.import_module(f"ixjax.commands.{command}").Settings
        own = {n for n, kind in typing.get_type_hints(settings).items() if run.get(n) != kind}
        shared = [f"`{f.name}`" for f in dataclasses.fields(settings) if f.name not in own]
        inherited = "all" if issubclass(settings, RunConfig) else ", ".join(shared)
        parts += [f"## `ixjax {command}`", f"Settings of a run: {inherited}. In addition:"]
        parts += _tables(settings, only=own)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _tables(
    cls: type, section: str = "", only: set[str] | None = None, made: object | None = None
) -> Iterator[str]:
    """A table of a dataclass's own fields, then those of the dataclasses in it.

    Defaults are those of `made`, where what holds this section has defaults of its own for it.
    """
    kinds, described = typing.get_type_hints(cls), field_docs(cls)
    fields = [f for f in dataclasses.fields(cls) if only is None or f.name in only]
    plain = [f for f in fields if not dataclasses.is_dataclass(kinds[f.name])]
    if section:
        yield f"### `{section}`"
    defaults = {f.name: _default(f) if made is None else getattr(made, f.name) for f in fields}
    rows = [
        f"| `{f.name}` | {_shown(defaults[f.name])} | {_cell(described[f.name])}"
        f"{_choices(kinds[f.name], described[f.name])} |"
        for f in plain
    ]
    if rows:
        yield "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])
    for field in fields:
        if field not in plain:
            name = f"{section}.{field.name}".lstrip(".")
            yield from _tables(kinds[field.name], name, made=defaults[field.name])


def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, or under that of the class it is inherited from."""
    found: dict[str, str] = {}
    for owner in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        for field, below in itertools.pairwise(typing.cast(ast.ClassDef, tree).body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                name, text = ast.unparse(field.target), ast.literal_eval(below.value)
                found[name] = " ".join(text.split())
    return found


def _default(field: dataclasses.Field) -> object:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{shown}`" if shown else ""


def _choices(kind: object, text: str) -> str:
    """The values that a setting can have, where its text does not name them."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if all(str(choice) in text for choice in choices):
        return ""
    return f" One of {', '.join(f'`{choice}`' for choice in choices)}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
