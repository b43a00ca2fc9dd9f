"""The documentation's examples work as they stand."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from ixjax.commands import main as commands
from ixjax.commands.tools import parse_tool
from ixjax.dialogue.scenarios import base
from ixjax.pipeline import open_run
from tests.end_to_end.tiny import tiny_run

DOCS = Path(__file__).parents[1] / "docs"


def block(page: str, language: str, containing: str) -> str:
    """The one code block of a page in that language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (found,) = [code for code in blocks if containing in code]
    return found


@pytest.fixture
def parcels(monkeypatch):
    """The guide's own scenario, registered for one test."""
    monkeypatch.setattr(base, "_SCENARIOS", dict(base._SCENARIOS))
    exec(compile(block("guide.md", "python", "register_scenario"), "parcels.py", "exec"), {})
    return base.get_scenario("parcels")


def test_the_guides_scenario_reads_the_example_of_the_data_formats(parcels, tmp_path, monkeypatch):
    monkeypatch.setenv(commands.CACHE_SWITCH, "off")
    record = json.loads(block("data-formats.md", "json", "parcel"))
    corpus = tmp_path / "dialogues.jsonl"
    corpus.write_text("".join(json.dumps(record | {"id": f"d{i}"}) + "\n" for i in range(40)))
    arguments = ["--scenario", "parcels", "--data.format", "jsonl", "--data.path", str(corpus)]
    commands.main("prepare", [*arguments, "--out", str(tmp_path / "run")])
    prepared = (tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()
    assert json.loads(prepared[1])["outcome"] == {"value": 4.0, "engagement": 0.75}


def test_the_guides_scenario_reads_what_it_writes(parcels):
    assert [parcels.read_outcome(None, line) for line, _ in parcels.outcome_lines(None)] == [
        outcome for _, outcome in parcels.outcome_lines(None)
    ]


def test_the_guides_tools_take_the_flags_that_it_gives_them(tmp_path):
    open_run(tiny_run(tmp_path / "run"))
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / "guide.md").read_text(), re.DOTALL)
    lines = [line for code in blocks for line in code.splitlines() if line.startswith("ixjax ")]
    shown = [words for line in lines if (words := shlex.split(line)[1:])[0] in commands.TOOLS]
    assert {line[0] for line in shown} == set(commands.TOOLS)
    for tool, *flags in shown:
        given = [str(tmp_path / "run") if flag == "runs/quickstart" else flag for flag in flags]
        module = importlib.import_module(f"ixjax.commands.{tool}")
        settings, run = parse_tool(module.Settings, given, tool=tool, summary=module.SUMMARY)
        assert (run is None) == ("--out" not in flags) == (not settings.out)


def test_every_command_is_in_the_readme():
    readme = (DOCS.parent / "README.md").read_text()
    for name in commands.STAGES | commands.TOOLS:
        assert f"| `ixjax {name}` |" in readme
