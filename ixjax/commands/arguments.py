"""Settings from a YAML file and from flags, checked strictly.

A file is read into the frozen dataclasses of a run key by key: an unknown key or a value of the
wrong type is an error that names the file and the key. Flags are tyro's, with the file's values as
their defaults. The loader is our own, and short, because its errors are the point of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from ixjax.io import InputError, read_text

Config = TypeVar("Config")
PACKAGE = Path(__file__).parent.parent


def parse(cls: type[Any], arguments: Sequence[str], *, stage: str, summary: str) -> Any:
    """The settings of a run: dataclass defaults, then `--config`, then flags.

    `out` defaults to runs/NAME, NAME being the file's (or the first preset's).

    Args:
        cls: the frozen dataclass of all settings; has a field `out`.
        arguments: command line behind the stage's name.
        stage: for the help page.
        summary: what the stage does, in a line, for the help page.

    Raises:
        InputError: the file is missing or wrong. tyro ends the process itself for bad flags.
    """
    name, rest = _take_config(arguments)
    default = load(cls, name)
    try:
        settings = tyro.cli(
            cls,
            prog=f"ixjax {stage}",
            description=f"{summary} --config PATH-or-preset ({', '.join(presets())}) is read "
            "first; every setting in it is a flag too.",
            default=default,
            args=rest,
        )
    except ValueError as error:  # a dataclass refused a combination of values
        raise InputError(str(error)) from None
    if not settings.out:
        settings = dataclasses.replace(settings, out=f"runs/{Path(name).stem}")
    return settings


def _take_config(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Take `--config X` or `--config=X` out of a command line."""
    rest, name = list(arguments), "quickstart"
    for i, argument in enumerate(arguments):
        if argument == "--config":
            if i + 1 == len(arguments):
                raise InputError("--config: expected a path or a preset behind it")
            name, rest = arguments[i + 1], [*arguments[:i], *arguments[i + 2 :]]
        elif argument.startswith("--config="):
            name, rest = argument.partition("=")[2], [*arguments[:i], *arguments[i + 1 :]]
    return name, rest


def presets() -> dict[str, Path]:
    """Configurations that come with the package, by name."""
    # In a checkout they lie beside the package, in a wheel inside it.
    folders = (PACKAGE / "configs", PACKAGE.parent / "configs")
    folder = next((f for f in folders if (f / "quickstart.yaml").exists()), None)
    return {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load(cls: type[Config], name: str) -> Config:
    """Read a YAML file, or the preset of that name.

    Raises:
        InputError: no such file or preset, not YAML, an unknown key (names the nearest), or a
            value of the wrong type or out of its range.
    """
    path = Path(name)
    if not path.exists():
        path = presets().get(name, path)
    if not path.exists():
        near = difflib.get_close_matches(name, presets(), n=1)
        hint = f"; perhaps you meant {near[0]}" if near else ""
        raise InputError(
            f"--config: {name!r} is neither a file nor a preset ({', '.join(presets())}){hint}"
        )
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise InputError(f"{path}{line}: not YAML ({problem})") from None
    return build(cls, content or {}, file=str(path))


def build(cls: type[Config], content: Any, *, file: str, key: str = "") -> Config:
    """A dataclass from nested mappings; `key` is the dotted place of `content` in `file`."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"{file}: {key or 'the file'} is {_show(content)}; expected settings (key: value)"
        )
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        place = f"{key}.{name}" if key else str(name)
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"; perhaps you meant {place[: -len(str(name))]}{near[0]}" if near else ""
            raise InputError(f"{file}: unknown key {place}{hint}")
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _nested(cls, name, value, file=file, key=place)
        else:
            values[name] = _convert(hints[name], value, file=file, key=place)
    return _construct(cls, values, file=file, key=key)


def _construct(
    make: Callable[..., Config], values: Mapping[str, Any], *, file: str, key: str
) -> Config:
    try:
        return make(**values)
    except ValueError as error:
        raise InputError(f"{file}: {f'{key}: ' if key else ''}{error}") from None


def _nested(owner: type, name: str, value: Any, *, file: str, key: str) -> Any:
    """A nested dataclass; what the file leaves out keeps the owner's default, not the class's."""
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    factory = field.default_factory
    default: Any = factory() if factory is not dataclasses.MISSING else field.default
    given = build_partial(type(default), value, file=file, key=key)
    return _construct(
        lambda **changes: dataclasses.replace(default, **changes), given, file=file, key=key
    )


def build_partial(cls: type, content: Any, *, file: str, key: str) -> dict[str, Any]:
    """The checked values of the keys that `content` has."""
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: {key} is {_show(content)}; expected settings (key: value)")
    built = build(cls, content, file=file, key=key)
    return {name: getattr(built, name) for name in content}


def _convert(kind: Any, value: Any, *, file: str, key: str) -> Any:
    """A plain value of the wanted type; int passes for float, nothing else is bent."""
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            near = difflib.get_close_matches(str(value), map(str, choices), n=1)
            hint = f"; perhaps you meant {near[0]}" if near else ""
            expected = ", ".join(map(str, choices))
            raise InputError(f"{file}: {key} is {_show(value)}; expected one of {expected}{hint}")
        return value
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _convert(kinds[0], value, file=file, key=key)
    if kind is float and isinstance(value, str):
        # YAML 1.1 takes 1e-3 for text; to a person it is a number.
        try:
            return float(value)
        except ValueError:
            pass
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{file}: {key} is {_show(value)}; expected {kind.__name__}")
    return float(value) if kind is float else value


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
