"""Files of a run: a missing one is a gap, a damaged one an error with its name and line."""

from __future__ import annotations

import json
import re

import pytest

from ixjax.io import InputError
from ixjax.report import write_report
from ixjax.report.files import open_runs
from tests.report.runs import RATING_SCORES, write_run

TREES = "trees/trees-00000-of-00001.jsonl"
PLAYED = "evaluation/0123456789abcdef-sft-true.jsonl"


def refused(text: str):
    return pytest.raises(InputError, match=re.escape(text))


@pytest.mark.parametrize("name", [TREES, "pairs.jsonl", PLAYED])
def test_a_file_that_was_cut_off_is_named_with_its_line(tmp_path, name):
    path = write_run(tmp_path) / name
    whole = path.read_text()
    path.write_text(whole[: len(whole) - 20])
    with refused(f"{path}:{len(whole.splitlines())}: not JSON"):
        write_report([str(tmp_path)])


def test_a_line_of_the_log_that_was_cut_off_is_a_gap(tmp_path):
    path = write_run(tmp_path) / "metrics.jsonl"
    lines = path.read_text().splitlines()
    glued = [*lines[:2], lines[2][:30] + lines[3], *lines[4:], lines[4][:-10]]
    path.write_text("\n".join(glued))
    _, text = write_report([str(tmp_path)])
    assert f"line 3, {len(glued)} of metrics.jsonl" in text.read_text()
    (run,) = open_runs([str(tmp_path)])
    assert sum(map(len, run.logged.values())) == len(glued) - 2


@pytest.mark.parametrize(("name", "schema"), [(TREES, "tree"), ("pairs.jsonl", "pairs"),
                                              (PLAYED, "played")])  # fmt: skip
def test_a_file_of_another_kind_is_named_with_what_was_expected(tmp_path, name, schema):
    path = write_run(tmp_path) / name
    path.write_text('{"prompt": "something else"}\n')
    with refused(f"{path}:1: expected schema ixjax.{schema} version 1, found None version None"):
        write_report([str(tmp_path)])


def change(path, at: int, edit) -> None:
    """Change the record on one line of a file."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[at])
    edit(record)
    lines[at] = json.dumps(record)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (TREES, lambda r: r["nodes"][2].pop("visits"), "record 0: node 2: visits is missing"),
        (TREES, lambda r: r["nodes"][2].update(parent=5), "node 2 has id 2 and parent 5; expected"),
        (TREES, lambda r: r["nodes"][3].update(text=4), "node 3: text is 4; expected a text"),
        (TREES, lambda r: r["nodes"][3].update(visits=True), "visits is True; expected a whole"),
        (TREES, lambda r: r["nodes"][0].update(value_sum=float("nan")), "expected a finite number"),
        (TREES, lambda r: r["root"].update(turns=[{"role": "user"}]), "turn 0: text is missing"),
        ("pairs.jsonl", lambda r: r.pop("chosen"), "record 0: chosen is missing; expected a text"),
        (PLAYED, lambda r: r.update(engagement="high"), "engagement is 'high'; expected a whole"),
        (PLAYED, lambda r: r["dialogue"]["turns"][0].update(text="\ud800"), "a lone surrogate"),
        ("metrics.jsonl", lambda r: r.pop("stage"), "metrics.jsonl:2: stage is missing"),
        (TREES, lambda r: r.update(nodes=[]), "record 0: nodes is empty; "),
        *(
            (TREES, lambda r, value=value: r["root"]["condition"].update(need=value), message)
            for value, message in (
                ("\ud800", "root: condition: need holds a lone surrogate"),
                (float("nan"), "root: condition: need is nan; expected a finite number"),
                ([1, "\ud800"], "root: condition: need[1] holds a lone surrogate"),
            )
        ),
        (PLAYED, lambda r: r["dialogue"]["condition"].update({"\ud800": 1}), "a name holds a lone"),
    ],
)
def test_a_record_that_is_not_whole_is_named_with_its_field(tmp_path, name, edit, message):
    path = write_run(tmp_path) / name
    change(path, 1, edit)
    with refused(message):
        write_report([str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object, found list"),
        ('{"schema": "ixjax.evaluation", "version": 1}', "evaluation.json: conditions is missing"),
        ('{"schema": "other"}', "expected schema ixjax.evaluation version 1, found 'other'"),
    ],
)
def test_another_evaluation_is_refused(tmp_path, content, message):
    (write_run(tmp_path) / "evaluation.json").write_text(content)
    with refused(message):
        write_report([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("evaluation", {"version": 99}, "version 1, found 'ixjax.evaluation' version 99"),
        ("evaluation", {"methods": ["sft", 2]}, "evaluation.json: methods[1] is 2; expe"),
        ("evaluation", {"users": [None]}, "evaluation.json: users[0] is None; expected a text"),
        ("rating_scores", {"methods": ["sft"]}, "methods is ['sft']; expected 2 texts"),
        ("rating_scores", {"methods": ["sft", 1]}, "methods[1] is 1; expected a text"),
        ("rating_scores", {"fleiss": {"kappa": float("nan")}}, "fleiss: kappa is nan; expected a"),
        ("manifest", {"stages": {"\ud800": {}}}, "manifest.json: a name holds a lone surrogate"),
    ],
)
def test_a_document_that_was_edited_is_named_with_its_field(tmp_path, name, edit, message):
    write_run(tmp_path)
    (tmp_path / "rating_scores.json").write_text(json.dumps(RATING_SCORES))
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with refused(message):
        write_report([str(tmp_path)])


def test_a_damaged_file_leaves_the_report_that_was_there(tmp_path):
    write_run(tmp_path)
    page, _ = write_report([str(tmp_path)])
    before = page.read_bytes()
    (tmp_path / "pairs.jsonl").write_text("damaged")
    with pytest.raises(InputError):
        write_report([str(tmp_path)])
    assert page.read_bytes() == before


def test_a_folder_without_settings_is_no_run(tmp_path):
    with refused(f"{tmp_path}: no run directory (config.yaml is missing)"):
        write_report([str(tmp_path)])


@pytest.mark.parametrize("content", ["a: [1", "a: 1", "", "- 1"])
def test_settings_that_are_none_are_named(tmp_path, content):
    write_run(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=r"config\.yaml"):
        open_runs([str(tmp_path)])


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    roots = [str(write_run(tmp_path / a / b)) for a, b in (("x", "seed-0"), ("y", "seed-0"))]
    assert [run.name for run in open_runs(roots)] == ["x/seed-0", "y/seed-0"]
    assert [run.name for run in open_runs(roots[:1])] == ["seed-0"]
    with refused("given twice"):
        open_runs([roots[0], roots[0]])


def test_of_a_step_that_was_logged_twice_the_later_line_counts(tmp_path):
    path = write_run(tmp_path) / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"stage": "sft/policy", "step": 1, "loss": 9.0}) + "\n")
    (run,) = open_runs([str(tmp_path)])
    assert [(r["step"], r["loss"]) for r in run.steps("sft/policy")] == [(1, 9.0), (2, 1.0)]
