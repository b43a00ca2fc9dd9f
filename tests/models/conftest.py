"""Folders that the tests of checkpoints share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each case; not to be written to."""
    from tests.models.families import CASES, make_folder

    root = tmp_path_factory.mktemp("hf")
    return {case: make_folder(root / case, case) for case in CASES}


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """A folder of one's own to break."""
    return Path(shutil.copytree(folders["qwen2-gqa"], tmp_path / "broken"))
