"""What becomes of an aligned policy beside its own files."""

from __future__ import annotations

import pytest

from ixjax.pipeline import dpo
from tests.commands.conftest import untrained_run


class Notes:
    def __init__(self):
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def run(tmp_path):
    return untrained_run(tmp_path / "run", ("policy_dpo/imcts",))


def test_an_aligned_policy_is_exported(run):
    notes = Notes()
    dpo._export(run, "imcts", notes)
    folder = run.directory.exported / "imcts"
    assert notes.told == [f"dpo imcts: the policy is exported to {folder}"]
    assert (folder / "model.safetensors").is_file()


def test_an_export_that_fails_is_told_and_ends_nothing(run):
    notes = Notes()
    run.directory.exported.write_text("a file where the folder should be")
    dpo._export(run, "imcts", notes)
    assert len(notes.told) == 1
    assert "dpo imcts: the policy could not be exported (" in notes.told[0]
    assert f"`ixjax export --out {run.directory.root} --model policy_dpo/imcts" in notes.told[0]
