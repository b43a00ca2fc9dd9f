"""Content of a report: the result first, missing stages as gaps, runs compared."""

from __future__ import annotations

import html
import json
import re

import plotly.graph_objects as go
import pytest

from ixjax.io import InputError
from ixjax.report import Limits, write_report
from ixjax.report.blocks import Plot, Plots
from ixjax.report.files import open_runs
from ixjax.report.report import make_sections
from tests.report.runs import RATING_SCORES, STAGES, write_run


def report(*roots, **more) -> str:
    """The words of the Markdown file, without its escapes."""
    _, text = write_report([str(root) for root in roots], **more)
    return text.read_text().replace("\\", "")


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_result_stands_first_with_the_user_that_says_most(tmp_path):
    text = report(write_run(tmp_path))
    assert re.search("^## (.*)$", text, re.MULTILINE)[1] == "Result"
    first = section(text, "Result").strip().splitlines()[0]
    assert first.startswith("With the true user, DPO on i×MCTS pairs")
    for figure in ("0.600, SFT 0.400", "0.200 (95 %: 0.100 to 0.300)", "50.0 %", "60 held-out"):
        assert figure in first


def test_a_run_of_every_stage_has_no_gap(tmp_path):
    assert "*Missing:*" not in report(write_run(tmp_path))


@pytest.mark.parametrize(
    ("missing", "command", "titles"),
    [
        ("sft", "ixjax sft", ["Training curves"]),
        ("search", "ixjax search", ["Tree explorer", "Search"]),
        ("pairs", "ixjax search", ["Preference pairs"]),
        ("dpo", "ixjax dpo", ["Training curves"]),
        ("evaluate", "ixjax evaluate", ["Result", "Sample dialogues", "Simulator fidelity"]),
    ],
)
def test_a_missing_stage_leaves_a_gap_that_names_what_makes_it(tmp_path, missing, command, titles):
    text = report(write_run(tmp_path, stages=[s for s in STAGES if s != missing]))
    gaps = re.findall(r"^\*Missing:\*.*", text, re.MULTILINE)
    assert len(gaps) == len(titles)
    for title in titles:
        assert f"`{command}`" in re.search(r"\*Missing:\*.*", section(text, title))[0]


