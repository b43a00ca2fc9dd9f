"""Rendered pairs of a file of preferences."""

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
    """Raise for a file that can't be read, unless a policy was aligned on it."""
    path = run.config.preferences.path
    # An aligned policy does not need the file any more; a folder is always wrong.
    if path and (run.manifest.get(f"dpo/{PREFERENCES}") is None or Path(path).is_dir()):
        preference_format(path)


def given_pairs(run: Run) -> tuple[list[RenderedPair], dict[str, Any]]:
    """Return the pairs of `preferences.path`, rendered for the run's policy.

    Returns:
        The pairs in the order of the file, and counts of its rows.

    Raises:
        InputError: the file can't be read, or has no pair to train on (names the reasons).
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
            f"{config.path}: no pair to train on in {account.read} rows; expected one or more "
            f"(dropped: {why or 'none'})"
        )
    return pairs, {"format": given, **facts}


def _of_a_run(path: str, view: View, account: PreferenceAccount) -> Iterator[Preference]:
    """Yield the pairs of a run's file."""
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
