"""SIGTERM: the state is saved, the training leaves, and continues to the same bits."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest

from ixjax.training import Preempted
from ixjax.training.preemption import noted_sigterm
from tests.training.doubles import SFT, params
from tests.training.test_trainer import run


def terminate_at(step):
    def on_step(metrics):
        if metrics["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


@pytest.mark.parametrize("objective", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_training_that_is_told_to_end_continues_to_the_same_bits(objective, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    whole = run(objective, tmp_path / "whole")
    with pytest.raises(Preempted, match="step 5 of 12"):
        run(objective, tmp_path / "cut", on_step=terminate_at(4))
    assert {path.name for path in (tmp_path / "cut" / "steps").iterdir()} == {"3", "5"}
    assert signal.getsignal(signal.SIGTERM) == before
    told = []
    cut = run(objective, tmp_path / "cut", on_step=told.append)
    assert told[0]["resumed_at"] == 5
    for a, b in zip(params(whole), params(cut), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_that_comes_with_the_last_step_leaves_a_finished_model(tmp_path):
    whole = run("sft", tmp_path / "whole")
    with pytest.raises(Preempted, match="nothing is lost"):
        run("sft", tmp_path / "late", on_step=terminate_at(SFT.steps))
    told = []
    late = run("sft", tmp_path / "late", on_step=told.append)
    assert not told
    for a, b in zip(params(whole), params(late), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_block_raises_is_not_hidden_by_the_signal():
    def work():
        with noted_sigterm() as leave:
            os.kill(os.getpid(), signal.SIGTERM)
            assert leave()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


def test_other_threads_leave_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with noted_sigterm() as leave:
            seen.append((leave(), signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
