"""Preference files of other tools are read unchanged; errors name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue.preferences import (
    ChatPrompt,
    Preference,
    PreferenceAccount,
    PreferencesConfig,
    sound_preferences,
)
from ixjax.dialogue.readers.preferences import preference_format, read_preferences
from ixjax.dialogue.rendering import SpeakerTurn
from ixjax.io import InputError


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, YES, NO = message("user", "Tea?"), message("assistant", "Yes"), message("assistant", "No")
TRL = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
ULTRA = {
    "prompt": "Tea?", "prompt_id": "f00", "chosen": [USER, YES], "rejected": [USER, NO],
    "messages": [USER, YES], "score_chosen": 8.5, "score_rejected": 6,
}  # fmt: skip
ALPACA = {"instruction": "Tea?", "input": "", "chosen": "Yes", "rejected": "No"}
TEA = ChatPrompt(None, (SpeakerTurn(False, "Tea?"),))


def written(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, account: PreferenceAccount | None = None) -> list[Preference]:
    account = PreferenceAccount() if account is None else account
    return list(read_preferences(path, preference_format(path), account=account))


@pytest.mark.parametrize(
    ("row", "name", "prompt", "margin"),
    [
        (TRL, "trl", TEA, None),
        ({"prompt": "Tea? ", "chosen": "Yes", "rejected": "No"}, "trl", "Tea? ", None),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, "trl", TEA, None),
        (ULTRA, "ultrafeedback", TEA, 2.5),
        (ALPACA, "alpaca", TEA, None),
        ({"instruction": "Tea?", "output": ["Yes", "No"]}, "alpaca", TEA, None),
        (
            ALPACA | {"input": "Now.", "system": "Be kind.", "history": [["Hi", "Hello"]]},
            "alpaca",
            ChatPrompt(
                "Be kind.",
                (
                    SpeakerTurn(False, "Hi"),
                    SpeakerTurn(True, "Hello"),
                    SpeakerTurn(False, "Tea?\nNow."),
                ),
            ),
            None,
        ),
    ],
)
def test_every_form_is_known_by_its_first_row_and_read(row, name, prompt, margin, tmp_path):
    path = written(tmp_path, row)
    assert preference_format(path) == name
    assert read(path) == [Preference(f"{path}:1", prompt, "Yes", "No", margin)]


def test_a_json_list_is_read_like_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ALPACA, ALPACA | {"chosen": "Sure"}], indent=2))
    found = read(path)
    assert [p.chosen for p in found] == ["Yes", "Sure"]
    assert [p.where for p in found] == [f"{path}: row 1", f"{path}: row 2"]


def test_pairs_of_a_run_are_known_by_their_first_line(tmp_path):
    assert preference_format(written(tmp_path, {"schema": "ixjax.pairs", "version": 1})) == "ixjax"


@given(shared=st.integers(0, 4), counts=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_the_prompt_is_what_both_conversations_begin_with(shared, counts, tmp_path_factory):
    roles = ["user", "assistant"] * 5
    begin = [message(role, f"same {i}") for i, role in enumerate(roles[: 2 * shared + 1])]
    chosen, rejected = (
        begin + [message(role, f"{side} {i}") for i, role in enumerate(roles[1 : count + 1])]
        for side, count in zip("ab", counts, strict=True)
    )
    account = PreferenceAccount()
    path = written(tmp_path_factory.mktemp("f"), {"chosen": chosen, "rejected": rejected})
    found = read(path, account)
    if counts == (1, 1):
        turns = tuple(SpeakerTurn(m["role"] == "assistant", m["content"]) for m in begin)
        assert found == [Preference(f"{path}:1", ChatPrompt(None, turns), "a 0", "b 0")]
    else:  # a user's message after a response is no response
        assert not found
        assert account.dropped == {"several_messages": [f"{path}:1"]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "a"}, r":2: lacks the field 'chosen'"),
        (TRL | {"rejected": None}, r":2: rejected is null;"),
        (TRL | {"chosen": "Yes"}, r":2: found prompt list, chosen str, rejected list;"),
        ({"chosen": "a b", "rejected": "a c"}, r":2: found prompt null, chosen str"),
        (TRL | {"prompt": [{"role": "user"}]}, r":2: prompt\[0\] is dict"),
        (TRL | {"prompt": ["Tea?"]}, r":2: prompt\[0\] is str 'Tea\?';"),
        (TRL | {"chosen": [message("bot", "a")]}, r":2: chosen\[0\].role is 'bot';"),
        (TRL | {"chosen": [USER]}, r":2: the last message of chosen is the user's;"),
        (TRL | {"prompt": [USER, message("system", "a")]}, r":2: found a late system message;"),
        (TRL | {"prompt": [message("user", "a\0")]}, r":2: prompt\[0\].content holds a NUL"),
        (TRL | {"prompt": [message("user", [])]}, r":2: prompt\[0\].content is list '\[\]';"),
    ],
)
def test_a_row_that_is_not_of_its_form_is_refused_by_line_and_field(row, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        read(written(tmp_path, TRL, row))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ULTRA | {"score_chosen": "8"}, "score_chosen is str '8';"),
        (ULTRA | {"score_chosen": float("nan")}, "score_chosen is float 'nan';"),
        (ULTRA | {"rejected": "No"}, "rejected is str 'No';"),
        (ALPACA | {"instruction": 3}, "instruction is int '3';"),
        (ALPACA | {"history": [["a"]]}, r"history\[0\] is \['a'\];"),
        ({"instruction": "a", "output": "b"}, "output is str 'b';"),
        ({"instruction": "a"}, "lacks the field 'output'"),
        ({"question": "a", "answer": "b"}, "found the fields question, answer;"),
    ],
)
def test_a_first_row_of_no_form_or_a_bad_one_is_refused(row, problem, tmp_path):
    with pytest.raises(InputError, match=f":1: {problem}"):
        read(written(tmp_path, row))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", "", r"a\.jsonl: found no row;"),
        ("a.json", "[]", r"a\.json: found no row;"),
        ("a.json", "[1]", r"a\.json: row 1: found int;"),
        ("a.jsonl", "{", r"a\.jsonl:1: not JSON"),
        ("a.parquet", "PAR1", r"a\.parquet: found a parquet file;"),
    ],
)
def test_a_file_without_rows_is_refused(name, content, problem, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=problem):
        preference_format(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        preference_format(tmp_path / "none.jsonl")


def test_what_is_no_preference_is_left_out_once_and_counted(tmp_path):
    rows = [
        TRL,
        TRL | {"chosen": [message("assistant", " No ")]},
        TRL,
        TRL | {"rejected": [message("assistant", " ")]},
        TRL | {"prompt": [message("user", "")]},
        TRL | {"prompt": []},
        TRL | {"prompt": [message("system", "Be kind.")]},
        TRL | {"chosen": [YES, USER, YES]},
        TRL | {"rejected": [YES], "chosen": [NO]},
    ]
    account = PreferenceAccount()
    path = written(tmp_path, *rows)
    read_ = read_preferences(path, "trl", account=account)
    kept = list(sound_preferences(read_, account))
    assert [p.where for p in kept] == [f"{path}:1", f"{path}:9"]
    assert account.facts() == {
        "read": 9,
        "kept": 2,
        "dropped": {
            "several_messages": 1, "empty_prompt": 3, "empty_response": 1, "equal_text": 1,
            "duplicate": 1,
        },
        "dropped_at": {
            "several_messages": [f"{path}:8"],
            "empty_prompt": [f"{path}:{line}" for line in (5, 6, 7)],
            "empty_response": [f"{path}:4"],
            "equal_text": [f"{path}:2"],
            "duplicate": [f"{path}:3"],
        },
        "shortened_prompts": 0,
        "dropped_turns": 0,
        "cut_tokens": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("least", "kept"), [(0.0, [0.0, 2.5]), (1.0, [2.5])])
def test_a_lower_score_never_makes_the_chosen_one(least, kept, tmp_path):
    scores = (6, 8.5, 5)
    rows = [ULTRA | {"score_chosen": s, "prompt": f"{s}"} for s in scores]
    rows = [r | {"chosen": [message("user", r["prompt"]), YES],
                 "rejected": [message("user", r["prompt"]), NO]} for r in rows]  # fmt: skip
    account = PreferenceAccount()
    found = sound_preferences(read(written(tmp_path, *rows)), account, min_margin=least)
    assert [p.margin for p in found] == kept
    assert len(account.dropped["small_margin"]) == 3 - len(kept)


def test_an_account_shows_the_first_lines_alone():
    account = PreferenceAccount(read=30)
    for line in range(20):
        account.drop("duplicate", f"f:{line}")
    facts = account.facts()
    assert (facts["kept"], facts["dropped"]) == (10, {"duplicate": 20})
    assert facts["dropped_at"]["duplicate"] == [f"f:{line}" for line in range(10)]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"format": "sharegpt"}, r"preferences\.format is 'sharegpt'; expected one of auto, ixjax"),
        ({"alone": True}, r"preferences\.alone is True; .* --preferences\.path FILE"),
        ({"min_margin": 0.1}, r"preferences\.min_margin is 0\.1; .* --preferences\.path FILE"),
        ({"max_prompt": -1}, r"preferences\.max_prompt is -1;"),
        ({"min_margin": float("nan")}, r"preferences\.min_margin is nan;"),
    ],
)
def test_settings_that_name_nothing_are_refused(settings, problem):
    with pytest.raises(InputError, match=problem):
        PreferencesConfig(**settings)
