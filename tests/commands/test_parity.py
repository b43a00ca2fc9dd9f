"""The parity command: a table, the worst token, and an exit code."""

from __future__ import annotations

import pytest

from ixjax.generation import SamplingConfig
from ixjax.training import load_model, save_model
from tests.commands.conftest import untrained_run


def test_every_finished_model_of_a_run_is_compared(untrained, command):
    code, shown, error = command("parity", "--out", str(untrained.directory.root))
    assert (code, error) == (0, "")
    for name in ("policy_sft", "simulator", "policy_dpo/imcts"):
        assert f"│ {name} " in shown
    assert "simulator_heldout" not in shown
    assert "largest: " in shown
    assert "on dialogue sandbox-0-" in shown


def test_a_difference_above_the_tolerance_ends_with_code_1(untrained, command):
    out = ("--out", str(untrained.directory.root), "--model", "policy_sft", "--dialogues", "2")
    code, shown, error = command("parity", *out, "--tolerance", "1e-12")
    assert code == 1
    assert "1e-12 allowed" in shown
    assert error.startswith("error: ")
    assert "1e-12" in error


@pytest.mark.slow
def test_a_folder_is_compared_without_a_run_in_its_own_tolerance(untrained, command, tmp_path):
    folder = str(tmp_path / "hf")
    command("export", "--out", str(untrained.directory.root), "--to", folder)
    flags = ("--dialogues", "2", "--sampling.max-new-tokens", "5")
    code, shown, _ = command("parity", "--model", folder, *flags)
    assert code == 0
    assert "0.1 allowed" in shown  # bfloat16, as folders are read
    code, shown, _ = command("parity", "--model", folder, *flags, "--dtype", "float32")
    assert code == 0
    assert "0.001 allowed" in shown


def test_a_run_without_a_model_names_the_command(command, tmp_path):
    run = untrained_run(tmp_path / "run", (), sampling=SamplingConfig(max_new_tokens=5))
    code, _, error = command("parity", "--out", str(run.directory.root))
    assert code == 2
    assert "policy_sft" in error
    assert "`ixjax sft`" in error


def test_nothing_to_compare_is_refused(command):
    code, _, error = command("parity", "--dialogues", "0")
    assert code == 2
    assert error.startswith("error: --dialogues is 0; expected ")


@pytest.mark.parametrize("tolerance", ["nan", "-1", "inf"])
def test_a_tolerance_that_allows_all_or_nothing_is_refused_at_once(untrained, command, tolerance):
    out = str(untrained.directory.root)
    code, shown, error = command("parity", "--out", out, f"--tolerance={tolerance}")
    assert (code, shown) == (2, "")
    assert error.startswith(f"error: --tolerance is {float(tolerance)}; expected ")


def test_a_model_with_nan_weights_is_refused(command, tmp_path):
    run = untrained_run(tmp_path / "run", ("policy_sft",))
    model = load_model(run.directory.policy_sft)
    model.norm[...] = model.norm[...].at[0].set(float("nan"))
    save_model(model, run.directory.policy_sft)
    code, _, error = command("parity", "--out", str(run.directory.root))
    assert code == 2
    assert "policy_sft: weight norm holds NaN" in error
