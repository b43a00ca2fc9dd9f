"""A run with untrained models, for tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from ixjax.commands import main as commands
from ixjax.pipeline import Run, open_run, prepare
from ixjax.pipeline.sft import initial_model
from ixjax.training import save_model
from tests.end_to_end.tiny import Silent, tiny_run

MODELS = ("policy_sft", "simulator", "policy_dpo/imcts")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Run:
    """A prepared run with models of random weights; tests must not change it."""
    return untrained_run(tmp_path_factory.mktemp("runs") / "untrained")


def untrained_run(out: Path, models: tuple[str, ...] = MODELS, **settings) -> Run:
    run = open_run(tiny_run(out, **settings))
    prepare(run, Silent())
    for seed, name in enumerate(models):
        save_model(initial_model(run, seed=seed), out / name)
    return run


@pytest.fixture
def command(capsys, monkeypatch):
    """Run a command: exit code, standard output, standard error."""
    monkeypatch.setenv(commands.CACHE_SWITCH, "off")

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            commands.main(name, arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return run
