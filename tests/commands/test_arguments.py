"""Settings: strict YAML; errors name file, line, key and remedy; presets load."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ixjax.commands.arguments import parse
from ixjax.io import InputError
from ixjax.pipeline import RunConfig
from ixjax.pipeline.settings import build, load, presets


@dataclasses.dataclass(frozen=True)
class Inner:
    """Stage settings."""

    rate: float = 0.5
    """A rate."""
    steps: int = 10
    """Steps."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Middle:
    """A section with a section."""

    inner: Inner = dataclasses.field(default_factory=Inner)
    """The innermost."""
    sizes: tuple[int, ...] = (1,)
    """Any number."""
    scaling: tuple[float, int] | None = None
    """Two numbers, or none."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """All settings."""

    out: str = ""
    """Where to."""
    mode: Literal["all", "extremes"] = "all"
    """Which."""
    quick: bool = False
    """Whether."""
    inner: Inner = dataclasses.field(default_factory=lambda: Inner(rate=0.1))
    """The stage."""
    middle: Middle = dataclasses.field(default_factory=lambda: Middle(inner=Inner(rate=0.2)))
    """The other stage."""


def write(tmp_path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_a_nested_key_keeps_the_owners_defaults_for_its_siblings(tmp_path):
    settings = load(Outer, write(tmp_path, "inner:\n  steps: 3\n"))
    assert settings == Outer(inner=Inner(rate=0.1, steps=3))


def test_three_levels_down_the_owners_defaults_hold_as_well(tmp_path):
    settings = load(Outer, write(tmp_path, "middle:\n  inner:\n    steps: 3\n"))
    assert settings.middle.inner == Inner(rate=0.2, steps=3)


def test_a_section_without_a_line_keeps_its_defaults(tmp_path):
    assert load(Outer, write(tmp_path, "inner:\n  # steps: 3\nquick: true\n")) == Outer(quick=True)


def test_lists_become_tuples_and_null_is_none(tmp_path):
    settings = load(Outer, write(tmp_path, "middle: {sizes: [1, 2, 3], scaling: [8, 512]}"))
    assert settings.middle.sizes == (1, 2, 3)
    assert settings.middle.scaling == (8.0, 512)
    assert load(Outer, write(tmp_path, "middle: {scaling: null}")).middle.scaling is None


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load(Outer, write(tmp_path, "")) == Outer()


def test_steps_with_a_colon_are_text_in_a_file_though_yaml_has_numbers_to_base_60(tmp_path):
    assert load(RunConfig, write(tmp_path, "profile: {steps: 10:15}")).profile.steps == "10:15"
    assert load(RunConfig, write(tmp_path, "seed: 0x1F")).seed == 31


def test_yaml_1e3_and_integers_are_numbers_where_a_float_is_wanted(tmp_path):
    assert load(Outer, write(tmp_path, "inner: {rate: 1e-3}")).inner.rate == 1e-3
    assert load(Outer, write(tmp_path, "inner: {rate: 2}")).inner.rate == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "inner:\n  stpes: 3\n",
            "run.yaml:2: unknown key inner.stpes; perhaps you meant inner.steps",
        ),
        ("mod: all\n", r"unknown key mod; perhaps you meant mode"),
        ("inner.steps: 3\n", r"unknown key inner.steps; write it as `steps:` below `inner:`, inde"),
        ("zzzz: 1\n", r"unknown key zzzz$"),
        (
            "quick: true\ninner:\n\n  steps: many\n",
            r"run.yaml:4: inner.steps is 'many' \(str\); expected int",
        ),
        ("inner:\n  steps: 1.5\n", r"inner.steps is 1.5 \(float\); expected int"),
        ("inner:\n  steps: true\n", r"inner.steps is True \(bool\); expected int"),
        ("inner:\n  rate: fast\n", r"inner.rate is 'fast' \(str\); expected float"),
        ("quick: 1\n", r"quick is 1 \(int\); expected bool"),
        ("mode: extreme\n", r"expected one of all, extremes; perhaps you meant extremes"),
        ("inner:\n  steps: 0\n", r"run.yaml:2: inner.steps is 0; "),
        ("inner: 3\n", r"inner is 3 \(int\); expected settings"),
        ("- a\n- b\n", r"the file is \['a', 'b'\] \(list\); expected settings"),
        ("false\n", r"the file is False \(bool\); expected settings"),
        ("a: [1\nb: 2\n", r"run.yaml:2: not YAML"),
        ("quick: true\nquick: false\n", r"run.yaml:2: not YAML \(quick is given twice\)"),
        ("inner: {rate: 1, rate: 2}\n", r"run.yaml:1: not YAML \(rate is given twice\)"),
        ("middle: {sizes: [1, x]}\n", r"expected a list \[int, \.\.\.\]$"),
        ("middle: {scaling: [1, 2, 3]}\n", r"expected a list \[float, int\] or null$"),
        ("middle: {inner: {stpes: 1}}\n", r"key middle.inner.stpes; perhaps .* middle.inner.steps"),
    ],
)
def test_bad_settings_name_the_file_the_key_and_what_was_expected(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(Outer, write(tmp_path, text))


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="perhaps you meant quickstart"):
        load(RunConfig, "quikstart")


def test_every_setting_is_a_flag_with_its_help_line(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(RunConfig, ["--help"], stage="sft", summary="Train.")
    assert ended.value.code == 0
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag, line in _flags(RunConfig()):
        assert re.search(rf"{flag}[ ,]", page), flag
        assert line in page, flag


def _flags(settings, prefix: str = "--"):
    """Flags and help lines, read from the source as a person would."""
    sources = map(inspect.getsource, type(settings).__mro__[:-1])
    lines = "\n".join(sources).splitlines()
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{prefix}{name}.")
            continue
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        documented = next(line for line in lines[at + 1 :] if '"""' in line)
        yield prefix + name, documented.strip().strip('"').split("`")[0].strip()


