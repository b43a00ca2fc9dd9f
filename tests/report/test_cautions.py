"""Each doubt is raised by its figure alone."""

from __future__ import annotations

import json
import re

import pytest

from ixjax.report import write_report
from ixjax.report.cautions import ALWAYS, cautions
from ixjax.report.files import open_runs
from tests.report.runs import write_run


def doubts(root) -> list[str]:
    items = [list(b.items) for b in cautions(open_runs([str(root)])).blocks if hasattr(b, "items")]
    assert items[-1] == list(ALWAYS)
    return [item for block in items[:-1] for item in block]


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def sound(tmp_path):
    """A run with nothing to doubt."""
    write_run(tmp_path)
    edit(
        tmp_path / "evaluation.json",
        lambda found: found["fidelity"][1].update(outcome_mae=0.1, outcome_spearman=0.7),
    )
    return tmp_path


def test_a_sound_run_raises_none(sound):
    assert doubts(sound) == []


def of(cells, method: str, user: str):
    return next(c for c in cells["cells"] if (c["method"], c["user"]) == (method, user))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda e: e["fidelity"][0].update(outcome_mae=0.31),
            "0.310, that of the mean outcome",
        ),
        (lambda e: e["fidelity"][0].update(outcome_spearman=None), "rank correlation n/a"),
        (lambda e: e["fidelity"][0].update(outcome_mae_baseline=None), "mean outcome n/a"),
        (lambda e: e["fidelity"][1].update(calibration_error=0.2), "calibration error of 0.200"),
        (lambda e: e.update(conditions=12), "12 held-out conditions"),
        (lambda e: e["cells"][4].update(unreadable_rate=0.1), "10.0 % of the outcomes"),
        (
            lambda e: of(e, "dpo_imcts", "simulator_heldout").update(gain_low=-0.1),
            "gains with the search's simulator and not with the held-out",
        ),
        (
            lambda e: of(e, "dpo_imcts", "simulator").update(response_tokens=14.0),
            "14.000 tokens a turn, SFT 7.000",
        ),
        (
            lambda e: of(e, "dpo_imcts", "simulator").update(distinct_2=0.1),
            "distinct-2 is 0.100, SFT's 0.200",
        ),
    ],
)
def test_a_figure_of_the_evaluation_raises_its_doubt_alone(sound, change, said):
    edit(sound / "evaluation.json", change)
    (found,) = doubts(sound)
    assert said in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": "a much longer response"}, "longer one in 100.0 %"),
        ({"chosen": "short"}, "shorter one in 100.0 %"),
        ({"chosen_visits": 1}, "single return"),
    ],
)
def test_what_pairs_are_like_raises_its_doubt_alone(sound, change, said):
    head, line = (sound / "pairs.jsonl").read_text().splitlines()
    (sound / "pairs.jsonl").write_text(f"{head}\n{json.dumps(json.loads(line) | change)}\n")
    (found,) = doubts(sound)
    assert said in found


@pytest.mark.parametrize(
    ("source", "name"), [("imcts", "DPO on i×MCTS pairs"), ("human", "DPO on human pairs")]
)
def test_chosen_responses_that_became_less_likely_raise_a_doubt(sound, source, name):
    """The mean over the last quarter of the logged steps counts, not the last batch."""

    def log(rewards):
        lines = [
            {"stage": f"dpo/{source}", "step": step, "rewards/chosen": reward}
            for step, reward in enumerate(rewards, start=1000)
        ]
        with (sound / "metrics.jsonl").open("a") as file:
            file.write("".join(f"{json.dumps(line)}\n" for line in lines))

    log([0.0] * 60 + [0.5] * 19 + [-0.1])
    assert doubts(sound) == []
    log([0.0] * 60 + [-0.5] * 19 + [0.1])
    (found,) = doubts(sound)
    assert found.startswith(name)
    assert "reward -0.470" in found


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("manifest.json", "manifest.json is missing"),
        ("pairs.jsonl", "pairs.jsonl is missing"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
    ],
)
def test_a_missing_file_raises_a_doubt(sound, gone, said):
    (sound / gone).unlink()
    assert [found for found in doubts(sound) if found.startswith(said)]


def test_missing_trees_are_a_gap(sound):
    (path,) = (sound / "trees").glob("*.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    _, page = write_report([str(sound)])
    assert re.search(r"of-00001\.jsonl has 1 of 2", page.read_text())


def test_missing_dialogues_raise_a_doubt(sound):
    next((sound / "evaluation").glob("*-sft-simulator.jsonl")).unlink()
    (found,) = doubts(sound)
    assert "sft with simulator" in found
