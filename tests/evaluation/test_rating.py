"""Items are blind, balanced and the same again; ratings come back as they were given."""

from __future__ import annotations

import collections
import csv
import io
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue.types import Dialogue, Turn, UserCondition
from ixjax.evaluation.play import Played
from ixjax.evaluation.rating import (
    COLUMNS,
    RatingConfig,
    draw_items,
    read_ratings,
    task_csv,
    task_of,
)
from ixjax.io import InputError


def played(method: str, count: int, *, equal: int = 0, say=str) -> list[Played]:
    """Dialogues with `count` users; the first `equal` are the same whatever the method."""
    found = []
    for i in range(count):
        condition = UserCondition(f"user-{i}", {"need": say("advice"), "distress": 3})
        answer = "the same" if i < equal else f"answer of {method[::-1]} to {i}"
        turns = (Turn("user", say("hello")), Turn("policy", say(answer)))
        for sample in (0, 1):
            dialogue = Dialogue(f"user-{i}", condition, turns)
            found.append(Played(f"user-{i}", sample, dialogue, 0.5, 2.0, None, True, (3,)))
    return found


CONFIG = RatingConfig(methods=("sft", "dpo"), count=40)


def draw(config: RatingConfig = CONFIG, **more):
    return draw_items(*(played(method, 100, **more) for method in config.methods), config)


def test_an_item_holds_both_methods_with_one_user():
    items, equal = draw()
    assert (len(items), equal) == (40, 0)
    for item in items:
        assert set(item.methods) == {"sft", "dpo"}
        one, other = item.dialogues
        assert one.condition == other.condition
        for method, dialogue in zip(item.methods, item.dialogues, strict=True):
            assert f"answer of {method[::-1]} " in dialogue.turns[1].text
    assert len({item.dialogues[0].id for item in items}) == 40


def test_either_method_comes_first_in_half_of_the_items():
    items, _ = draw()
    assert collections.Counter(item.methods[0] for item in items) == {"sft": 20, "dpo": 20}


def test_the_order_is_the_seeds():
    assert draw() == draw()
    other = RatingConfig(methods=("sft", "dpo"), count=40, order_seed=1)
    assert [i.methods for i in draw(other)[0]] != [i.methods for i in draw()[0]]


def test_equal_dialogues_are_left_out_and_counted():
    items, equal = draw(equal=70)
    assert (len(items), equal) == (30, 70)


def test_raters_are_not_told_the_methods():
    items, _ = draw()
    task = task_of(items, "Which?")
    shown = json.dumps(task) + task_csv(task)
    assert not re.search("sft|dpo", shown)
    assert {item["id"] for item in task["items"]} == {item.id for item in items}


def test_the_table_holds_the_dialogues():
    task = task_of(draw()[0], "Which?")
    rows = list(csv.DictReader(io.StringIO(task_csv(task))))
    assert tuple(rows[0]) == COLUMNS
    for row, item in zip(rows, task["items"], strict=True):
        for side in "AB":
            said = [line.split(": ", 1) for line in row[side].split("\n")]
            assert said == item[side]


FORMULAS = [
    first + start
    for first in ("", "\t", "a;", "a; ", "a\n", "a\r", "a\r\n", "a\t")
    for start in ("=", "+", "-", "@", "\uff1d")
]


@pytest.mark.parametrize("start", FORMULAS)
def test_no_cell_of_the_table_is_a_formula_wherever_a_spreadsheet_splits_it(start):
    items, _ = draw(say=lambda text: f'{start}HYPERLINK("http://x";{text})')
    table = task_csv(task_of(items, "Which?"))
    assert "\r" not in table
    cells = [cell for row in csv.reader(io.StringIO(table)) for cell in row]
    cells += re.split("[;\t\n]", table)  # by who takes no notice of quotes
    assert not [cell for cell in cells if re.match('[\\s"]*[=+\\-@\uff1d]', cell)]
    assert len(list(csv.reader(io.StringIO(table)))) == 1 + len(items)


def test_a_row_of_nothing_in_a_table_is_passed_over(tmp_path):
    path = tmp_path / "ann.csv"
    path.write_text(f"task,item,choice\n,,\n{TASK['task']},{IDS[0]},A\n ,,,\n")
    assert dict(read(path).choices) == {IDS[0]: "A"}


