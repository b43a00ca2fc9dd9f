"""What tools share: a run's settings by --out alone, and flags above them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ixjax.commands.tools import parse_tool
from ixjax.generation import SamplingConfig
from ixjax.io import InputError
from ixjax.models import save_hf
from ixjax.pipeline import read_run
from ixjax.testing import tiny_model


@dataclasses.dataclass(frozen=True)
class Settings:
    """A tool's."""

    out: str = ""
    """The run."""
    model: str = "mine"
    """Of another type than a run's."""
    seed: int = 7
    """As in a run."""
    size: int = 3
    """Its own."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    """As in a run."""


def parse(*arguments: str):
    return parse_tool(Settings, arguments, tool="tool", summary="A tool.")


def test_settings_that_a_run_has_too_are_the_runs_and_flags_win(untrained):
    out = str(untrained.directory.root)
    settings, run = parse("--out", out, "--sampling.top-k", "5")
    assert run is not None
    assert run.config == untrained.config
    expected = dataclasses.replace(untrained.config.sampling, top_k=5)
    assert settings == Settings(out=out, seed=untrained.config.seed, sampling=expected)
    assert parse(f"--out={out}", "--seed", "9")[0].seed == 9


@pytest.mark.parametrize(
    ("said", "context", "expected"),
    [({"max_new_tokens": 24}, 192, 24), ({}, 64, 32), ({"max_new_tokens": 500}, 192, 96)],
)
def test_a_folders_turns_are_as_long_as_it_says_and_as_fits(tmp_path, said, context, expected):
    save_hf(tiny_model(300, max_length=context), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    settings, _ = parse("--model", str(tmp_path))
    assert settings.sampling == SamplingConfig(max_new_tokens=expected)
    settings, _ = parse("--model", str(tmp_path), "--sampling.max-new-tokens", "7")
    assert settings.sampling.max_new_tokens == 7


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.8, "top_k": None}, {"temperature": 0.6, "top_p": 0.8}),
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({"do_sample": True, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
)
def test_a_folder_samples_as_it_says(tmp_path, said, expected):
    save_hf(tiny_model(300), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 9} | said))
    settings, _ = parse("--model", str(tmp_path))
    assert settings.sampling == SamplingConfig(max_new_tokens=9, **expected)


def test_a_folder_that_samples_out_of_range_is_named(tmp_path):
    save_hf(tiny_model(300), tmp_path)
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(InputError, match=r"generation_config.json: top_p is 7; expected"):
        parse("--model", str(tmp_path))


def test_without_a_run_the_tools_own_defaults_hold():
    assert parse() == (Settings(), None)


def test_a_run_of_other_devices_or_another_place_is_read_as_it_lies(untrained, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yaml").write_bytes(untrained.directory.config.read_bytes())
    run = read_run(str(moved))
    assert run.config == dataclasses.replace(untrained.config, out=str(moved))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config.yaml is missing"),
        ("sede: 3\n", "config.yaml:1: unknown key sede; .* seed"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(InputError, match=message):
        parse("--out", str(tmp_path))


def test_out_without_a_directory_is_an_input_error():
    with pytest.raises(InputError, match=r"--out: .*value"):
        parse("--out")
