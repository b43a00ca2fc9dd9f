"""Flags: every error is one line with the flag as it is typed, the value and what was expected."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from ixjax.commands.flags import read_flags
from ixjax.io import InputError


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section."""

    batch_size: int = 8
    """Whole."""
    rate: float = 0.5
    """Any."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; expected 1 or more")
        if self.rate < 0:
            raise InputError(f"inner.rate is {self.rate}; expected 0 or more")
        if self.batch_size > 99:
            raise InputError("too much; expected less")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A command's."""

    path: str = ""
    """A text."""
    device: Literal["h200", "a100", "h100"] | None = None
    """One of these."""
    limit: float | None = None
    """A number, or none."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """A section."""

    def __post_init__(self) -> None:
        if self.path == "bad":
            raise InputError("path is 'bad'; expected another")


def read(*arguments: str) -> Settings:
    return read_flags(Settings, arguments, prog="ixjax x", description="X.", default=Settings())


def test_flags_replace_the_defaults_that_they_name():
    found = read("--inner.batch-size", "3", "--inner.rate=1e-3", "--device", "a100", "--limit", "2")
    assert found == Settings(device="a100", limit=2.0, inner=Inner(3, 1e-3))


LONG = "x" * 200  # longer than any terminal is wide


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--inner.batchsize", "3"],
            "unknown flag --inner.batchsize; perhaps you meant --inner.batch-size",
        ),
        (["--zzz", "3"], "unknown flag --zzz"),
        (["word"], "unexpected argument 'word'; expected flags"),
        (["--inner.rate"], "--inner.rate: expected a value"),
        (["--inner.batch-size", "x y"], "--inner.batch-size is 'x y'; expected a whole number"),
        (["--inner.batch-size", "1.5"], "--inner.batch-size is '1.5'; expected a whole number"),
        (["--inner.rate", "fast"], "--inner.rate is 'fast'; expected a number"),
        (["--limit", "low"], "--limit is 'low'; expected a number"),
        (["--device", "h300"], "--device is 'h300'; expected one of h200, a100, h100"),
        (["--device", "h 1000"], "--device is 'h 1000'; expected one of h100, a100, h200"),
        (["--inner.batch-size", "-5"], "--inner.batch-size is -5; expected 1 or more"),
        (["--inner.rate", "-1"], "--inner.rate is -1.0; expected 0 or more"),
        (["--inner.batch-size", "100"], "--inner: too much; expected less"),
        (["--path", "bad"], "path is 'bad'; expected another"),
        (["--inner.rate", LONG], f"--inner.rate is '{LONG}'; expected a number"),
    ],
)
def test_what_is_wrong_is_one_line_with_flag_value_and_remedy(arguments, error):
    with pytest.raises(InputError) as raised:
        read(*arguments)
    assert str(raised.value).startswith(error)
    assert "\n" not in str(raised.value)


def test_help_is_a_page_and_no_error(capsys):
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert not ended.value.code
    shown = capsys.readouterr()
    assert "--inner.batch-size" in shown.out
    assert shown.err == ""
