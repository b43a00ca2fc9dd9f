"""The package as a whole: what a wheel holds, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest


@pytest.mark.slow
def test_a_wheel_holds_the_presets(tmp_path):
    line = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), "."]
    subprocess.run(line, check=True, capture_output=True)
    [wheel] = tmp_path.glob("ixjax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "ixjax/configs/quickstart.yaml" in names
    assert "ixjax/commands/main.py" in names


def test_data_tools_start_without_jax():
    code = "import sys, ixjax.dialogue.corpora, ixjax.io; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_never_imports_torch():
    code = "import sys, ixjax.pipeline, ixjax.commands.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
