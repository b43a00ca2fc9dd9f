"""Generation settings of a Hugging Face folder: end tokens, and the longest turn.

Training and search take their end tokens from the chat template. A folder whose end tokens can't
be read, or are out of its vocabulary, is damaged and refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ixjax.io import InputError, read_json, read_object
from ixjax.models.hf_config import CONFIG, read_config

GENERATION = "generation_config.json"


def read_generation(folder: Path) -> dict[str, Any]:
    """Return the generation_config.json of a folder; empty if there is none.

    Raises:
        InputError: it is not a JSON object.
    """
    path = folder / GENERATION
    return read_object(path) if path.exists() else {}


def check_end_tokens(folder: Path, vocab_size: int) -> None:
    """Refuse end tokens that are not in the model's vocabulary.

    Raises:
        InputError: names the file and the token.
    """
    found = {CONFIG: read_json(folder / CONFIG), GENERATION: read_generation(folder)}
    for name, values in found.items():
        ends = values.get("eos_token_id")
        for end in ends if isinstance(ends, list) else [ends]:
            token = isinstance(end, int) and not isinstance(end, bool)
            if end is not None and not (token and 0 <= end < vocab_size):
                raise InputError(
                    f"{folder / name}: eos_token_id is {ends!r}; expected tokens from 0 to "
                    f"{vocab_size - 1} (vocab_size is {vocab_size})"
                )


def turn_tokens(folder: Path, default: int) -> int:
    """Return the longest turn of a folder's model: its `max_new_tokens`, at most half its context.

    Args:
        folder: the model's folder; loading it later refuses an unreadable one.
        default: the longest turn if the folder names none.
    """
    try:
        longest = read_config(folder / CONFIG).max_length
        named = read_generation(folder).get("max_new_tokens")
    except InputError:
        return default
    wanted = named if isinstance(named, int) and named >= 1 else default
    return min(wanted, max(longest // 2, 1))
