"""Preference files of other tools: TRL's, UltraFeedback's and LLaMA-Factory's (Alpaca) form.

A row that is not of its form is an error that names file, line and field. A row of the form that
no pair can be made of (a response of several messages, no prompt) is counted and left out. What
each form looks like, and where we differ from TRL, is in docs/data-formats.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ixjax import io
from ixjax.dialogue.preferences import ChatPrompt, Preference, PreferenceAccount, PreferenceFormat
from ixjax.dialogue.readers.account import is_readable
from ixjax.dialogue.rendering import Said

SIDES = ("chosen", "rejected")
ROLES = ("system", "user", "assistant")

Row = Mapping[str, Any]


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


def preference_format(path: str | Path) -> PreferenceFormat:
    """The format of a file, by its first row.

    Raises:
        InputError: there is no such file, no row in it, or one of another form.
    """
    where, row = next(_rows(Path(path)), (str(path), None))
    if row is None:
        raise io.InputError(f"{path}: holds no preference")
    if row.get("schema") == "ixjax.pairs":
        return "ixjax"
    if "instruction" in row:
        return "alpaca"
    if isinstance(row.get("chosen"), list) and isinstance(row.get("prompt"), str):
        return "ultrafeedback"
    if "chosen" in row and "rejected" in row:
        return "trl"
    raise io.InputError(
        f"{where}: has the fields {', '.join(row) or 'none'}; expected chosen and rejected with a "
        "prompt (TRL, UltraFeedback), or instruction (Alpaca); preferences.format says which"
    )


def read_preferences(
    path: str | Path, format_: PreferenceFormat, *, account: PreferenceAccount
) -> Iterator[Preference]:
    """The preferences of a file that another tool has written.

    Args:
        path: JSON lines, or one JSON list.
        format_: trl, ultrafeedback or alpaca.
        account: is filled.

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
    """(where, row) of a file of JSON lines, or of one JSON list."""
    if path.suffix == ".parquet":
        raise io.InputError(
            f"{path}: a parquet file; expected JSON lines: write them with `to_json` of the "
            "library `datasets`"
        )
    if not io.read_text(path).lstrip().startswith("["):
        for line, record in io.read_json_lines(path):
            yield f"{path}:{line}", record
        return
    for number, record in enumerate(io.read_json(path), start=1):
        where = f"{path}: row {number}"
        if not isinstance(record, dict):
            raise io.InputError(f"{where}: expected an object, found {type(record).__name__}")
        yield where, record


def _trl(where: str, row: Row, account: PreferenceAccount) -> Preference | None:
    """`prompt`, `chosen`, `rejected`: texts, or lists of messages; lists may hold the prompt."""
    prompt, (chosen, rejected) = row.get("prompt"), _fields(where, row, *SIDES)
    kinds = {type(value) for value in (prompt, chosen, rejected) if value is not None}
    if kinds == {str} and prompt is not None:
        return Preference(where, _text(where, "prompt", prompt), *_side_texts(where, row))
    if kinds != {list}:
        found = ", ".join(f"{name} {type(row.get(name)).__name__}" for name in ("prompt", *SIDES))
        raise io.InputError(
            f"{where}: found {found}; expected three texts, or lists of messages, which alone may "
            "hold the prompt themselves"
        )
    chosen, rejected = (_messages(where, name, row[name]) for name in SIDES)
    if prompt is None:
        return _implicit(where, chosen, rejected, account)
    return _conversation(where, _messages(where, "prompt", prompt), chosen, rejected, account)


def _ultrafeedback(where: str, row: Row, account: PreferenceAccount) -> Preference | None:
    """Whole conversations as `chosen` and `rejected`, their scores; `prompt` repeats a message."""
    _fields(where, row, *SIDES)
    chosen, rejected = (_messages(where, name, row[name]) for name in SIDES)
    better, worse = (_score(where, row, f"score_{name}") for name in SIDES)
    margin = None if better is None or worse is None else better - worse
    return _implicit(where, chosen, rejected, account, margin=margin)


def _alpaca(where: str, row: Row, account: PreferenceAccount) -> Preference | None:
    """`instruction` and `input` make the user's last message; `history` lies before it."""
    [instruction] = _fields(where, row, "instruction")
    parts = [_text(where, "instruction", instruction)]
    parts += [_text(where, "input", row["input"])] if row.get("input") else []
    turns: list[Said] = []
    for number, said in enumerate(_list(where, "history", row.get("history") or [])):
        name = f"history[{number}]"
        if not isinstance(said, list) or len(said) != 2:
            raise io.InputError(f"{where}: {name} is {said!r}; expected [user, assistant]")
        user, assistant = (_text(where, name, text) for text in said)
        turns += [Said(False, user), Said(True, assistant)]
    turns.append(Said(False, "\n".join(part for part in parts if part)))
    system = _text(where, "system", row["system"]) if row.get("system") else None
    return Preference(where, ChatPrompt(system, tuple(turns)), *_outputs(where, row))


def _outputs(where: str, row: Row) -> tuple[str, str]:
    """The better and the worse response: `chosen`, `rejected`, or `output` as a list of both."""
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
    """The prompt is what two conversations begin with alike; a message is left for each."""
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
    """A prompt of messages, and one assistant message each, else None."""
    system = prompt[0].content if prompt and prompt[0].role == "system" else None
    turns = prompt if system is None else prompt[1:]
    if any(message.role == "system" for message in turns):
        raise io.InputError(f"{where}: a system message behind the first place of the prompt")
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
    said = tuple(Said(message.role == "assistant", message.content) for message in turns)
    responses = chosen[0].content, rejected[0].content
    return Preference(where, ChatPrompt(system, said), *responses, margin=margin)


def _messages(where: str, name: str, value: Any) -> list[Message]:
    found = []
    for number, message in enumerate(_list(where, name, value)):
        place = f"{name}[{number}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise io.InputError(f"{where}: {place} must be an object with `role` and `content`")
        if message["role"] not in ROLES:
            raise io.InputError(
                f"{where}: {place}.role is {message['role']!r}; expected one of {', '.join(ROLES)}"
            )
        content = _text(where, f"{place}.content", message["content"])
        found.append(Message(message["role"], content))
    return found


def _fields(where: str, row: Row, *names: str) -> list[Any]:
    for name in names:
        if row.get(name) is None:
            raise io.InputError(f"{where}: lacks the field {name!r}")
    return [row[name] for name in names]


def _list(where: str, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise io.InputError(f"{where}: {name} is {_show(value)}; expected a list")
    return value


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise io.InputError(f"{where}: {name} is {_show(value)}; expected text")
    if not is_readable(value):
        raise io.InputError(f"{where}: {name} holds a NUL or a lone surrogate")
    return value


def _score(where: str, row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise io.InputError(f"{where}: {name} is {_show(value)}; expected a finite number")
    return float(value)


def _show(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
