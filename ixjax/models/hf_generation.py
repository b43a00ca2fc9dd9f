"""Generation settings of a checkpoint: end tokens, and the longest turn.

Training and search take their end tokens from the chat template. A checkpoint whose end tokens
can't be read, or are out of its vocabulary, is damaged and refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ixjax.io import InputError, read_object
from ixjax.models.hf_config import read_config, read_fields
from ixjax.models.hf_fields import Fields
from ixjax.models.hf_source import config_file

GENERATION = "generation_config.json"


def read_generation(checkpoint: Path) -> dict[str, Any]:
    """Return the generation_config.json of a folder; empty if there is none (GGUF has none).

    Raises:
        InputError: it is not a JSON object.
    """
    path = checkpoint / GENERATION
    return read_object(path) if path.exists() else {}


def check_end_tokens(checkpoint: Path, vocab_size: int) -> None:
    """Refuse end tokens that are not in the model's vocabulary.

    Raises:
        InputError: names the file and the token.
    """
    generation = Fields(str(checkpoint / GENERATION), read_generation(checkpoint))
    for fields in (read_fields(config_file(checkpoint)), generation):
        ends = fields.values.get("eos_token_id")
        for end in ends if isinstance(ends, list) else [ends]:
            token = isinstance(end, int) and not isinstance(end, bool)
            if end is not None and not (token and 0 <= end < vocab_size):
                raise InputError(
                    f"{fields.where}: {fields.key('eos_token_id')} is {ends!r}; expected tokens "
                    f"from 0 to {vocab_size - 1} (vocab_size is {vocab_size})"
                )


def turn_tokens(checkpoint: Path, default: int) -> int:
    """Return the longest turn of a model: its `max_new_tokens`, at most half its context.

    Args:
        checkpoint: the model's folder or GGUF file; loading it later refuses an unreadable one.
        default: the longest turn if the checkpoint names none.
    """
    try:
        longest = read_config(config_file(checkpoint)).max_length
        named = read_generation(checkpoint).get("max_new_tokens")
    except InputError:
        return default
    wanted = named if isinstance(named, int) and named >= 1 else default
    return min(wanted, max(longest // 2, 1))
