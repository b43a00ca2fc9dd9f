"""`ixjax plan` writes nothing, and prints the same figures in tables and in JSON."""

from __future__ import annotations

import json
import runpy

import pytest

SMALL = ("--config", "quickstart", "--devices", "4", "--plan.device", "tpu-v5e")


def test_a_plan_is_printed_and_nothing_is_written(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, error = command("plan", *SMALL)
    assert (code, error) == (0, "")
    assert "training on data=4 x fsdp=1 x tensor=1" in shown
    assert "does not fit" not in shown
    for line in ("moments", "activations", "cache", "evaluate", "assumed: "):
        assert line in shown
    assert not list(tmp_path.iterdir())


def test_json_holds_the_figures_of_the_tables(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, _ = command("plan", *SMALL, "--json")
    plan = json.loads(shown)
    assert code == 0
    assert plan["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert [e["work"]["stage"] for e in plan["estimates"]] == ["sft", "search", "dpo", "evaluate"]
    assert all(e["seconds"] > 0 for e in plan["estimates"])


def test_no_device_is_an_error_of_one_line(command):
    code, _, error = command("plan", "--config", "quickstart", "--devices", "0")
    assert code == 2
    assert "devices is 0; expected " in error
    assert error.count("\n") == 1


def test_the_launcher_shows_help(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["launch.plan", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("launch.plan", run_name="__main__")
    page = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--plan.device" in page
    assert "--search.iterations" in page
