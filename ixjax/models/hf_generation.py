"""Generation settings of a checkpoint: end tokens, and how it samples.

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
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


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


def sampling_settings(checkpoint: Path, *, longest_turn: int) -> dict[str, Any]:
    """Return the sampling settings that a checkpoint names, and its longest turn.

    Args:
        checkpoint: the model's folder or GGUF file; loading it later refuses an unreadable one.
        longest_turn: the most tokens of a turn if the checkpoint names no `max_new_tokens`. It is
            at most half the context.

    Returns:
        `max_new_tokens` and, unless the checkpoint turns sampling off, what it names of `SAMPLING`.
    """
    try:
        longest = read_config(config_file(checkpoint)).max_length
        named = read_generation(checkpoint)
    except InputError:
        return {}
    found = {} if named.get("do_sample") is False else named
    tokens = named.get("max_new_tokens")
    tokens = tokens if isinstance(tokens, int) and tokens >= 1 else longest_turn
    numbers = {name: found[name] for name in SAMPLING if isinstance(found.get(name), int | float)}
    return {**numbers, "max_new_tokens": min(tokens, max(longest // 2, 1))}
