"""Persuasion-for-Good (Wang et al. 2019): one side persuades the other to donate to charity.

The reader takes two files: `full_dialog.csv` (a row per utterance) and `full_info.csv` (a row per
participant: actual donation, personality, demographics).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from ixjax import io
from ixjax.dialogue.readers.account import (
    ReadingAccount,
    check_characters,
    has_both_sides,
    merge_turns,
)
from ixjax.dialogue.scenarios.p4g import PAYMENT, donated
from ixjax.dialogue.types import Dialogue, Outcome, Role, UserCondition

DIALOGUES, PARTICIPANTS = "full_dialog.csv", "full_info.csv"
ROLES: dict[str, Role] = {"0": "policy", "1": "user"}
ADULT = 18
BIG_FIVE = {
    "extrovert.x": "extraversion",
    "agreeable.x": "agreeableness",
    "conscientious.x": "conscientiousness",
    "neurotic.x": "neuroticism",
    "open.x": "openness",
}
DEMOGRAPHICS = {
    "sex.x": "sex",
    "edu.x": "education",
    "marital.x": "marital status",
    "employment.x": "employment",
    "religion.x": "religion",
    "ideology.x": "ideology",
}
NUMBERS = {
    "income.x": "income",
    "care.x": "care",
    "fairness.x": "fairness",
    "benevolence.x": "benevolence",
    "universalism.x": "universalism",
}


def read_p4g(path: Path, *, account: ReadingAccount) -> tuple[list[Dialogue], dict[str, str]]:
    """Read a folder that holds the two files.

    Args:
        path: the folder.
        account: counts of the reading, updated.

    Returns:
        The dialogues, and an empty official split (there is none).

    Raises:
        InputError: a file or a column is missing, or a row can't be read (names file and line).
    """
    people: dict[tuple[str, str], dict[str, str]] = {}
    for _, row in _rows(path / PARTICIPANTS, ("B2", "B3", "B4", "B6")):
        people[row["B2"], row["B4"]] = row
    said: dict[str, list[tuple[Role, str]]] = {}
    for line, row in _rows(path / DIALOGUES, ("Unit", "B2", "B4")):
        where = f"{path / DIALOGUES}:{line}"
        if row["B4"] not in ROLES:
            raise io.InputError(f"{where}: B4 is {row['B4']!r}; expected 0 or 1")
        check_characters(where, "Unit", row["Unit"])
        said.setdefault(row["B2"], []).append((ROLES[row["B4"]], row["Unit"]))
    dialogues = []
    for name, utterances in said.items():
        account.read += 1
        turns = merge_turns(utterances, account)
        if turns and turns[0].role == "user":
            account.turns["cut off before the persuader's first"] += 1
            turns = turns[1:]
        if not has_both_sides(turns):
            account.dropped["one side alone speaks"] += 1
            continue
        persuadee = people.get((name, "1"))
        if persuadee is None:
            account.dropped[f"no persuadee in {PARTICIPANTS}"] += 1
            continue
        where = f"{path / PARTICIPANTS}: dialogue {name}"
        both = [person for role in ROLES if (person := people.get((name, role)))]
        dialogues.append(
            Dialogue(
                f"p4g-{name}",
                UserCondition(f"p4g-{name}", _attributes(where, persuadee)),
                turns,
                _outcome(where, persuadee, account),
                groups=tuple(f"participant:{person['B3']}" for person in both),
            )
        )
        account.kept += 1
    return dialogues, {}


def _rows(file: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Return (line, row) of a CSV file that must have these columns."""
    # Not by splitlines: typed text may hold separators that do not end a row.
    reader = csv.DictReader(StringIO(io.read_text(file), newline=""))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise io.InputError(f"{file}:1: lacks the column {missing[0]!r}")
    rows = []
    for row in reader:
        if any(row[column] is None for column in columns):
            found = sum(value is not None for value in row.values())
            raise io.InputError(
                f"{file}:{reader.line_num}: found {found} columns; expected {len(row)}"
            )
        rows.append((reader.line_num, row))
    return rows


def _outcome(where: str, person: Mapping[str, str], account: ReadingAccount) -> Outcome | None:
    """Return the actual donation; none above the payment, which is a typing error or in cents."""
    if not person["B6"]:
        account.outcomes["no donation recorded"] += 1
        return None
    dollars = _number(where, person, "B6")
    if dollars < 0:
        raise io.InputError(f"{where}: B6 is {person['B6']!r}; expected 0 dollars or more")
    if dollars > PAYMENT:
        account.outcomes[f"donation above {PAYMENT:g} dollars"] += 1
        return None
    return Outcome(dollars, donated(dollars))


def _number(where: str, person: Mapping[str, str], column: str) -> float:
    try:
        value = float(person[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise io.InputError(f"{where}: {column} is {person[column]!r}; expected a number")
    return value


def _attributes(where: str, person: Mapping[str, str]) -> dict[str, str | int | float]:
    """Return the persuadee's answers to the survey, without missing ones."""
    found: dict[str, str | int | float] = {}
    age = _number(where, person, "age.x") if person.get("age.x") else 0
    if age >= ADULT:  # one participant typed 3
        found["age"] = int(age)
    found |= {name: person[column] for column, name in DEMOGRAPHICS.items() if person.get(column)}
    found |= {
        name: _number(where, person, column)
        for column, name in (BIG_FIVE | NUMBERS).items()
        if person.get(column)
    }
    return found
