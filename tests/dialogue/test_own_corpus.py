"""A user's corpus is read as documented, and refused by line and field."""

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
    """Return a copy with other values; None removes the field."""
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
    """Write and read a corpus of lines, which are records or raw text."""
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
    with refused("own.jsonl:1: found ixjax.dialogues version 2;"):
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
    """The search's root assumes which side opens."""
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
        ('{"id": ' + "1" * 5000 + "}", "(Exceeds the limit"),
        ('{"id": ' + "[" * 200_000 + "]" * 200_000 + "}", "JSON that can't be read ("),
        (changed(LINE, condition=changed(LINE["condition"], emotion=None)),
         "condition lacks 'emotion', which the scenario esc"),
        (changed(LINE, condition={**LINE["condition"], "intensity": 9}),
         "condition does not fit the scenario esc: intensity is 9;"),
        (changed(LINE, condition={**LINE["condition"], "intensity": "much"}),
         "condition does not fit the scenario esc: intensity is 'much';"),
        (changed(LINE, condition={"a\ud800": 1}),
         "condition: the name 'a\\ud800' holds a lone surrogate (U+D800) at 1"),
        (changed(LINE, groups=["\ud800"]), "groups[0] holds a lone surrogate (U+D800) at 0"),
        (changed(LINE, turns=LINE["turns"][::-1]), "turns has only the user after the policy's"),
        (changed(LINE, outcome={"value": 10**400}), "outcome is {'value': 1000"),
        (changed(LINE, outcome={"value": 2, "engagement": 10**400}), "outcome.engagement is 1000"),
        ("[1, 2]", "found list"),
        (changed(LINE, id=None), "lacks the field 'id'"),
        (changed(LINE, condition=None), "lacks the field 'condition'"),
        (changed(LINE, turns=None), "lacks the field 'turns'"),
        ({**LINE, "id": None}, "id is null;"),
        (changed(LINE, id=3), "id is 3;"),
        (changed(LINE, id=""), "id is empty;"),
        (changed(LINE, id="\udfff"), "id holds a lone surrogate (U+DFFF) at 0;"),
        (changed(LINE, condition=[]), "condition is list;"),
        (changed(LINE, condition={"a": True}), "condition.a is True;"),
        (changed(LINE, condition={"a": "x\0"}), "condition.a holds a NUL character at 1"),
        (changed(LINE, condition={"a": float("nan")}), "condition.a is nan;"),
        (changed(LINE, turns="hi"), "turns is str;"),
        (changed(LINE, turns=[]), "turns is empty;"),
        (changed(LINE, turns=LINE["turns"][:1]), "turns has only the user;"),
        (changed(LINE, turns=["hi"]), "turns[0] is 'hi';"),
        (changed(LINE, turns=[{"role": "user"}]), "turns[0] is {'role': 'user'};"),
        (changed(LINE, turns=[{"role": "bot", "text": "x"}]), "turns[0].role is 'bot';"),
        (changed(LINE, turns=[*LINE["turns"], {"role": "user", "text": " "}]),
         "turns[2].text is empty"),
        (changed(LINE, turns=[{"role": "user", "text": "a\0b"}]),
         "turns[0].text holds a NUL character at 1"),
        (changed(LINE, turns=[{"role": "user", "text": "ab\ud83d"}]),
         "turns[0].text holds a lone surrogate (U+D83D) at 2"),
        (changed(LINE, turns=[{"role": "user", "text": 7}]), "turns[0].text is 7;"),
        (changed(LINE, outcome=3), "outcome is 3;"),
        (changed(LINE, outcome={"engagement": 1}), "outcome is {'engagement': 1};"),
        (changed(LINE, outcome={"value": "2"}), "outcome is {'value': '2'};"),
        (changed(LINE, outcome={"value": float("inf")}), "outcome is {'value': inf};"),
        (changed(LINE, outcome={"value": 6}), "outcome.value is 6;"),
        (changed(LINE, outcome={"value": 2, "engagement": 1.5}), "outcome.engagement is 1.5;"),
        (changed(LINE, outcome={"value": 2, "engagement": "all"}), "outcome.engagement is 'all';"),
        (changed(LINE, groups="p1"), "groups is 'p1';"),
        (LINE, "id is 'd1', as on line 1;"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_its_field(tmp_path, line, message):
    good = LINE if line is LINE else {**LINE, "id": "good"}
    with refused(f"{tmp_path / 'own.jsonl'}:3: ") as caught:
        read_lines(tmp_path, good, "", line)
    assert message in str(caught.value)


def test_a_corpus_without_dialogues_is_refused(tmp_path):
    with refused("own.jsonl: found no dialogue"):
        read_lines(tmp_path, {"schema": "ixjax.dialogues", "version": 1})


def test_a_file_of_pairs_is_refused_as_such(tmp_path):
    with refused("own.jsonl:1: found a file of ixjax.pairs; expected dialogues"):
        read_lines(tmp_path, {"schema": "ixjax.pairs", "version": 1}, {"prompt": []})