def test_a_task_is_no_number_to_a_spreadsheet():
    assert re.fullmatch("task-[0-9a-f]{16}", TASK["task"])


TASK = task_of(draw()[0], "Which?")
IDS = [item["id"] for item in TASK["items"]]


def read(path):
    return read_ratings(path, task=TASK["task"], items=IDS)


@given(st.dictionaries(st.sampled_from(IDS), st.sampled_from(["A", "B", "tie"]), min_size=1))
def test_ratings_in_a_table_come_back(tmp_path_factory, choices):
    path = tmp_path_factory.mktemp("ratings") / "ann.csv"
    rows = list(csv.DictReader(io.StringIO(task_csv(TASK))))
    for delimiter, end in itertools.product(",;\t", ("\n", "\r\n", "\r")):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            look = {"lineterminator": end, "quoting": csv.QUOTE_ALL}
            table = csv.DictWriter(file, COLUMNS, delimiter=delimiter, **look)
            table.writeheader()
            for row in rows:
                table.writerow(row | {"choice": choices.get(row["item"], "").lower()})
        found = read(path)
        assert (found.rater, dict(found.choices)) == ("ann", choices)


def test_a_table_is_known_by_its_content_and_its_columns_by_any_case(tmp_path):
    path = tmp_path / "ann.txt"
    path.write_text(f"Task, Item ,CHOICE\n{TASK['task']},{IDS[0]},A\n")
    assert dict(read(path).choices) == {IDS[0]: "A"}
    path.write_text(form())
    assert read(path).rater == "ben"


def form(**changes) -> str:
    """What the form saves."""
    content = {
        "schema": "ixjax.ratings", "version": 1, "task": TASK["task"], "rater": "ben",
        "choices": {IDS[0]: "A"}, "comments": {},
    }  # fmt: skip
    return json.dumps(content | changes)


def test_ratings_of_the_form_come_back(tmp_path):
    path = tmp_path / "ratings-ben.json"
    path.write_text(form())
    assert (read(path).rater, dict(read(path).choices)) == ("ben", {IDS[0]: "A"})
    path.write_text(form(rater=" "))
    assert read(path).rater == "ratings-ben"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "expected a JSON object, found list"),
        ("a.json", form(version=99), "expected schema ixjax.ratings version 1, found 'ixjax.rat"),
        ("a.json", form(schema="\x1b[2J"), r"found '\x1b[2J' version 1"),
        ("a.json", form(task="other"), "task is 'other'; expected 'task-"),
        ("a.json", form(choices={"item-999": "A"}), "item is 'item-999'; expected one of those"),
        ("a.json", form(choices={IDS[0]: "C"}), "choice is 'C'; expected one of A, B, tie"),
        ("a.json", form(choices={}), "no item is rated"),
        ("a.json", form(choices=3), "expected `rater` and `choices`"),
        ("a.json", form()[:-9], "not JSON"),
        ("a.csv", "item,choice\n", "a.csv:1: no column task; expected those exported"),
        ("a.csv", "sep=;\n", "a.csv:1: no column task, item, choice; expected those exported, fo"),
        ("a.csv", "", "a.csv:1: no column task, item, choice"),
        ("a.csv", f'task,item,choice\n{TASK["task"]},{IDS[0]},"A', "a.csv: not a whole table"),
        ("a.csv", "task,item,choice\nother,x,A\n", "row 1: task is 'other'"),
        ("a.csv", f"task,item,choice\n{TASK['task']},{IDS[0]},maybe\n", "row 1: choice is 'maybe'"),
        (
            "a.csv",
            "task,item,choice\n" + f"{TASK['task']},{IDS[0]},A\n" * 2,
            f"row 2: {IDS[0]} is rated twice",
        ),
        ("a.csv", f"task,item,choice\n{TASK['task']},{IDS[0]}\n", "no item is rated"),
    ],
)
def test_a_file_that_is_no_rating_is_named_with_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        read(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("sft", "sft")}, "methods are both 'sft'"),
        ({"count": 0}, "count is 0; expected 1 or more"),
        ({"order_seed": -1}, "order_seed is -1; expected 0 or more"),
    ],
)
def test_what_can_not_be_compared_is_refused(settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        RatingConfig(**settings)
