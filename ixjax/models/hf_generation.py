"""What a Hugging Face folder says about generation: end tokens, and how long a turn may be.

Training and search take their end tokens from the chat template. But a folder whose end tokens
can't be read, or are none of its tokens, is damaged, and a person should learn of it here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ixjax.io import InputError, read_json
from ixjax.models.hf_config import CONFIG, read_config

GENERATION = "generation_config.json"


def read_generation(folder: Path) -> dict[str, Any]:
    """The generation_config.json of a folder; empty where it has none.

    Raises:
        InputError: it is no JSON object.
    """
    path = folder / GENERATION
    if not path.exists():
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return values


def check_end_tokens(folder: Path, vocab_size: int) -> None:
    """Refuse end tokens that are none of the model's.

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
                    f"{folder / name}: eos_token_id is {ends!r}; expected tokens of a vocabulary "
                    f"of {vocab_size} (0 to {vocab_size - 1})"
                )


def turn_tokens(folder: Path, default: int) -> int:
    """The longest turn of a folder's model: what it says itself, at most half of its context.

    Args:
        folder: whose; one that can't be read is refused by whoever loads it.
        default: where it does not say.
    """
    try:
        longest = read_config(folder / CONFIG).max_length
        said = read_generation(folder).get("max_new_tokens")
    except InputError:
        return default
    wanted = said if isinstance(said, int) and said >= 1 else default
    return min(wanted, max(longest // 2, 1))