def test_a_run_of_given_pairs_alone_misses_no_others(tmp_path):
    write_run(tmp_path)
    logged = (tmp_path / "metrics.jsonl").read_text().replace("dpo/human", "dpo/preferences")
    kept = [line for line in logged.splitlines() if "imcts" not in line and "mix" not in line]
    (tmp_path / "metrics.jsonl").write_text("\n".join(kept))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    stages = manifest["stages"]
    stages["dpo/preferences"] = stages.pop("dpo/human")
    del stages["dpo/imcts"], stages["dpo/mix"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    training = section(report(tmp_path), "Training curves")
    assert "*Missing:*" not in training
    assert "| given pairs |" in training


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    text = report(write_run(tmp_path, stages=[]))
    assert text.count("*Missing:*") == 10


def test_the_result_includes_ratings(tmp_path):
    write_run(tmp_path)
    (tmp_path / "rating_scores.json").write_text(json.dumps(RATING_SCORES))
    result = section(report(tmp_path), "Result")
    [verdict] = [line for line in result.splitlines() if line.startswith("2 people compared 50")]
    for figure in ("the true user", "61.0 %", "47.0 % to 73.0 %", "kappa 0.300"):
        assert figure in verdict


def test_several_runs_are_compared(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", stages=["sft"])
    (other / "config.yaml").write_text("scenario: sandbox\nseed: 7\n")
    text = report(one, other)
    assert (one / "comparison.html").exists()
    assert not (one / "report.html").exists()
    assert "one: With the true user" in section(text, "Result")
    assert "*Missing:* other: not evaluated" in section(text, "Result")
    training = section(text, "Training curves")
    rows = [line.split(" | ")[:2] for line in training.splitlines() if line.startswith("| Policy")]
    assert rows == [["| Policy", "one"], ["| Policy", "other"]]
    settings = section(text, "Settings and versions")
    assert "| seed | 0 | 7 |" in settings
    assert "| search.width | 3 | absent |" in settings
    assert "scenario |" not in settings


def test_both_files_go_where_they_are_told(tmp_path):
    write_run(tmp_path / "run")
    paths = write_report([str(tmp_path / "run")], to=str(tmp_path / "elsewhere"))
    assert [path.name for path in paths] == ["report.html", "report.md"]
    assert {path.parent for path in paths} == {tmp_path / "elsewhere"}


@pytest.mark.parametrize(("count", "plots"), [(1, 14), (2, 21)])
def test_plotly_knows_every_property_of_the_figures(tmp_path, count, plots):
    roots = [str(write_run(tmp_path / str(i))) for i in range(count)]
    found = []
    for part in make_sections(open_runs(roots), Limits()):
        for block in part.blocks:
            if isinstance(block, Plots):
                found += block.plots
            elif isinstance(block, Plot):
                found.append(block)
    assert len(found) == plots
    for plot in found:
        figure = go.Figure(plot.figure)  # raises on a property that there is not
        assert figure.data, plot.title
        assert all(len(trace.x) == len(trace.y) > 0 for trace in figure.data), plot.title


def test_a_tick_of_a_loss_says_the_whole_number(tmp_path):
    (training,) = [
        part
        for part in make_sections(open_runs([str(write_run(tmp_path))]), Limits())
        if part.id == "training"
    ]
    plots = next(block for block in training.blocks if isinstance(block, Plots)).plots
    axis = plots[0].figure["layout"]["yaxis"]
    assert dict(zip(axis["tickvals"], axis["ticktext"], strict=True)).items() >= {
        0.5: "0.5", 1.0: "1", 5.0: "5",
    }.items()  # fmt: skip


def test_the_intervals_of_the_figure_are_those_of_the_evaluation(tmp_path):
    result = make_sections(open_runs([str(write_run(tmp_path))]), Limits())[0]
    (plots,) = [block for block in result.blocks if isinstance(block, Plots)]
    (trace,) = plots.plots[2].figure["data"]
    assert list(plots.plots[2].figure["layout"]["yaxis"]["ticktext"]) == [
        "SFT",
        "DPO on i×MCTS pairs",
    ]
    assert trace["x"] == pytest.approx([0.4, 0.6])
    assert trace["error_x"]["array"] == pytest.approx([0.1, 0.1])
    assert trace["error_x"]["arrayminus"] == pytest.approx([0.1, 0.1])


def test_the_page_has_the_figures_of_the_tables(tmp_path):
    page, _ = write_report([str(write_run(tmp_path))])
    text = html.unescape(page.read_text())
    assert "<td>0.300 to 0.500</td>" in text
    assert "<td>0.350</td>" in text  # the held-out simulator's error
    assert "<td>no</td>" in text


def test_versions_that_were_not_recorded_are_a_gap(tmp_path):
    write_run(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made_with"', '"other"'))
    gaps = re.findall(r"^\*Missing:\*.*", report(tmp_path), re.MULTILINE)
    assert [gap for gap in gaps if "versions" in gap]


def test_a_large_run_says_how_much_of_it_is_in_the_page(tmp_path):
    text = report(write_run(tmp_path), limits=Limits(trees=1, conditions=2))
    assert "1 of 2 trees" in section(text, "Tree explorer")
    assert "2 of 60 held-out conditions" in section(text, "Sample dialogues")


@pytest.mark.parametrize("name", ["trees", "nodes", "conditions"])
def test_a_limit_below_one_is_refused(name):
    with pytest.raises(InputError, match=rf"limits.{name} is 0; "):
        Limits(**{name: 0})
