"""Preference files of other tools: TRL's, UltraFeedback's and LLaMA-Factory's (Alpaca) form.

A row of another form raises an error that names file, line and field. A row of the right form that
gives no pair (a response of several messages, no prompt) is counted and dropped.
docs/data-formats.md describes each form and the differences from TRL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ixjax import io
from ixjax.dialogue.preferences import ChatPrompt, Preference, PreferenceAccount, PreferenceFormat
from ixjax.dialogue.readers.account import check_characters, kind
from ixjax.dialogue.rendering import SpeakerTurn

SIDES = ("chosen", "rejected")
ROLES = ("system", "user", "assistant")

Row = Mapping[str, Any]


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


def preference_format(path: str | Path) -> PreferenceFormat:
    """Return the format of a file, by its first row.

    Raises:
        InputError: the file is missing or empty, or its first row has another form.
    """
    where, row = next(_rows(Path(path)), (str(path), None))
    if row is None:
        raise io.InputError(f"{path}: found no row; expected one preference a line")
    if row.get("schema") == "ixjax.pairs":
        return "ixjax"
    if "instruction" in row:
        return "alpaca"
    if isinstance(row.get("chosen"), list) and isinstance(row.get("prompt"), str):
        return "ultrafeedback"
    if "chosen" in row and "rejected" in row:
        return "trl"
    raise io.InputError(
        f"{where}: found the fields {', '.join(row) or 'none'}; expected chosen and rejected with "
        "a prompt (TRL, UltraFeedback), or instruction (Alpaca). Set --preferences.format"
    )


def read_preferences(
    path: str | Path, format_: PreferenceFormat, *, account: PreferenceAccount
) -> Iterator[Preference]:
    """Yield the preferences of a file that another tool wrote.

    Args:
        path: JSON lines, or one JSON list.
        format_: trl, ultrafeedback or alpaca.
        account: counts of the file, updated.

    Raises:
        InputError: a row is not of the format (names file, line and field).
    """
    read = READERS[format_]
    for where, row in _rows(Path(path)):
        account.read += 1
        preference = read(where, row, account)
        if preference is not None:
            yield preference


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of a file of JSON lines, or of one JSON list."""
    if path.suffix == ".parquet":
        raise io.InputError(
            f"{path}: found a parquet file; expected JSON lines. Convert it with `to_json` of the "
            "library `datasets`"
        )
    if not io.read_text(path).lstrip().startswith("["):
        for line, record in io.read_json_lines(path):
            yield f"{path}:{line}", record
        return
    for number, record in enumerate(io.read_json(path), start=1):
        where = f"{path}: row {number}"
        if not isinstance(record, dict):
            raise io.InputError(f"{where}: found {kind(record)}; expected an object")
        yield where, record


def _trl(where: str, row: Row, account: PreferenceAccount) -> Preference | None:
    """Read `prompt`, `chosen`, `rejected`: texts, or lists of messages that may hold the prompt."""
    prompt, (chosen, rejected) = row.get("prompt"), _fields(where, row, *SIDES)
    kinds = {type(value) for value in (prompt, chosen, rejected) if value is not None}
    if kinds == {str} and prompt is not None:
        return Preference(where, _text(where, "prompt", prompt), *_side_texts(where, row))
    if kinds != {list}:
        found = ", ".join(f"{name} {kind(row.get(name))}" for name in ("prompt", *SIDES))
        raise io.InputError(
            f"{where}: found {found}; expected three texts, or lists of messages (only these may "
            "do without `prompt`)"
        )
    chosen, rejected = (_messages(where, name, row[name]) for name in SIDES)
    if prompt is None:
        return _implicit(where, chosen, rejected, account)
    return _conversation(where, _messages(where, "prompt", prompt), chosen, rejected, account)


def _ultrafeedback(where: str, row: Row, account: PreferenceAccount) -> Preference | None:
    """Read whole conversations as `chosen` and `rejected` with scores; `prompt` is not needed."""
    _fields(where, row, *SIDES)
    chosen, rejected = (_messages(where, name, row[name]) for name in SIDES)
    better, worse = (_score(where, row, f"score_{name}") for name in SIDES)
    margin = None if better is None or worse is None else better - worse
    return _implicit(where, chosen, rejected, account, margin=margin)


