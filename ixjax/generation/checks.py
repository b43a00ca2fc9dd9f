"""What the engine refuses at its edge, by row.

An accelerator raises nothing: a token outside the vocabulary is clamped to it, a position behind
the last likewise, an array of one row is read for all. So what a caller gives is looked at once, on
the host, before it becomes an array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ixjax.generation.contexts import Contexts, Turns
from ixjax.models import ModelConfig


def check_rows(name: str, found: int, expected: int) -> None:
    """Refuse what is not given for each of the rows: it would be broadcast, or cut.

    Raises:
        ValueError: the two differ.
    """
    if found != expected:
        raise ValueError(f"{name} is given for {found} rows; there are {expected}")


def check_adapters(adapters: np.ndarray, config: ModelConfig) -> None:
    """Refuse adapters that the model lacks: such a row would be read by the base alone.

    Raises:
        ValueError: names the row.
    """
    count = 0 if config.lora is None else config.lora.adapters
    wrong = np.flatnonzero((adapters < -1) | (adapters >= max(count, 1)))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"row {row} is to be read with adapter {adapters[row]}; the model has {count} "
            "(counted from 0; -1: the base alone)"
        )


def check_tokens(tokens: Mapping[int, Sequence[int]], config: ModelConfig) -> None:
    """Refuse ids outside the vocabulary, of tokens by row.

    Raises:
        ValueError: names the row and the token.
    """
    for row, given in tokens.items():
        if len(given) and not (min(given) >= 0 and max(given) < config.vocab_size):
            token = next(token for token in given if not 0 <= token < config.vocab_size)
            raise ValueError(
                f"row {row} was given token {token}; the model's vocab_size is {config.vocab_size}"
            )


def check_room(contexts: Contexts, counts: Mapping[int, int], config: ModelConfig) -> None:
    """Refuse more tokens than a row has room for, of counts by row.

    Raises:
        ValueError: names the row.
    """
    for row, count in counts.items():
        held = len(contexts.tokens[row])
        if held + count > config.max_length:
            raise ValueError(
                f"row {row} holds {held} tokens; {count} more exceed the model's max_length of "
                f"{config.max_length}"
            )


def check_turns(turns: Turns, rows: int) -> None:
    """Refuse turns of others than these rows, and what is not said of each of theirs.

    Raises:
        ValueError: names the field.
    """
    if turns.rows is not None:
        found = np.asarray(turns.rows)
        if len(set(found.tolist())) < len(found) or not np.all((found >= 0) & (found < rows)):
            raise ValueError(
                f"Turns.rows is {found.tolist()}; expected different ones of 0 to {rows - 1}"
            )
        rows = len(found)
    one_for_all = {"end_ids": not any(isinstance(ids, Sequence) for ids in turns.end_ids)}
    for name in ("limits", "identities", "said", "sampling", "seed", "stops", "end_ids"):
        values = getattr(turns, name)
        each = isinstance(values, Sequence) or getattr(values, "ndim", 0) > 0
        if each and not one_for_all.get(name):
            check_rows(f"Turns.{name}", len(values), rows)


def check_logits(contexts: Contexts, rows: np.ndarray) -> None:
    """Refuse to sample from rows of which no logits are known.

    Raises:
        ValueError: names the row.
    """
    stale = rows[contexts.stale[rows]]
    if len(stale):
        raise ValueError(
            f"row {stale[0]} has read nothing since it was made or shortened, so that no logits "
            "stand behind its last token; extend it first"
        )


def check_scored(
    contexts: Contexts,
    prefixes: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    rows: Sequence[int],
    config: ModelConfig,
) -> None:
    """Refuse what can't be scored, see `Engine.score`.

    Raises:
        ValueError: names the row.
    """
    check_rows("prefixes", len(prefixes), len(rows))
    check_rows("candidates", len(candidates), len(rows))
    for row, prefix, lines in zip(rows, prefixes, candidates, strict=True):
        if not len(prefix):
            raise ValueError(
                f"row {row} has an empty prefix; a candidate's first token is predicted from the "
                "last of the prefix"
            )
        if len(lines) != len(candidates[0]):
            raise ValueError(
                f"row {row} has {len(lines)} candidates, row {rows[0]} has {len(candidates[0])}; "
                "fill up with empty ones"
            )
        for tokens in (prefix, *lines):
            check_tokens({row: tokens}, config)
        held, longest = len(contexts.tokens[row]), max(map(len, lines), default=0)
        if held + len(prefix) + longest > config.max_length:
            raise ValueError(
                f"row {row} holds {held} tokens; a prefix of {len(prefix)} and a candidate of "
                f"{longest} exceed the model's max_length of {config.max_length}"
            )
