"""A user's own preference loss is one object, and trains as a built-in one does."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest
import tyro

from ixjax.pipeline.settings import build
from ixjax.training import LOSSES, DPOConfig, LossSettings, register_loss, train_dpo
from tests.training.doubles import DPO, one_device, params, random_pairs, tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loss.py"


@pytest.fixture(autouse=True)
def _fresh_table(monkeypatch):
    monkeypatch.setattr("ixjax.training.objectives.LOSSES", dict(LOSSES))


def test_the_example_learns_and_its_loss_is_the_papers(capsys):
    found = runpy.run_path(str(EXAMPLE))
    first, last = capsys.readouterr().out.splitlines()
    assert "loss 1.000" in first
    assert float(last.split()[3]) < 0.95
    ratios = np.array([[0.0, 2.0, -30.0], [0.0, -1.0, 4.0]], np.float32)
    losses = found["apo_zero"](*ratios, LossSettings(beta=0.5))
    # D'Oosterlinck et al. 2024, table 1: 1 - s(r_w) + s(r_l).
    rewards = 0.5 * ratios
    chosen, rejected = 1 / (1 + np.exp(-rewards))
    np.testing.assert_allclose(losses, 1 - chosen + rejected, rtol=1e-5)


def test_a_registered_loss_is_a_choice_of_flags_and_files():
    register_loss(dataclasses.replace(LOSSES["ipo"], name="own"))
    flags = tyro.cli(DPOConfig, args=["--variant", "own"])
    assert flags == build(DPOConfig, {"variant": "own"}, file="x.yaml")
    assert flags.variant == "own"
    with pytest.raises(ValueError, match=r"variant is 'onw' .* sigmoid, .* own; .* own$"):
        build(DPOConfig, {"variant": "onw"}, file="x.yaml")


def test_a_builtin_registered_under_another_name_trains_to_the_same_bits(tmp_path):
    register_loss(dataclasses.replace(LOSSES["sigmoid"], name="own"))
    trained = {}
    for name in ("sigmoid", "own"):
        reports = []
        model = train_dpo(
            tiny_model(),
            random_pairs(16),
            dataclasses.replace(DPO, variant=name, steps=3),
            mesh=one_device(),
            seed=0,
            directory=tmp_path / name,
            on_step=reports.append,
        )
        trained[name] = params(model), [report["loss"] for report in reports]
    assert trained["own"][1] == trained["sigmoid"][1]
    for ours, builtin in zip(trained["own"][0], trained["sigmoid"][0], strict=True):
        np.testing.assert_array_equal(ours, builtin)