def _alpaca(where: str, row: Row, account: PreferenceAccount) -> Preference | None:
    """Read `instruction` and `input` as the user's last message, `history` as earlier messages."""
    [instruction] = _fields(where, row, "instruction")
    parts = [_text(where, "instruction", instruction)]
    parts += [_text(where, "input", row["input"])] if row.get("input") else []
    turns: list[SpeakerTurn] = []
    for number, exchange in enumerate(_list(where, "history", row.get("history") or [])):
        name = f"history[{number}]"
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise io.InputError(f"{where}: {name} is {exchange!r}; expected [user, assistant]")
        user, assistant = (_text(where, name, text) for text in exchange)
        turns += [SpeakerTurn(False, user), SpeakerTurn(True, assistant)]
    turns.append(SpeakerTurn(False, "\n".join(part for part in parts if part)))
    system = _text(where, "system", row["system"]) if row.get("system") else None
    return Preference(where, ChatPrompt(system, tuple(turns)), *_outputs(where, row))


def _outputs(where: str, row: Row) -> tuple[str, str]:
    """Return `chosen` and `rejected`, or both texts of the list `output`."""
    if "chosen" in row or "rejected" in row:
        return _side_texts(where, row)
    [output] = _fields(where, row, "output")
    if not isinstance(output, list) or len(output) != 2:
        raise io.InputError(
            f"{where}: output is {_show(output)}; expected a list [chosen, rejected] of two texts"
        )
    chosen, rejected = (_text(where, f"output[{i}]", text) for i, text in enumerate(output))
    return chosen, rejected


def _side_texts(where: str, row: Row) -> tuple[str, str]:
    _fields(where, row, *SIDES)
    chosen, rejected = (_text(where, name, row[name]) for name in SIDES)
    return chosen, rejected


READERS: Mapping[str, Callable[[str, Row, PreferenceAccount], Preference | None]] = {
    "trl": _trl,
    "ultrafeedback": _ultrafeedback,
    "alpaca": _alpaca,
}


def _implicit(
    where: str,
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    account: PreferenceAccount,
    *,
    margin: float | None = None,
) -> Preference | None:
    """Split off the common messages of two conversations as the prompt; leave each at least one."""
    most = max(0, min(len(chosen), len(rejected)) - 1)
    alike = (a == b for a, b in zip(chosen[:most], rejected[:most], strict=True))
    shared = next((i for i, same in enumerate(alike) if not same), most)
    return _conversation(
        where, chosen[:shared], chosen[shared:], rejected[shared:], account, margin=margin
    )


def _conversation(
    where: str,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    account: PreferenceAccount,
    *,
    margin: float | None = None,
) -> Preference | None:
    """Return a preference of messages; None if a response is not one assistant message."""
    system = prompt[0].content if prompt and prompt[0].role == "system" else None
    turns = prompt if system is None else prompt[1:]
    if any(message.role == "system" for message in turns):
        raise io.InputError(
            f"{where}: found a late system message; expected it first in the prompt"
        )
    if len(chosen) != 1 or len(rejected) != 1:
        account.drop("several_messages", where)
        return None
    for name, [message] in (("chosen", chosen), ("rejected", rejected)):
        if message.role != "assistant":
            raise io.InputError(
                f"{where}: the last message of {name} is the {message.role}'s; expected the "
                "assistant's"
            )
    if not turns:
        account.drop("empty_prompt", where)
        return None
    said = tuple(SpeakerTurn(message.role == "assistant", message.content) for message in turns)
    responses = chosen[0].content, rejected[0].content
    return Preference(where, ChatPrompt(system, said), *responses, margin=margin)


def _messages(where: str, name: str, value: Any) -> list[Message]:
    found = []
    for number, message in enumerate(_list(where, name, value)):
        place = f"{name}[{number}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise io.InputError(
                f"{where}: {place} is {_show(message)}; expected an object with `role` and "
                "`content`"
            )
        if message["role"] not in ROLES:
            raise io.InputError(
                f"{where}: {place}.role is {message['role']!r}; expected one of {', '.join(ROLES)}"
            )
        content = _text(where, f"{place}.content", message["content"])
        found.append(Message(message["role"], content))
    return found


def _fields(where: str, row: Row, *names: str) -> list[Any]:
    for name in names:
        if name not in row:
            raise io.InputError(f"{where}: lacks the field {name!r}")
        if row[name] is None:
            raise io.InputError(f"{where}: {name} is null; expected text or messages")
    return [row[name] for name in names]


def _list(where: str, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise io.InputError(f"{where}: {name} is {_show(value)}; expected a list")
    return value


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise io.InputError(f"{where}: {name} is {_show(value)}; expected text")
    check_characters(where, name, value)
    return value


def _score(where: str, row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise io.InputError(f"{where}: {name} is {_show(value)}; expected a finite number")
    return float(value)


def _show(value: Any) -> str:
    return "null" if value is None else f"{kind(value)} {str(value)[:40]!r}"
