"""Users' own corpora, and the splits of a run: one dialogue a line (docs/data-formats.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.dialogue.readers.account import ReadingAccount, has_both_sides, kind
from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import ROLES, Dialogue, Outcome, Turn, UserCondition, text_problem

SCHEMA = "ixjax.dialogues"


def read_user_jsonl(path: Path, *, account: ReadingAccount, scenario: Scenario) -> list[Dialogue]:
    """Read and check a corpus.

    Args:
        path: the file.
        account: counts of the reading, updated.
        scenario: gives the side that opens, the attributes of a condition, and the engagement of
            an outcome without one.

    Raises:
        InputError: a line is not a JSON object, or a field is missing or invalid (names file, line
            and field).
    """
    dialogues: list[Dialogue] = []
    seen: dict[str, int] = {}
    for line, record in io.read_json_lines(path):
        where = f"{path}:{line}"
        if line == 1 and "schema" in record and "turns" not in record:
            _check_schema(where, record)
            continue
        dialogue = read_dialogue(where, record, account, scenario)
        if dialogue.id in seen:
            raise io.InputError(
                f"{where}: id is {dialogue.id!r}, as on line {seen[dialogue.id]}; expected another"
            )
        seen[dialogue.id] = line
        account.read += 1
        account.kept += 1
        if dialogue.outcome is None:
            account.outcomes["null"] += 1
        dialogues.append(dialogue)
    if not dialogues:
        raise io.InputError(f"{path}: found no dialogue; expected one a line")
    return dialogues


def _check_schema(where: str, head: Mapping[str, Any]) -> None:
    schema, version = head["schema"], head.get("version")
    if schema != SCHEMA:
        raise io.InputError(f"{where}: found a file of {schema}; expected dialogues ({SCHEMA})")
    if version != io.SCHEMA_VERSION:
        raise io.InputError(
            f"{where}: found {SCHEMA} version {version}; expected version {io.SCHEMA_VERSION}"
        )


def read_dialogue(
    where: str, record: Mapping[str, Any], account: ReadingAccount, scenario: Scenario
) -> Dialogue:
    """Return the dialogue of one line."""
    for field in ("id", "condition", "turns"):
        if field not in record:
            raise io.InputError(f"{where}: lacks the field {field!r}")
    name = record["id"]
    if problem := text_problem(name):
        raise io.InputError(f"{where}: id {problem}; expected a text")
    condition = UserCondition(name, _condition(where, record["condition"]))
    _check_fit(where, condition, scenario)
    turns = _opened(where, _turns(where, record["turns"], account), account, scenario)
    groups = record.get("groups", [])
    if not isinstance(groups, list):
        raise io.InputError(f"{where}: groups is {groups!r}; expected a list of texts")
    for i, group in enumerate(groups):
        if problem := text_problem(group):
            raise io.InputError(f"{where}: groups[{i}] {problem}; expected a text")
    outcome = _outcome(where, record.get("outcome"), condition, scenario)
    return Dialogue(name, condition, turns, outcome, tuple(groups))


def _condition(where: str, value: Any) -> dict[str, str | int | float]:
    if not isinstance(value, dict):
        raise io.InputError(
            f"{where}: condition is {kind(value)}; expected an object of texts and numbers"
        )
    for key, item in value.items():
        if problem := text_problem(key):
            raise io.InputError(f"{where}: condition: the name {key!r} {problem}; expected a text")
        if isinstance(item, float) and not math.isfinite(item):
            raise io.InputError(f"{where}: condition.{key} is {item}; expected a finite number")
        is_number = isinstance(item, (int, float)) and not isinstance(item, bool)
        problem = None if is_number else text_problem(item)
        if problem:
            raise io.InputError(f"{where}: condition.{key} {problem}; expected a text or a number")
    return dict(value)


def _check_fit(where: str, condition: UserCondition, scenario: Scenario) -> None:
    """Check the condition with the scenario now, since later errors can't name the line."""
    try:
        scenario.simulator_prompt(condition)
        scenario.outcome_lines(condition)
    except KeyError as error:
        raise io.InputError(
            f"{where}: condition lacks {error.args[0]!r}, which the scenario {scenario.name} needs"
        ) from None
    except (TypeError, ValueError) as error:
        raise io.InputError(
            f"{where}: condition does not fit the scenario {scenario.name}: {error}"
        ) from None


def _opened(
    where: str, turns: tuple[Turn, ...], account: ReadingAccount, scenario: Scenario
) -> tuple[Turn, ...]:
    """Return the turns from the first of the side that opens this scenario.

    A tree's root assumes that this side opens.
    """
    opener = "policy" if scenario.policy_opens else "user"
    if turns[0].role == opener:
        return turns
    if not has_both_sides(turns[1:]):
        raise io.InputError(
            f"{where}: turns has only the {opener} after the {turns[0].role}'s opening, which is "
            f"cut off; expected both sides: in the scenario {scenario.name} the {opener} opens"
        )
    account.turns[f"cut off before the {opener}'s first"] += 1
    return turns[1:]


def _turns(where: str, value: Any, account: ReadingAccount) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise io.InputError(f"{where}: turns is {kind(value)}; expected a list")
    merged: list[Turn] = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or "role" not in turn or "text" not in turn:
            raise io.InputError(
                f"{where}: turns[{i}] is {turn!r}; expected an object with `role` and `text`"
            )
        if turn["role"] not in ROLES:
            raise io.InputError(
                f"{where}: turns[{i}].role is {turn['role']!r}; expected 'user' or 'policy'"
            )
        if problem := text_problem(turn["text"]):
            raise io.InputError(f"{where}: turns[{i}].text {problem}; expected a text")
        if merged and merged[-1].role == turn["role"]:
            account.turns["merged into the one before"] += 1
            merged[-1] = Turn(turn["role"], f"{merged[-1].text} {turn['text']}")
        else:
            merged.append(Turn(turn["role"], turn["text"]))
    if not merged:
        raise io.InputError(f"{where}: turns is empty; expected turns of both sides")
    if not has_both_sides(merged):
        raise io.InputError(
            f"{where}: turns has only the {merged[0].role}; expected turns of both sides"
        )
    return tuple(merged)


def _outcome(
    where: str, value: Any, condition: UserCondition, scenario: Scenario
) -> Outcome | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not _is_finite(value.get("value")):
        raise io.InputError(
            f"{where}: outcome is {value!r}; expected null or an object with a number `value`"
        )
    share = value.get("engagement")
    if share is None:
        found = scenario.outcome(condition, float(value["value"]))
        if found is None:
            raise io.InputError(
                f"{where}: outcome.value is {value['value']}; expected a value in the range of the "
                f"scenario {scenario.name}"
            )
        share = found.engagement
    if not _is_finite(share) or not 0 <= share <= 1:
        raise io.InputError(f"{where}: outcome.engagement is {share!r}; expected 0 to 1")
    return Outcome(float(value["value"]), float(share))


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False
