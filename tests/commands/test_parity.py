"""The parity command: a table, the worst token, and an exit code."""

from __future__ import annotations

from ixjax.generation import SamplingConfig
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
    assert error == "error: engine and trainer differ by more than is allowed\n"


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
    assert "policy_sft is not finished here; run `ixjax sft`" in error


def test_nothing_to_compare_is_refused(command):
    code, _, error = command("parity", "--dialogues", "0")
    assert (code, error) == (2, "error: dialogues is 0; expected 1 or more\n")
