"""Readers read the published files unchanged, and name the line of an error."""

from __future__ import annotations

import csv
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue.readers import ReadingAccount, read_esconv, read_p4g
from ixjax.dialogue.readers.account import merge_turns
from ixjax.dialogue.readers.esconv import FILES
from ixjax.io import InputError
from tests.dialogue.test_types import texts


def refused(text: str):
    return pytest.raises(InputError, match=re.escape(text))


def changed(record: dict, **changes) -> dict:
    """Return a copy with other values; None removes the field."""
    merged = {**record, **changes}
    return {name: value for name, value in merged.items() if value is not None}


# --- merging ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["policy", "user"]), texts | st.just(" ")), max_size=8))
def test_merging_alternates_and_loses_no_word(said):
    account = ReadingAccount()
    turns = merge_turns(said, account)
    assert all(a.role != b.role for a, b in itertools.pairwise(turns))
    words = [(role, word) for role, text in said for word in text.split()]
    assert [(turn.role, word) for turn in turns for word in turn.text.split()] == words
    assert len(said) == len(turns) + sum(account.turns.values())


# --- ESConv -------------------------------------------------------------------------------------


def esconv(*said: tuple[str, str], initial="5", final="2", situation="An exam.") -> dict:
    scores = {"initial_emotion_intensity": initial}
    if final is not None:
        scores["final_emotion_intensity"] = final
    return {
        "emotion_type": "anxiety",
        "problem_type": "job crisis",
        "situation": situation,
        "survey_score": {"seeker": scores, "supporter": {}},
        "dialog": [{"speaker": who, "text": text} for who, text in said],
    }


TALK = (("usr", "Hi"), ("usr", "I worry."), ("sys", "What about?"), ("usr", "My job."))


def write_lines(path, *records: dict) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_one(tmp_path, record: dict):
    write_lines(tmp_path / "train.txt", record)
    account = ReadingAccount()
    dialogues, _ = read_esconv(tmp_path, account=account)
    return dialogues, account


def test_an_esconv_record_is_a_dialogue(tmp_path):
    (dialogue,), account = read_one(tmp_path, esconv(*TALK, situation=" An\n exam. "))
    assert [(turn.role, turn.text) for turn in dialogue.turns] == [
        ("user", "Hi I worry."),
        ("policy", "What about?"),
        ("user", "My job."),
    ]
    assert dialogue.condition.attributes == {
        "emotion": "anxiety",
        "problem": "job crisis",
        "situation": "An exam.",
        "intensity": 5,
    }
    assert (dialogue.outcome.value, dialogue.outcome.engagement) == (2, 0.75)
    assert (account.read, account.kept) == (1, 1)


def test_the_official_splits_are_kept(tmp_path):
    for name in ("train", "valid", "test"):
        write_lines(tmp_path / f"{name}.txt", esconv(*TALK), esconv(*TALK))
    dialogues, official = read_esconv(tmp_path, account=ReadingAccount())
    assert [official[dialogue.id] for dialogue in dialogues] == [
        "train", "train", "valid", "valid", "test", "test",
    ]  # fmt: skip
    assert len({dialogue.id for dialogue in dialogues}) == 6


def test_the_single_list_replaces_the_three_splits(tmp_path):
    write_lines(tmp_path / "train.txt", esconv(*TALK))
    (tmp_path / "ESConv.json").write_text(json.dumps([esconv(*TALK), esconv(*TALK)]))
    dialogues, official = read_esconv(tmp_path, account=ReadingAccount())
    assert [dialogue.id for dialogue in dialogues] == ["esconv-esconv-1", "esconv-esconv-2"]
    assert official == {}


def test_the_failed_dialogues_have_other_keys(tmp_path):
    record = esconv(*TALK)
    names = {"usr": "speaker", "sys": "listener"}
    record["dialog"] = [{"speaker": names[who], "content": f"{text}\n"} for who, text in TALK]
    path = tmp_path / "FailedESConv.json"
    path.write_text(json.dumps([record]))
    (dialogue,), official = read_esconv(path, account=ReadingAccount())
    assert [turn.text for turn in dialogue.turns] == ["Hi I worry.", "What about?", "My job."]
    assert dialogue.turns[0].role == "user"
    assert official == {}


@pytest.mark.parametrize(
    "chatter",
    [
        "bye! Can you press quit and take the survey? I can't from this end",
        'Please use "Finish and Quit" to end the discussion.',
        "you can click on the quit/finish button",
        "I think you have to end the conversation on your end",
        "So, does this count as finishing the HIT?",
    ],
)
def test_platform_chatter_at_the_end_is_cut_and_counted(tmp_path, chatter):
    said = [*TALK, ("sys", chatter), ("usr", "Okay, done")]
    (dialogue,), account = read_one(tmp_path, esconv(*said))
    assert [turn.text for turn in dialogue.turns] == ["Hi I worry.", "What about?", "My job."]
    assert account.turns["cut off as platform chatter"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "I want to quit my job, but I cannot finish anything.",
        "Covid hit many of us hard.",
        "You are quite welcome!",
    ],
)
def test_talk_about_life_is_no_chatter(tmp_path, text):
    (dialogue,), account = read_one(tmp_path, esconv(*TALK, ("sys", text)))
    assert dialogue.turns[-1].text == text
    assert "cut off as platform chatter" not in account.turns