def test_flags_win_over_the_file_and_out_takes_its_name(tmp_path):
    path = write(tmp_path, "mode: extremes\ninner: {steps: 3}\n")
    settings = parse(Outer, ["--config", path, "--inner.steps", "7"], stage="x", summary="X.")
    assert settings == Outer(out="runs/run", mode="extremes", inner=Inner(rate=0.1, steps=7))


def test_stop_texts_are_a_list_in_a_file_and_words_after_a_flag(tmp_path):
    path = write(tmp_path, 'sampling: {stop: ["\\nUser:", "###"]}\n')
    assert load(RunConfig, path).sampling.stop == ("\nUser:", "###")
    flags = ["--config", path, "--sampling.stop", "\nUser:", "Bob says"]
    settings = parse(RunConfig, flags, stage="x", summary="X.")
    assert settings.sampling.stop == ("\nUser:", "Bob says")


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ('"User:"', r"sampling.stop is 'User:' \(str\); expected a list \[str, \.\.\.\]$"),
        ('["User:", ""]', r"sampling.stop is \('User:', ''\); "),
    ],
)
def test_stop_texts_that_are_none_are_refused(tmp_path, stop, message):
    with pytest.raises(InputError, match=message):
        load(RunConfig, write(tmp_path, f"sampling: {{stop: {stop}}}\n"))


def test_a_config_flag_without_a_name_is_an_error():
    with pytest.raises(InputError, match=r"--config: .*value"):
        parse(Outer, ["--config"], stage="x", summary="X.")


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_loads_strictly(name):
    assert load(RunConfig, name).scenario in ("sandbox", "esc", "p4g")


@given(
    st.builds(
        Outer,
        out=st.text(st.characters(codec="utf-8", exclude_characters="\x85\ufeff"), max_size=8),
        mode=st.sampled_from(["all", "extremes"]),
        quick=st.booleans(),
        inner=st.builds(
            Inner,
            rate=st.floats(allow_nan=False, allow_infinity=False),
            steps=st.integers(1, 10**9),
        ),
        middle=st.builds(
            Middle,
            sizes=st.lists(st.integers(), max_size=3).map(tuple),
            scaling=st.none() | st.tuples(st.floats(-1e9, 1e9), st.integers()),
        ),
    )
)
def test_any_settings_survive_a_round_trip_through_yaml(settings):
    dumped = yaml.safe_dump(dataclasses.asdict(settings))
    assert build(Outer, yaml.safe_load(dumped), file="f") == settings
