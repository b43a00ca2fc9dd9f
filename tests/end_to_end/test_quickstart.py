"""The README's promise: DPO on i×MCTS pairs beats SFT with the true user of the sandbox."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_imcts_pairs_beat_sft_with_the_true_user(seed, tmp_path):
    out = tmp_path / "run"
    subprocess.run(
        [
            *(sys.executable, "-m", "launch.pipeline", "--config", "quickstart"),
            *("--seed", str(seed), "--out", str(out)),
        ],
        check=True,
        capture_output=True,
        timeout=1800,
    )
    cells = json.loads((out / "evaluation.json").read_text())["cells"]
    cell = next(c for c in cells if (c["method"], c["user"]) == ("dpo_imcts", "true"))
    assert cell["gain_low"] > 0
    assert cell["relative_gain"] >= 0.2