def test_the_words_are_looked_for_at_the_end_alone(tmp_path):
    later = [(("usr", "sys")[i % 2], f"and {i}") for i in range(8)]
    said = [("usr", "I do mturk all day"), ("sys", "I see."), *later]
    (dialogue,), _ = read_one(tmp_path, esconv(*said))
    assert len(dialogue.turns) == 10


def test_what_the_supporter_says_before_the_seeker_is_cut_off(tmp_path):
    (dialogue,), account = read_one(tmp_path, esconv(("sys", "Hello?"), *TALK))
    assert dialogue.turns[0].text == "Hi I worry."
    assert account.turns["cut off before the seeker's first"] == 1


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (esconv(("usr", "Hi"), ("usr", "Anyone?")), "one side alone speaks"),
        (esconv(), "one side alone speaks"),
        (esconv(("sys", "Hello?"), ("usr", "Hi")), "one side alone speaks"),
        (esconv(*TALK, initial=""), "no initial intensity"),
    ],
)
def test_what_is_dropped_is_counted_with_its_reason(tmp_path, record, why):
    dialogues, account = read_one(tmp_path, record)
    assert dialogues == []
    assert (account.read, account.kept, dict(account.dropped)) == (1, 0, {why: 1})
    assert (f"dialogues dropped: {why}", 1) in account.rows()


def test_a_missing_final_score_leaves_the_outcome_open(tmp_path):
    (dialogue,), account = read_one(tmp_path, esconv(*TALK, final=None))
    assert dialogue.outcome is None
    assert dict(account.outcomes) == {"no final intensity": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed(esconv(*TALK), survey_score=None), "lacks the field 'survey_score'"),
        (changed(esconv(*TALK), survey_score={}), "lacks the field 'seeker'"),
        (changed(esconv(*TALK), dialog=None), "lacks the field 'dialog'"),
        (changed(esconv(*TALK), situation=None), "lacks the field 'situation'"),
        (esconv(*TALK) | {"situation": None}, "situation is null;"),
        (changed(esconv(*TALK), emotion_type=3), "emotion_type is int;"),
        (changed(esconv(*TALK), dialog={}), "dialog is dict;"),
        (changed(esconv(*TALK), dialog=["hi"]), "dialog[0] is str;"),
        (changed(esconv(*TALK), situation="a\0"), "situation holds a NUL character at 1"),
        (esconv(("bot", "Hi")), "dialog[0].speaker is 'bot';"),
        (changed(esconv(), dialog=[{"speaker": "usr"}]), "dialog[0] lacks a text"),
        (esconv(*TALK, ("usr", "a\0")), "dialog[4] holds a NUL character at 1"),
        (esconv(*TALK, ("usr", "\ud83d")), "dialog[4] holds a lone surrogate (U+D83D) at 0"),
        (esconv(*TALK, initial="6"), "initial_emotion_intensity is '6';"),
        (esconv(*TALK, initial="34"), "initial_emotion_intensity is '34';"),
        (esconv(*TALK, final=0), "final_emotion_intensity is 0;"),
    ],
)
def test_a_bad_esconv_record_is_named_with_its_line_and_field(tmp_path, record, message):
    write_lines(tmp_path / "train.txt", esconv(*TALK), record)
    with refused(f"{tmp_path / 'train.txt'}:2: {message}"):
        read_esconv(tmp_path, account=ReadingAccount())


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "valid.txt").write_text(json.dumps(esconv(*TALK)) + "\n{\n")
    with refused("valid.txt:2: not JSON (column 2: "):
        read_esconv(tmp_path, account=ReadingAccount())


def test_a_folder_without_a_known_file_says_what_it_looked_for(tmp_path):
    expected = f"; expected one of {', '.join(FILES)}"
    with refused(f"{tmp_path}: found nothing{expected}"):
        read_esconv(tmp_path, account=ReadingAccount())
    (tmp_path / "full_info.csv").touch()
    with refused(f"{tmp_path}: found full_info.csv{expected}"):
        read_esconv(tmp_path, account=ReadingAccount())


def test_a_json_file_that_is_no_list_is_refused(tmp_path):
    (tmp_path / "FailedESConv.json").write_text("{}")
    with refused("FailedESConv.json: found dict;"):
        read_esconv(tmp_path, account=ReadingAccount())


# --- Persuasion for Good ------------------------------------------------------------------------


