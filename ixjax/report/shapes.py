"""Checks of the fields that a report reads; other fields may be missing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ixjax.io import InputError

Kinds = tuple[type, ...]
Shape = Mapping[str, Kinds]

NUMBER: Kinds = (int, float)
MAYBE: Kinds = (int, float, type(None))
TEXT: Kinds = (str,)
COUNT: Kinds = (int,)
LIST: Kinds = (list,)
OBJECT: Kinds = (dict,)

TURN: Shape = {"role": TEXT, "text": TEXT}
DIALOGUE: Shape = {"condition": OBJECT, "turns": LIST}
NODE: Shape = {
    "id": COUNT,
    "parent": COUNT,
    "kind": TEXT,
    "text": TEXT,
    "depth": COUNT,
    "visits": COUNT,
    "value_sum": NUMBER,
    "terminal": (bool,),
    "truncated": (bool,),
}
TREE: Shape = {"condition_id": TEXT, "root": OBJECT, "nodes": LIST}
PAIR: Shape = {
    "condition_id": TEXT,
    "chosen": TEXT,
    "rejected": TEXT,
    "chosen_value": MAYBE,
    "rejected_value": MAYBE,
    "chosen_visits": COUNT,
    "rejected_visits": COUNT,
    "node_id": (int, type(None)),
    "depth": COUNT,
}
PLAYED: Shape = {
    "condition": TEXT,
    "sample": COUNT,
    "dialogue": OBJECT,
    "engagement": MAYBE,
    "value": MAYBE,
    "ended": (bool,),
    "response_tokens": LIST,
}
EVALUATION: Shape = {
    "conditions": COUNT,
    "methods": LIST,
    "users": LIST,
    "cells": LIST,
    "fidelity": LIST,
}
CELL: Shape = {
    "method": TEXT,
    "user": TEXT,
    **dict.fromkeys(
        (
            *("engagement", "low", "high", "gain", "gain_low", "gain_high", "relative_gain"),
            *("release_rate", "win_rate", "turns", "distinct_1", "distinct_2"),
            *("response_tokens", "unreadable_rate"),
        ),
        MAYBE,
    ),
}
FIDELITY: Shape = {
    "simulator": TEXT,
    "dialogues": COUNT,
    "calibration": LIST,
    **dict.fromkeys(
        (
            *("utterance_nll", "outcome_mae", "outcome_mae_baseline", "outcome_spearman"),
            *("outcome_spearman_half", "calibration_error"),
        ),
        MAYBE,
    ),
}
BASELINE: Shape = {
    "baseline": TEXT,
    "dialogues": COUNT,
    **dict.fromkeys(
        ("outcome_mae", "outcome_spearman", "outcome_spearman_half", "calibration_error"), MAYBE
    ),
}
BIN: Shape = {"count": COUNT, "predicted": NUMBER, "recorded": NUMBER}
RATING_SCORES: Shape = {
    "methods": LIST,
    "user": TEXT,
    "raters": COUNT,
    "items": COUNT,
    "win_rate": MAYBE,
    "low": MAYBE,
    "high": MAYBE,
    "fleiss": OBJECT,
}
LOGGED: Shape = {"stage": TEXT}
SURROGATE = re.compile("[\ud800-\udfff]")


def check(record: Any, shape: Shape, where: str) -> None:
    """Raise unless a record has all fields of a shape, of the right types.

    Args:
        record: a JSON value.
        shape: the types of each field; further fields are allowed.
        where: file and position.

    Raises:
        InputError: names the position, the field, the found and the expected value.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: found {type(record).__name__}; expected an object")
    for name, kinds in shape.items():
        if name not in record:
            raise InputError(f"{where}: {name} is missing; expected {_expected(kinds)}")
        value = record[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise InputError(f"{where}: {name} is {_short(value)}; expected {_expected(kinds)}")
        _check_leaf(value, f"{where}: {name}")


def check_texts(values: list[Any], where: str, *, count: int | None = None) -> None:
    """Raise unless a list holds texts, `count` of them if given.

    Raises:
        InputError: names the position, the found and the expected value.
    """
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{where}[{i}] is {_short(value)}; expected a text")
        _check_leaf(value, f"{where}[{i}]")
    if count is not None and len(values) != count:
        raise InputError(f"{where} is {_short(values)}; expected {count} texts")


def check_deep(value: Any, where: str) -> None:
    """Raise if a nested JSON value holds a lone surrogate or a number that is not finite.

    Raises:
        InputError: names the position and the value.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_leaf(name, f"{where}: a name")
            check_deep(inner, f"{where}: {name}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            check_deep(inner, f"{where}[{i}]")
    else:
        _check_leaf(value, where)


def _check_leaf(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}; expected a finite number")
    if isinstance(value, str) and SURROGATE.search(value):
        raise InputError(f"{where} holds a lone surrogate; expected Unicode text")


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _expected(kinds: Kinds) -> str:
    return " or ".join(_NAMES[kind] for kind in kinds)


def _short(value: Any, longest: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
