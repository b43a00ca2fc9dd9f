"""Ratings of a run: exported with the key apart, and scored by it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from ixjax.evaluation import RatingConfig
from ixjax.io import InputError
from ixjax.pipeline import export_rating, score_ratings
from tests.report.runs import STAGES, write_run

KEY = "rating_key.json"


@pytest.fixture
def exported(tmp_path):
    export_rating(write_run(tmp_path), RatingConfig())
    return tmp_path


def test_what_raters_get_does_not_tell_the_methods(exported):
    assert {path.name for path in (exported / "rating").iterdir()} == {"items.csv", "form.html"}
    key = json.loads((exported / "rating_key.json").read_text())
    for path in (exported / "rating").iterdir():
        # What was said names its method in these runs; nothing else may.
        text = path.read_text().replace("sft answers", "").replace("dpo_imcts answers", "")
        assert not re.search("sft|dpo|simulator", text)
        assert key["task"] in text
    assert [{item["A"], item["B"]} for item in key["items"].values()] == [{"sft", "dpo_imcts"}] * 3


def test_the_same_export_again_changes_nothing_and_another_is_refused(exported):
    before = (exported / "rating_key.json").read_bytes()
    export_rating(exported, RatingConfig())
    other = RatingConfig(order_seed=4)
    with pytest.raises(InputError, match=r"rating_key.json: .* other exported items"):
        export_rating(exported, other)
    assert (exported / "rating_key.json").read_bytes() == before
    export_rating(exported, other, overwrite=True)
    assert (exported / "rating_key.json").read_bytes() != before


def test_scores_last_as_long_as_their_key(exported):
    scores, key = exported / "rating_scores.json", json.loads((exported / KEY).read_text())
    rated = exported / "ann.csv"
    rated.write_text("task,item,choice\n" + f"{key['task']},{next(iter(key['items']))},A\n")
    assert score_ratings(exported, [rated])["task"] == key["task"]
    export_rating(exported, RatingConfig(), overwrite=True)  # the same once more
    assert scores.exists()
    export_rating(exported, RatingConfig(order_seed=4), overwrite=True)
    assert not scores.exists()


def test_a_dialogue_that_is_not_whole_is_named_with_its_line(tmp_path):
    path = write_run(tmp_path) / "evaluation" / "0123456789abcdef-sft-simulator_heldout.jsonl"
    whole = path.read_text()
    named = ('"condition": "', '"condition": 5, "id": "')
    for damage, message in (
        (("released", "other"), "'released' is missing"),
        (("[4]", "4"), "4"),
        (named, "condition is 5, not a string"),
    ):
        path.write_text(whole.replace(*damage))
        with pytest.raises(InputError, match=re.escape(f"{path}:2: ")) as refused:
            export_rating(tmp_path, RatingConfig())
        assert message in str(refused.value)


def test_a_key_of_another_version_is_refused(exported):
    path = exported / KEY
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(InputError, match=r"rating_key version 1, found 'ixjax.rating_key' version"):
        score_ratings(exported, [exported / "a.json"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key: key.pop("task"), "rating_key.json: task is missing"),
        (lambda key: key.update(methods=["sft"]), "methods is ['sft']; expected 2 texts"),
        (lambda key: key.update(user=5), "user is 5; expected a text"),
        (lambda key: key.update(equal="x"), "equal is 'x'; expected a whole number"),
        (lambda key: key.update(items=[1]), "items is [1]; expected an object"),
        (lambda key: key["items"].update({"item-001": 5}), "items: item-001: found int"),
        (lambda key: key["items"]["item-001"].pop("A"), "items: item-001: A is missing"),
        (
            lambda key: key["items"]["item-001"].update(A="sft", B="sft"),
            "items: item-001: A and B are ('sft', 'sft'); expected sft and dpo_imcts",
        ),
    ],
)
def test_a_key_that_was_edited_is_named_with_its_field(exported, change, message):
    key = json.loads((exported / KEY).read_text())
    change(key)
    (exported / KEY).write_text(json.dumps(key))
    with pytest.raises(InputError, match=re.escape(message)):
        score_ratings(exported, [exported / "a.json"])
    assert not (exported / "rating_scores.json").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for work in (
        lambda: export_rating(tmp_path, RatingConfig()),
        lambda: score_ratings(tmp_path, ["a"]),
    ):
        with pytest.raises(
            InputError, match=re.escape(f"{tmp_path}: no run directory (config.yaml")
        ):
            work()


def test_a_spreadsheet_knows_the_table_for_utf_8(exported):
    assert (exported / "rating" / "items.csv").read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    ("config", "stages", "message"),
    [
        (RatingConfig(), [], "no evaluation. Run `ixjax evaluate`"),
        (RatingConfig(user="nobody"), STAGES, "items.user is 'nobody'; expected"),
        (
            RatingConfig(methods=("sft", "dpo")),
            STAGES,
            "items.methods is 'dpo'; expected one of the run's evaluation: sft, dpo_imcts",
        ),
    ],
)
def test_what_was_not_played_is_named(tmp_path, config, stages, message):
    with pytest.raises(InputError, match=re.escape(message)):
        export_rating(write_run(tmp_path, stages=stages), config)


def test_methods_that_say_the_same_leave_nothing_to_compare(tmp_path):
    write_run(tmp_path, say=lambda text: "all the same")
    with pytest.raises(InputError, match="said the same under all 3 conditions"):
        export_rating(tmp_path, RatingConfig())


def test_without_a_key_or_without_files_nothing_is_scored(tmp_path):
    write_run(tmp_path)
    with pytest.raises(InputError, match="no ratings given"):
        score_ratings(tmp_path, [])
    with pytest.raises(
        InputError, match=re.escape("rating_key.json: no such file. Run `ixjax rate")
    ):
        score_ratings(tmp_path, [tmp_path / "a.json"])
    (tmp_path / "rating_key.json").write_text("{}")
    with pytest.raises(InputError, match=r"schema ixjax\.rating_key version 1, found None"):
        score_ratings(tmp_path, [tmp_path / "a.json"])


def test_a_table_is_scored_by_the_key(exported):
    key = json.loads((exported / "rating_key.json").read_text())["items"]
    path = exported / "ann.csv"
    lines = ["task,item,choice"]
    task = json.loads((exported / "rating_key.json").read_text())["task"]
    for item, sides in key.items():  # always for the aligned policy
        lines.append(f"{task},{item},{'A' if sides['A'] == 'dpo_imcts' else 'B'}")
    path.write_text("\n".join(lines))
    found = score_ratings(exported, [path])
    assert (found["win_rate"], found["votes"]["dpo_imcts"]) == (1.0, 3)
    assert json.loads((exported / "rating_scores.json").read_text()) == found


@pytest.mark.parametrize("seed", range(3))
def test_a_simulated_raters_bias_is_in_the_interval(tmp_path, seed):
    """From what was played to the scores, by the files that a person and a form see."""
    bias, random = 0.7, np.random.default_rng(seed)
    root = write_run(tmp_path / "run", conditions=60)
    assert export_rating(root, RatingConfig(count=60))["items"] == 60
    form = (root / "rating" / "form.html").read_text()
    task = json.loads(re.search(r'id="data-task">(.*?)</script>', form)[1])
    sides = json.loads((root / KEY).read_text())["items"]
    choices = {}
    for item in task["items"]:
        wanted = "dpo_imcts" if random.random() < bias else "sft"
        (choices[item["id"]],) = (side for side in "AB" if sides[item["id"]][side] == wanted)
        # Of what the rater reads on that side, not of the key alone:
        assert f"{wanted} answers" in item[choices[item["id"]]][1][1]
    saved = {name: task[name] for name in ("schema", "version", "task")}
    path = tmp_path / "ratings.json"
    path.write_text(json.dumps({**saved, "rater": "ann", "choices": choices}))
    found = score_ratings(root, [path])
    assert found["low"] <= bias <= found["high"]
    assert found["first_shown"]["low"] <= 0.5 <= found["first_shown"]["high"]
    assert found["high"] - found["low"] < 0.25
