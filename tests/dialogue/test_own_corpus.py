"""A person's own corpus is read as it is documented, and refused by line and field."""

from __future__ import annotations

import json
import re

import pytest

from ixjax.dialogue.readers import ReadingAccount, read_user_jsonl
from ixjax.dialogue.scenarios import get_scenario
from ixjax.io import InputError


def refused(text: str):
    return pytest.raises(InputError, match=re.escape(text))


def changed(record: dict, **changes) -> dict:
    """A copy with other values; None takes the field out."""
    merged = {**record, **changes}
    return {name: value for name, value in merged.items() if value is not None}


LINE = {
    "id": "d1",
    "condition": {
        "emotion": "anger", "problem": "a lost parcel", "situation": "It was mine.", "intensity": 4
    },
    "turns": [{"role": "user", "text": "Hi."}, {"role": "policy", "text": "Hello."}],
    "outcome": {"value": 2, "engagement": 0.75},
}  # fmt: skip


def read_lines(tmp_path, *lines: dict | str, scenario: str = "esc"):
    """Reads and the path, lines being records or raw text."""
    path = tmp_path / "own.jsonl"
    raw = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(line + "\n" for line in raw))
    account = ReadingAccount()
    return read_user_jsonl(path, account=account, scenario=get_scenario(scenario)), account


def test_a_line_is_a_dialogue(tmp_path):
    (dialogue,), account = read_lines(tmp_path, changed(LINE, groups=["p1"]))
    assert dialogue.id == dialogue.condition.id == "d1"
    assert dialogue.condition.attributes == LINE["condition"]
    assert [(turn.role, turn.text) for turn in dialogue.turns] == [
        ("user", "Hi."),
        ("policy", "Hello."),
    ]
    assert (dialogue.outcome.value, dialogue.outcome.engagement) == (2, 0.75)
    assert dialogue.groups == ("p1",)
    assert (account.read, account.kept) == (1, 1)


def test_the_schema_line_is_optional(tmp_path):
    head = {"schema": "ixjax.dialogues", "version": 1}
    assert read_lines(tmp_path, head, LINE)[0] == read_lines(tmp_path, LINE)[0]


def test_a_version_of_tomorrow_is_refused(tmp_path):
    with refused("own.jsonl:1: expected schema ixjax.dialogues version 1, found version 2"):
        read_lines(tmp_path, {"schema": "ixjax.dialogues", "version": 2}, LINE)


def test_an_engagement_left_out_is_the_scenarios(tmp_path):
    (dialogue,), _ = read_lines(tmp_path, changed(LINE, outcome={"value": 2}))
    assert dialogue.outcome.engagement == pytest.approx((4 - 2) / (4 - 1))


def test_an_unknown_outcome_is_counted(tmp_path):
    (first, second), account = read_lines(tmp_path, LINE, {**LINE, "id": "d2", "outcome": None})
    assert first.outcome is not None
    assert second.outcome is None
    assert dict(account.outcomes) == {"null": 1}


def test_turns_of_one_side_in_a_row_are_merged_and_counted(tmp_path):
    turns = [*LINE["turns"], {"role": "policy", "text": "What is it?"}]
    (dialogue,), account = read_lines(tmp_path, changed(LINE, turns=turns))
    assert dialogue.turns[-1].text == "Hello. What is it?"
    assert account.turns["merged into the one before"] == 1


