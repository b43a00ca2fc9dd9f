"""ESConv (Liu et al. 2021): emotional support, with the seeker's distress before and after.

The reader takes the official JSON-lines splits (`train.txt`, `valid.txt`, `test.txt`), the official
single list (`ESConv.json`), and `FailedESConv.json`, whose keys differ: it holds the dialogues that
did not help, and without it every recorded outcome is a success.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.dialogue.readers.account import (
    ReadingAccount,
    check_characters,
    has_both_sides,
    kind,
    merge_turns,
)
from ixjax.dialogue.scenarios.esc import relief
from ixjax.dialogue.types import Dialogue, Outcome, Role, Turn, UserCondition

SPLITS = {"train.txt": "train", "valid.txt": "valid", "test.txt": "test"}
FILES = (*SPLITS, "ESConv.json", "FailedESConv.json")
ROLES: dict[str, Role] = {
    "usr": "user",
    "seeker": "user",
    "speaker": "user",
    "sys": "policy",
    "supporter": "policy",
    "listener": "policy",
}
# Words about the platform in the last turns: leaving the chat, the survey, the pay.
CHATTER = re.compile(
    r"\b(survey|mturk|this hit|quit button|(press|click|hit|select|need to|can you|please)\W+"
    r"(the |on |first |finish & )*\W*(quit|finish)|questionn?arie?|(finish|quit|end)\W+"
    r"((and|or)\W+)?(finish|quit)\b|(finish\w*|ends?) (the|this|a)( stupid)? hit\b|hit timer"
    r"|(end|ending|exit|leave|close|quit) (the|this|our) (chat|conversation|session)|minute mark"
    r"|press quit|quit (first|from your|your end)|(earn|for) the (full )?bonus"
    r"|bonus for this task)",
    re.IGNORECASE,
)
LAST_TURNS = 6  # only these are searched for chatter: in earlier turns the words mean other things


def read_esconv(path: Path, *, account: ReadingAccount) -> tuple[list[Dialogue], dict[str, str]]:
    """Read a folder that holds some of `FILES`, or one such file.

    Args:
        path: the folder or file.
        account: counts of the reading, updated.

    Returns:
        The dialogues, and the official split of each id that has one.

    Raises:
        InputError: the folder has no such file, or a record is invalid (names file, line and
            field).
    """
    files = [path] if path.is_file() else [path / name for name in FILES if (path / name).exists()]
    if not files:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise io.InputError(f"{path}: found {found}; expected one of {', '.join(FILES)}")
    if any(file.name == "ESConv.json" for file in files) and len(files) > 1:
        # The single list holds the same dialogues as the three splits.
        files = [file for file in files if file.name not in SPLITS]
    dialogues, official = [], {}
    for file in files:
        for place, record in _records(file):
            account.read += 1
            name = f"esconv-{file.stem.lower()}-{place}"
            dialogue = _dialogue(f"{file}:{place}", name, record, account)
            if dialogue is not None:
                dialogues.append(dialogue)
                account.kept += 1
                if file.name in SPLITS:
                    official[name] = SPLITS[file.name]
    return dialogues, official


def _records(file: Path) -> Sequence[tuple[int, dict[str, Any]]]:
    """Return (line, or number in the list from 1; record)."""
    if file.suffix != ".json":
        return list(io.read_json_lines(file))
    content = io.read_json(file)
    if not isinstance(content, list):
        raise io.InputError(f"{file}: found {kind(content)}; expected a JSON list")
    return list(enumerate(content, start=1))


def _dialogue(
    where: str, name: str, record: Mapping[str, Any], account: ReadingAccount
) -> Dialogue | None:
    scores = _field(where, _field(where, record, "survey_score", dict), "seeker", dict)
    said = []
    for i, entry in enumerate(_field(where, record, "dialog", list)):
        if not isinstance(entry, dict):
            raise io.InputError(f"{where}: dialog[{i}] is {kind(entry)}; expected an object")
        speaker, text = entry.get("speaker"), entry.get("text", entry.get("content"))
        if speaker not in ROLES:
            raise io.InputError(f"{where}: dialog[{i}].speaker is {speaker!r}; expected usr or sys")
        if not isinstance(text, str):
            raise io.InputError(f"{where}: dialog[{i}] lacks a text; expected `text` or `content`")
        check_characters(where, f"dialog[{i}]", text)
        said.append((ROLES[speaker], text))
    turns = _without_chatter(merge_turns(said, account), account)
    if turns and turns[0].role == "policy":
        # The seeker opens: a greeting of the supporter before that answers no turn.
        account.turns["cut off before the seeker's first"] += 1
        turns = turns[1:]
    if not has_both_sides(turns):
        account.dropped["one side alone speaks"] += 1
        return None
    situation = " ".join(str(_field(where, record, "situation", str)).split())
    initial = _intensity(where, scores, "initial_emotion_intensity")
    final = _intensity(where, scores, "final_emotion_intensity")
    if initial is None:
        account.dropped["no initial intensity"] += 1
        return None
    if final is None:
        account.outcomes["no final intensity"] += 1
    outcome = None if final is None else Outcome(float(final), relief(initial, final))
    condition = UserCondition(
        name,
        {
            "emotion": _field(where, record, "emotion_type", str),
            "problem": _field(where, record, "problem_type", str),
            "situation": situation,
            "intensity": initial,
        },
    )
    return Dialogue(name, condition, turns, outcome, groups=(f"situation:{situation.lower()}",))


def _field(where: str, record: Mapping[str, Any], name: str, expected: type) -> Any:
    if not isinstance(record, Mapping) or name not in record:
        raise io.InputError(f"{where}: lacks the field {name!r}")
    value = record[name]
    if not isinstance(value, expected):
        raise io.InputError(f"{where}: {name} is {kind(value)}; expected {expected.__name__}")
    if isinstance(value, str):
        check_characters(where, name, value)
    return value


def _intensity(where: str, scores: Mapping[str, Any], name: str) -> int | None:
    value = scores.get(name)
    if value is None or value == "":
        return None
    if str(value) not in ("1", "2", "3", "4", "5"):
        raise io.InputError(f"{where}: {name} is {value!r}; expected 1 to 5")
    return int(value)


def _without_chatter(turns: tuple[Turn, ...], account: ReadingAccount) -> tuple[Turn, ...]:
    """Return the turns before the first of the last turns that mentions the platform."""
    start = max(2, len(turns) - LAST_TURNS)
    for i in range(start, len(turns)):
        if CHATTER.search(turns[i].text):
            account.turns["cut off as platform chatter"] += len(turns) - i
            return turns[:i]
    return turns
