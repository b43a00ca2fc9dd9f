"""Settings from YAML files, checked strictly.

A file is read into the frozen dataclasses of a run key by key: an unknown key or a value of the
wrong type is an error that names the file, the line and the key. The loader is our own for these
errors and for partial sections: where a file gives only some keys of a section, libraries (dacite,
cattrs) take the other values from the defaults of the section's class, and this loader takes them
from the default of the field that holds the section.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ixjax.io import InputError, read_text

Config = TypeVar("Config")
PACKAGE = Path(__file__).parent.parent
Where = Callable[[str], str]  # file and line of a dotted key
MISFIT = object()  # result of `_fit` for a value of another type


def presets() -> dict[str, Path]:
    """Return the paths of the packaged configurations by name."""
    # A wheel has them inside the package, a checkout next to it.
    folders = (PACKAGE / "configs", PACKAGE.parent / "configs")
    folder = next((f for f in folders if (f / "quickstart.yaml").exists()), None)
    return {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load(cls: type[Config], name: str) -> Config:
    """Read a YAML file or a preset.

    Raises:
        InputError: the file does not exist or is not YAML, a key is unknown, or a value has the
            wrong type or is out of range.
    """
    path = Path(name)
    if not path.exists():
        path = presets().get(name, path)
    if not path.exists():
        known = presets()
        raise InputError(
            f"--config: {name!r} is neither a file nor a preset; expected a path, or one of "
            f"{', '.join(known)}{_nearest(name, known)}"
        )
    try:
        text = read_text(path)
        content = yaml.load(text, Loader=_StrictLoader)
        lines = _lines(yaml.compose(text, Loader=_StrictLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise InputError(f"{path}{line}: not YAML ({problem})") from None
    return build(cls, content, file=str(path), lines=lines)


def _lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Return the line of each key of a file, by dotted name."""
    found: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            place = f"{prefix}{key.value}"
            found |= {place: key.start_mark.line + 1, **_lines(value, f"{place}.")}
    return found


def build(
    cls: type[Config], content: Any, *, file: str, lines: Mapping[str, int] | None = None
) -> Config:
    """Return a dataclass with its defaults replaced by `content`.

    Raises:
        InputError: see `load`; names `file`, the line in `lines` if known, and the dotted key.
    """

    def where(key: str) -> str:
        known = lines or {}
        line = known.get(key, known.get(key.rpartition(".")[0]))
        return file if line is None else f"{file}:{line}"

    return _merge(cls(), content, where=where, key="")


def subject(message: str, section: str, fields: Iterable[str]) -> tuple[str, str]:
    """Return the setting that a section's check complains about, and the rest of its message.

    Args:
        message: begins with a field, as in "steps is 0; ..." or "sft.steps is 0; ...".
        section: dotted; empty for the settings as a whole.
        fields: of the section.

    Returns:
        The dotted setting; the section if the message begins with none of the fields.
    """
    prefix = f"{section}." if section else ""
    bare = message.removeprefix(prefix)
    name = bare.partition(" ")[0].rstrip(":")
    if name in fields:
        return f"{prefix}{name}", bare[len(name) :]
    return section, f": {message}" if section else message


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most similar to `name`; empty if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def _merge(default: Any, content: Any, *, where: Where, key: str) -> Any:
    """Return `default` with the values of `content`, the section `key` of a file."""
    if content is None:  # an empty file or section
        return default
    if not isinstance(content, Mapping):
        raise InputError(
            f"{where(key)}: {key or 'the file'} is {_show(content)}; expected settings (key: value)"
        )
    hints = typing.get_type_hints(type(default))
    names = [field.name for field in dataclasses.fields(default)]
    changes: dict[str, Any] = {}
    for name, value in content.items():
        section = f"{key}." if key else ""
        place = f"{section}{name}"
        if name not in names:
            near = _nearest(name, names, prefix=section)
            section_of, _, rest = str(name).partition(".")
            if rest and section_of in names:
                near = f"; write it as `{rest}:` below `{section}{section_of}:`, indented"
            raise InputError(f"{where(place)}: unknown key {place}{near}")
        if dataclasses.is_dataclass(hints[name]):
            changes[name] = _merge(getattr(default, name), value, where=where, key=place)
        else:
            changes[name] = _convert(hints[name], value, where=where, key=place)
    try:
        return dataclasses.replace(default, **changes)
    except ValueError as error:
        setting, rest = subject(str(error), key, names)
        raise InputError(f"{where(setting)}: {setting}{rest}") from None


def _convert(kind: Any, value: Any, *, where: Where, key: str) -> Any:
    """Return a value of the wanted type; the only conversion is int to float."""
    fitted = _fit(kind, value)
    if fitted is MISFIT:
        literal = typing.get_origin(kind) is typing.Literal
        near = _nearest(value, typing.get_args(kind)) if literal else ""
        raise InputError(f"{where(key)}: {key} is {_show(value)}; expected {_describe(kind)}{near}")
    return fitted


def _fit(kind: Any, value: Any) -> Any:
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        same = (m for m in members if m == value and type(m) is type(value))
        return next(same, MISFIT)
    if origin in (typing.Union, types.UnionType):
        fitted = (_fit(member, value) for member in members)
        return next((f for f in fitted if f is not MISFIT), MISFIT)
    if origin is tuple:
        return _fit_tuple(members, value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text.
        try:
            return float(value)
        except ValueError:
            return MISFIT
    if isinstance(value, bool) and kind is not bool:
        return MISFIT
    if kind is float and isinstance(value, int):
        return float(value)
    return value if isinstance(value, kind) else MISFIT


def _fit_tuple(members: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return MISFIT
    if members[1:] == (Ellipsis,):
        members = members[:1] * len(value)
    if len(members) != len(value):
        return MISFIT
    fitted = tuple(map(_fit, members, value))
    return MISFIT if any(f is MISFIT for f in fitted) else fitted


def _describe(kind: Any) -> str:
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, members))
    if origin is tuple:
        inner = ", ".join("..." if m is Ellipsis else _describe(m) for m in members)
        return f"a list [{inner}]"
    return "null" if kind is types.NoneType else kind.__name__


def _nearest(name: Any, known: Iterable[Any], *, prefix: str = "") -> str:
    near = nearest(str(name), map(str, known))
    return f"; perhaps you meant {prefix}{near}" if near else ""


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses repeated keys and reads no base-60 numbers."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        # YAML 1.1 reads 10:15 as 615.
        text = str(self.construct_scalar(node))
        return text if ":" in text else super().construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused later as an unknown key
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
