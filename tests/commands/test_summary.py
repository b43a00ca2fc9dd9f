"""Tables at the end of a stage: every figure is in its row, and unknown figures are n/a."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ixjax.commands import summary

CELL = {
    "user": "true",
    "engagement": 0.61234,
    "low": 0.55,
    "high": 0.67,
    "gain": 0.1,
    "gain_low": 0.02,
    "gain_high": 0.18,
    "relative_gain": 0.2034,
    "release_rate": 0.25,
    "win_rate": 0.625,
    "turns": 4.5,
    "distinct_1": 0.1,
    "distinct_2": 0.3,
    "response_tokens": 9.75,
    "unreadable_rate": 0.0,
}
RESULT = {
    "users": ["simulator", "true"],
    "conditions": 96,
    "cells": [
        CELL | {"method": "dpo_imcts"},
        CELL | {"method": "sft", "gain": None, "gain_low": None, "gain_high": None,
                "relative_gain": None, "win_rate": None},
        CELL | {"method": "best_of_n", "user": "simulator", "turns": 7.25},
    ],
    "fidelity": [
        {"simulator": "held-out", "dialogues": 64, "utterance_nll": 2.5, "outcome_mae": 0.2,
         "outcome_mae_baseline": 0.25, "outcome_spearman": None, "outcome_spearman_half": 0.1,
         "calibration_error": 0.05}
    ],
}  # fmt: skip


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=180, markup=False)


def row(console: Console, name: str) -> list[str]:
    """The cells of the only row that begins with a name."""
    lines = console.file.getvalue().splitlines()
    [line] = [line for line in lines if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_evaluation_shows_each_cell_under_its_user(console):
    summary.print_evaluation(console, RESULT)
    simulator, true = console.file.getvalue().split("the user: true")
    assert "best_of_n" in simulator
    assert "dpo_imcts" not in simulator
    assert "dpo_imcts" in true
    assert row(console, "dpo_imcts") == [
        "dpo_imcts", "0.612", "0.550 to 0.670", "0.100", "0.020 to 0.180", "20.3 %", "25.0 %",
        "62.5 %", "4.500", "0.100/0.300", "9.750", "0.0 %",
    ]  # fmt: skip


def test_what_is_not_known_is_not_a_number(console):
    summary.print_evaluation(console, RESULT)
    assert row(console, "sft").count("n/a") == 4
    assert row(console, "held-out") == [
        "held-out", "64", "2.500", "0.200", "0.250", "n/a", "0.100", "0.050", "no",
    ]  # fmt: skip


def test_prepare_shows_the_account_and_the_splits(console):
    facts = {
        "account": [("dialogues read", 1300), ("dropped: [one speaker]", 2)],
        "splits": {"train": 1000},
    }
    summary.print_prepare(console, facts)
    assert row(console, "dialogues read") == ["dialogues read", "1,300"]
    assert row(console, "dropped: [one speaker]")[1] == "2"
    assert row(console, "split: train")[1] == "1,000"


def test_sft_and_dpo_show_the_last_figures(console):
    summary.print_sft(
        console,
        {"policy": {"examples": 10, "dropped_turns": 1, "step": 400, "loss": 1.5, "seconds": 60.5}},
    )
    assert row(console, "policy") == ["policy", "10", "1", "400", "1.500", "n/a", "60.500"]
    summary.print_dpo(
        console,
        {"mix": {"pairs": 90, "step": 80, "loss": 0.5, "rewards/accuracies": 0.75,
                 "rewards/margins": 1.25, "seconds": 9.0}},
    )  # fmt: skip
    assert row(console, "mix") == [
        "mix", "90", "80", "0.500", "0.750", "1.250", "n/a", "n/a", "9.000",
    ]  # fmt: skip


def test_search_shows_the_account_and_why_pairs_were_dropped(console):
    facts = {
        "trees": {"inputs": "f00", "trees": 64, "model_turns": 5000},
        "pairs": {
            "considered": 127,
            "imcts": 120,
            "dropped": {"small_margin": 7},
            "left_out": {"few_visits": 3},
            "human": 40,
            "human_dropped": {"near_duplicate": 2},
        },
    }
    summary.print_search(console, facts)
    assert row(console, "model turns")[1] == "5,000"
    assert row(console, "pairs from trees")[1] == "120"
    assert row(console, "pairs from people")[1] == "40"
    assert row(console, "pairs considered")[1] == "127"
    assert row(console, "dropped: small margin")[1] == "7"
    assert row(console, "responses not compared: few visits")[1] == "3"
    assert row(console, "human turns without a pair: near duplicate")[1] == "2"
    assert "f00" not in console.file.getvalue()


def test_a_raters_name_commands_no_terminal(console):
    rated = {"items": 1, "win_rate": 1.0, "low": 0.2, "high": 1.0}
    rater = "ann\x1b]0;owned\x07\x1b[2J"
    result = {
        **rated, "methods": ["sft", "dpo"], "user": "true", "fleiss": {"items": 1, "kappa": None},
        "by_rater": [{"rater": rater, **rated}], "first_shown": {"share": None, "low": None,
        "high": None}, "cohen": [{"raters": [rater, "ben"], "items": 1, "kappa": 0.0}],
    }  # fmt: skip
    summary.print_ratings(console, result)
    assert "ann]0;owned[2J" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()