def write_p4g(folder, *, said=None, people=None) -> None:
    default = [("Hello, do you donate?", "0"), ("Maybe.", "1"), ('I see, "maybe".', "0")]
    rows = default if said is None else said
    with (folder / "full_dialog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "Unit", "Turn", "B4", "B2"])
        writer.writerows([i, text, i // 2, who, "x1"] for i, (text, who) in enumerate(rows))
    if people is None:
        people = [person("0", "u1", "0.0"), person("1", "u2", "0.5")]
    with (folder / "full_info.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(people[0]))
        writer.writeheader()
        writer.writerows(people)


def person(role: str, name: str, dollars: str, **scores: str) -> dict[str, str]:
    known = {"age.x": "34.0", "sex.x": "Female", "open.x": "4.2", "income.x": ""}
    return {"B2": "x1", "B3": name, "B4": role, "B6": dollars, **known, **scores}


def test_a_p4g_pair_of_files_is_a_dialogue(tmp_path):
    write_p4g(tmp_path)
    account = ReadingAccount()
    (dialogue,), official = read_p4g(tmp_path, account=account)
    assert [(turn.role, turn.text) for turn in dialogue.turns] == [
        ("policy", "Hello, do you donate?"),
        ("user", "Maybe."),
        ("policy", 'I see, "maybe".'),
    ]
    assert dialogue.condition.attributes == {"age": 34, "sex": "Female", "openness": 4.2}
    assert (dialogue.outcome.value, dialogue.outcome.engagement) == (0.5, 0.25)
    assert set(dialogue.groups) == {"participant:u1", "participant:u2"}
    assert official == {}
    assert (account.read, account.kept) == (1, 1)


def test_an_age_that_is_a_typing_error_is_left_out(tmp_path):
    write_p4g(tmp_path, people=[person("1", "u2", "0", **{"age.x": "3.0"})])
    (dialogue,), _ = read_p4g(tmp_path, account=ReadingAccount())
    assert "age" not in dialogue.condition.attributes


@pytest.mark.parametrize(
    ("dollars", "why"),
    [("", "no donation recorded"), ("2.01", "donation above 2 dollars"),
     ("700", "donation above 2 dollars")],
)  # fmt: skip
def test_a_donation_that_says_nothing_leaves_the_outcome_open(tmp_path, dollars, why):
    write_p4g(tmp_path, people=[person("1", "u2", dollars)])
    account = ReadingAccount()
    (dialogue,), _ = read_p4g(tmp_path, account=account)
    assert dialogue.outcome is None
    assert dict(account.outcomes) == {why: 1}


@pytest.mark.parametrize(
    ("said", "people", "why"),
    [
        ([("Hello?", "0")], None, "one side alone speaks"),
        ([("Hello?", "1"), ("Hi", "0")], None, "one side alone speaks"),
        (None, [person("0", "u1", "0")], "no persuadee in full_info.csv"),
    ],
)
def test_what_p4g_drops_is_counted_with_its_reason(tmp_path, said, people, why):
    write_p4g(tmp_path, said=said, people=people)
    account = ReadingAccount()
    assert read_p4g(tmp_path, account=account)[0] == []
    assert (account.read, account.kept, dict(account.dropped)) == (1, 0, {why: 1})


@pytest.mark.parametrize(
    ("said", "people", "message"),
    [
        ([("Hi", "0"), ("a\0", "1")], None, "full_dialog.csv:3: Unit holds a NUL"),
        ([("Hi", "2")], None, "full_dialog.csv:2: B4 is '2'; expected 0 or 1"),
        (None, [person("1", "u2", "much")], "full_info.csv: dialogue x1: B6 is 'much'; expected a"),
        (None, [person("1", "u2", "-1")], "full_info.csv: dialogue x1: B6 is '-1'; expected"),
        (None, [person("1", "u2", "nan")], "full_info.csv: dialogue x1: B6 is 'nan'; expected"),
        (None, [person("1", "u2", "1", **{"age.x": "old"})],
         "full_info.csv: dialogue x1: age.x is 'old'; expected a number"),
        (None, [person("1", "u2", "1", **{"open.x": "very"})],
         "full_info.csv: dialogue x1: open.x is 'very'; expected a number"),
        (None, [{"B2": "x1", "B4": "1", "B6": "0"}], "full_info.csv:1: lacks the column 'B3'"),
    ],
)  # fmt: skip
def test_bad_p4g_input_is_named_with_its_place(tmp_path, said, people, message):
    write_p4g(tmp_path, said=said, people=people)
    with refused(message):
        read_p4g(tmp_path, account=ReadingAccount())


def test_a_row_with_too_few_columns_is_named(tmp_path):
    write_p4g(tmp_path)
    with (tmp_path / "full_dialog.csv").open("a") as file:
        file.write("3,Bye\n")
    with refused("full_dialog.csv:5: found 2 columns; expected 5"):
        read_p4g(tmp_path, account=ReadingAccount())


def test_line_separators_inside_a_text_end_no_row(tmp_path):
    write_p4g(tmp_path, said=[("Hello\u2028you", "0"), ("two\nlines", "1"), ("one\x0bmore", "0")])
    (dialogue,), _ = read_p4g(tmp_path, account=ReadingAccount())
    assert [turn.text for turn in dialogue.turns] == ["Hello you", "two lines", "one more"]


@pytest.mark.parametrize("name", ["full_dialog.csv", "full_info.csv"])
def test_a_missing_p4g_file_is_named(tmp_path, name):
    write_p4g(tmp_path)
    (tmp_path / name).unlink()
    with refused(f"{tmp_path / name}: no such file"):
        read_p4g(tmp_path, account=ReadingAccount())
