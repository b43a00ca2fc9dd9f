"""`ixjax report` and `ixjax rate`: runs by position or by --out, errors of one line."""

from __future__ import annotations

import json

from tests.report.runs import write_run


def test_a_run_by_place_and_by_out_gives_the_same_page(command, tmp_path):
    root = write_run(tmp_path / "run")
    code, said, error = command("report", str(root))
    assert (code, error) == (0, "")
    assert said.splitlines()[0].startswith(f"{root}/report.html")
    assert said.splitlines()[1] == f"{root}/report.md"
    page = (root / "report.html").read_bytes()
    (root / "report.html").unlink()
    assert command("report", "--out", str(root))[0] == 0
    assert (root / "report.html").read_bytes() == page


def test_several_runs_are_compared(command, tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    code, said, _ = command("report", str(one), str(other), "--to", str(tmp_path / "both"))
    assert code == 0
    assert f"{tmp_path}/both/comparison.html" in said


def test_a_limit_is_a_flag(command, tmp_path):
    root = write_run(tmp_path)
    assert command("report", str(root), "--limits.trees", "1")[0] == 0
    assert "1 of 2 trees" in (root / "report.md").read_text()


def test_what_is_wrong_is_one_line(command, tmp_path):
    code, _, error = command("report")
    assert (code, error.count("\n")) == (2, 1)
    assert "--out is missing" in error
    code, _, error = command("report", str(tmp_path))
    assert (code, error.count("\n")) == (2, 1)
    root = write_run(tmp_path / "run")
    (root / "pairs.jsonl").write_text("{")
    code, _, error = command("report", str(root))
    assert (code, error.count("\n")) == (2, 1)
    assert f"{root}/pairs.jsonl:1: not JSON" in error


def test_ratings_are_exported_and_scored(command, tmp_path):
    root = write_run(tmp_path / "run")
    code, said, error = command("rate", "export", str(root))
    assert (code, error) == (0, "")
    assert f"3 items in {root}/rating" in said
    key = json.loads((root / "rating_key.json").read_text())
    ratings = tmp_path / "ann.csv"
    rows = [f"{key['task']},{item},tie" for item in key["items"]]
    ratings.write_text("\n".join(["task,item,choice", *rows]))
    code, said, error = command("rate", "score", "--out", str(root), str(ratings))
    assert (code, error) == (0, "")
    assert "dpo_imcts against sft, with simulator_heldout" in said
    assert "50.0 %" in said
    assert command("rate", "score", str(root), str(ratings))[1] == said


def test_what_is_wrong_with_ratings_is_one_line(command, tmp_path):
    root = write_run(tmp_path / "run")
    for arguments, message in (
        (["export"], "--out is missing"),
        (["export", str(root), "more"], "'more'"),
        (["score", str(root)], "no ratings given"),
        (["score", str(root), "gone.csv"], "rating_key.json: no such file"),
    ):
        code, _, error = command("rate", *arguments)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
