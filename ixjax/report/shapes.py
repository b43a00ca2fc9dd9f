"""The fields of each kind of record that a report reads, and the check that they are there.

Fields that a report does not read are not asked for, so that runs of other versions have one too.
"""

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
    """Refuse a record that lacks a field, or has one of another type.

    Args:
        record: what was read.
        shape: the types that each field may have; other fields may be there too.
        where: the file and the place in it.

    Raises:
        InputError: names the place and the field, what was found and what was expected.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: found {type(record).__name__}; expected an object")
    for name, kinds in shape.items():
        if name not in record:
            raise InputError(f"{where}: {name} is missing; cut off, or of another program?")
        value = record[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(_NAMES[kind] for kind in kinds)
            raise InputError(f"{where}: {name} is {_short(value)}; expected {expected}")
        _check_leaf(value, f"{where}: {name}")


def check_texts(values: list[Any], where: str, *, count: int | None = None) -> None:
    """Refuse a list that holds anything but texts, or another number of them.

    Raises:
        InputError: names the place, what was found and what was expected.
    """
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{where}[{i}] is {_short(value)}; expected a text")
        _check_leaf(value, f"{where}[{i}]")
    if count is not None and len(values) != count:
        raise InputError(f"{where} is {_short(values)}; expected {count} texts")


def check_deep(value: Any, where: str) -> None:
    """Refuse what no page can hold, however deep it lies in a JSON value of unknown form.

    Raises:
        InputError: names the place and what was found.
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
        raise InputError(f"{where} holds a lone surrogate, which no text has")


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _short(value: Any, longest: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
