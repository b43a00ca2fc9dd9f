"""The package as a whole: what a wheel holds, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_wheel_holds_the_presets_and_runs_them_from_another_folder(tmp_path):
    pip = [sys.executable, "-m", "pip"]
    wheels, installed = tmp_path / "wheels", tmp_path / "installed"
    line = [*pip, "wheel", "-q", "--no-deps", "-w", str(wheels), "."]
    subprocess.run(line, check=True, capture_output=True)
    [wheel] = wheels.glob("ixjax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"ixjax/configs/{path.name}" for path in Path("configs").glob("*.yaml")} <= set(names)
    assets = Path("ixjax/report/assets")
    assert {f"ixjax/report/assets/{path.name}" for path in assets.iterdir()} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "launch/"))]

    line = [*pip, "install", "-q", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(line, check=True, capture_output=True)
    line = [sys.executable, "-W", "error", "-c", RUN_INSTALLED, str(installed)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "IXJAX_COMPILATION_CACHE": "off"}
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "runs" / "quickstart" / "conditions.jsonl").exists()


# In front of whatever else is installed here, an editable checkout included.
RUN_INSTALLED = """
import sys
sys.path.insert(0, sys.argv[1])
import ixjax.commands.main as command
assert command.__file__.startswith(sys.argv[1]), command.__file__
command.main("prepare", ["--config", "quickstart", "--data.sandbox-dialogues", "40"])
"""


def test_data_tools_start_without_jax():
    code = "import sys, ixjax.dialogue.corpora, ixjax.io; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_never_imports_torch():
    code = "import sys, ixjax.pipeline, ixjax.commands.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