@pytest.mark.parametrize(("scenario", "opener"), [("esc", "user"), ("p4g", "policy")])
def test_what_is_said_before_the_opening_side_is_cut_off_and_counted(tmp_path, scenario, opener):
    """The search's root is built on who opens: a dialogue that starts otherwise would break it."""
    sides = ("user", "policy") if opener == "policy" else ("policy", "user")
    turns = [{"role": sides[i % 2], "text": f"turn {i}"} for i in range(3)]
    (dialogue,), account = read_lines(tmp_path, changed(LINE, turns=turns), scenario=scenario)
    assert [(turn.role, turn.text) for turn in dialogue.turns] == [
        (sides[1], "turn 1"),
        (sides[0], "turn 2"),
    ]
    assert account.turns[f"cut off before the {opener}'s first"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON (column 2: "),
        ('{"id": ' + "1" * 5000 + "}", "JSON that can't be read (Exceeds the limit"),
        ('{"id": ' + "[" * 200_000 + "]" * 200_000 + "}", "JSON that can't be read ("),
        (changed(LINE, condition=changed(LINE["condition"], emotion=None)),
         "condition lacks 'emotion', which the scenario esc needs"),
        (changed(LINE, condition={**LINE["condition"], "intensity": 9}),
         "condition does not fit the scenario esc: intensity is 9; expected a number from 1 to 5"),
        (changed(LINE, condition={**LINE["condition"], "intensity": "much"}),
         "condition does not fit the scenario esc: intensity is 'much'; expected a number"),
        (changed(LINE, condition={"a\ud800": 1}),
         "condition: the name 'a\\ud800' holds a lone surrogate (U+D800) at 1"),
        (changed(LINE, groups=["\ud800"]), "expected a list of strings"),
        (changed(LINE, turns=LINE["turns"][::-1]),
         "turns has the user alone after the policy's opening, which is cut off: in the scenario "
         "esc the user speaks first"),
        (changed(LINE, outcome={"value": 10**400}), "expected null or an object with a number"),
        (changed(LINE, outcome={"value": 2, "engagement": 10**400}), "expected 0 to 1"),
        ("[1, 2]", "expected a JSON object, found list"),
        (changed(LINE, id=None), "lacks the field 'id'"),
        (changed(LINE, condition=None), "lacks the field 'condition'"),
        (changed(LINE, turns=None), "lacks the field 'turns'"),
        (changed(LINE, id=3), "id is 3; expected a non-empty string"),
        (changed(LINE, id=""), "id is ''; expected a non-empty string"),
        (changed(LINE, condition=[]), "condition is list; expected an object of texts and numbers"),
        (changed(LINE, condition={"a": True}), "condition.a is bool; expected a string"),
        (changed(LINE, condition={"a": "x\0"}), "condition.a holds a NUL character at 1"),
        (changed(LINE, condition={"a": float("nan")}), "condition.a is nan; expected"),
        (changed(LINE, turns="hi"), "turns is str; expected a list"),
        (changed(LINE, turns=[]), "turns is empty; a dialogue needs turns of both sides"),
        (changed(LINE, turns=LINE["turns"][:1]), "turns has the user alone; a dialogue takes two"),
        (changed(LINE, turns=["hi"]), "turns[0] must be an object with `role` and `text`"),
        (changed(LINE, turns=[{"role": "user"}]), "turns[0] must be an object with `role` and"),
        (changed(LINE, turns=[{"role": "bot", "text": "x"}]),
         "turns[0].role is 'bot'; expected 'user' or 'policy'"),
        (changed(LINE, turns=[*LINE["turns"], {"role": "user", "text": " "}]),
         "turns[2].text is empty"),
        (changed(LINE, turns=[{"role": "user", "text": "a\0b"}]),
         "turns[0].text holds a NUL character at 1"),
        (changed(LINE, turns=[{"role": "user", "text": "ab\ud83d"}]),
         "turns[0].text holds a lone surrogate (U+D83D) at 2"),
        (changed(LINE, turns=[{"role": "user", "text": 7}]),
         "turns[0].text is int; expected a string"),
        (changed(LINE, outcome=3), "outcome is 3; expected null or an object with a number"),
        (changed(LINE, outcome={"engagement": 1}), "expected null or an object with a number"),
        (changed(LINE, outcome={"value": "2"}), "expected null or an object with a number"),
        (changed(LINE, outcome={"value": float("inf")}), "expected null or an object with a"),
        (changed(LINE, outcome={"value": 6}), "outcome.value is 6, out of the scenario's range"),
        (changed(LINE, outcome={"value": 2, "engagement": 1.5}),
         "outcome.engagement is 1.5; expected 0 to 1"),
        (changed(LINE, outcome={"value": 2, "engagement": "all"}),
         "outcome.engagement is 'all'; expected 0 to 1"),
        (changed(LINE, groups="p1"), "groups is 'p1'; expected a list of strings"),
        (LINE, "id 'd1' stands on line 1 already"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_its_field(tmp_path, line, message):
    good = LINE if line is LINE else {**LINE, "id": "good"}
    with refused(f"{tmp_path / 'own.jsonl'}:3: ") as caught:
        read_lines(tmp_path, good, "", line)
    assert message in str(caught.value)


def test_a_corpus_without_dialogues_is_refused(tmp_path):
    with refused("own.jsonl: holds no dialogue"):
        read_lines(tmp_path, {"schema": "ixjax.dialogues", "version": 1})
