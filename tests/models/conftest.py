"""Folders that the tests of checkpoints share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Return a checkpoint of each case; tests must not write to them."""
    from tests.models.families import CASES, make_folder

    root = tmp_path_factory.mktemp("hf")
    return {case: make_folder(root / case, case) for case in CASES}


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """Return a copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(folders["qwen2-gqa"], tmp_path / "broken"))
