"""A file of preferences in; rendered pairs and an account of the file out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ixjax import io
from ixjax.dialogue.chat import RenderedPair, View
from ixjax.dialogue.preference_tokens import render_preferences
from ixjax.dialogue.preferences import (
    ChatPrompt,
    Preference,
    PreferenceAccount,
    sound_preferences,
)
from ixjax.dialogue.readers.preferences import preference_format, read_preferences
from ixjax.pipeline.run import Run
from ixjax.pipeline.stages import PREFERENCES
from ixjax.search import PAIRS_SCHEMA, PreferencePair


def check_preferences(run: Run) -> None:
    """Refuse a file that can't be read before anything is made for it."""
    path = run.config.preferences.path
    # Once it was read it may be gone; what is there can't be anything but a file.
    if path and (run.manifest.get(f"dpo/{PREFERENCES}") is None or Path(path).is_dir()):
        preference_format(path)


def given_pairs(run: Run) -> tuple[list[RenderedPair], dict[str, Any]]:
    """The pairs of `preferences.path` as the run's policy reads them.

    Returns:
        The pairs in the order of the file, and what became of its rows.

    Raises:
        InputError: the file can't be read, or no pair is left of it (says why).
    """
    config, account = run.config.preferences, PreferenceAccount()
    given = preference_format(config.path) if config.format == "auto" else config.format
    if given == "ixjax":
        found = _of_a_run(config.path, run.view("policy"), account)
    else:
        found = read_preferences(config.path, given, account=account)
    pairs = render_preferences(
        sound_preferences(found, account, min_margin=config.min_margin),
        run.template,
        max_tokens=run.config.model.max_length,
        max_prompt=config.max_prompt,
        account=account,
    )
    facts = account.facts()
    if not pairs:
        why = ", ".join(f"{rule}: {count}" for rule, count in facts["dropped"].items())
        raise io.InputError(
            f"{config.path}: no pair to train on is left of {account.read} rows ({why or 'none'})"
        )
    return pairs, {"format": given, **facts}


def _of_a_run(path: str, view: View, account: PreferenceAccount) -> Iterator[Preference]:
    """Pairs of this or another run, in our own form."""
    for line, record in io.read_numbered_jsonl(path, schema=PAIRS_SCHEMA):
        where = f"{path}:{line}"
        try:
            pair = PreferencePair.from_json(record)
        except io.InputError as error:
            raise io.InputError(f"{where}: {error}") from error
        account.read += 1
        prompt = ChatPrompt(*view.conversation(pair.history))
        margin = None if math.isnan(pair.margin) else pair.margin
        yield Preference(where, prompt, pair.chosen, pair.rejected, margin)
