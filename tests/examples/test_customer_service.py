"""The example keeps its promises: short, of public names alone, and it runs."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "customer_service.py"


def test_it_has_less_than_eighty_lines():
    assert len(EXAMPLE.read_text().splitlines()) < 80


def test_it_is_built_of_public_names_alone():
    tree = ast.parse(EXAMPLE.read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import) and "ixjax" in ast.dump(n)]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").partition(".")[0] == "ixjax"]
    assert len(ours) > 1
    for node in ours:
        public = importlib.import_module(str(node.module)).__all__
        assert {alias.name for alias in node.names} <= set(public), node.module


@pytest.mark.slow
def test_it_runs_and_prints_its_comparison(tmp_path):
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "TMPDIR": str(tmp_path)}
    line = [sys.executable, str(EXAMPLE)]
    ran = subprocess.run(line, env=os.environ | settings, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    pairs, sft, dpo = ran.stdout.splitlines()
    assert int(re.fullmatch(r"pairs from trees: (\d+)", pairs)[1]) > 0
    for line, method in ((sft, "sft"), (dpo, "dpo_imcts")):
        engagement = float(re.fullmatch(rf"{method} +engagement (\d\.\d\d)", line)[1])
        assert 0 <= engagement <= 1
