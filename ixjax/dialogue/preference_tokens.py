"""Preferences as tokens: a prompt and two responses, in the form that the model reads and writes.

A response is never cut. If a prompt and the longer response do not fit, the prompt loses its
oldest turns, then the oldest tokens of the last turn; a text prompt loses its oldest tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ixjax.dialogue.chat import RenderedPair
from ixjax.dialogue.chat_template import ChatTemplate, TokenSegment
from ixjax.dialogue.fitting import fit_history
from ixjax.dialogue.preferences import ChatPrompt, Preference, PreferenceAccount
from ixjax.dialogue.rendering import SpeakerTurn
from ixjax.io import InputError

LENGTHS = ("prompt", "chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
    """A prompt cut to fit.

    tokens: [T] up to the first token of a response.
    dropped_turns: oldest turns that did not fit.
    cut_tokens: oldest tokens that did not fit, of the oldest turn kept or of the text.
    """

    tokens: tuple[int, ...]
    dropped_turns: int = 0
    cut_tokens: int = 0


def render_preferences(
    preferences: Iterable[Preference],
    template: ChatTemplate,
    *,
    max_tokens: int,
    max_prompt: int = 0,
    account: PreferenceAccount,
) -> list[RenderedPair]:
    """Render preferences as tokens; those whose responses do not fit are counted and dropped.

    Args:
        preferences: the preferences to render.
        template: chat template of the model to be aligned.
        max_tokens: limit of a prompt with the longer of its responses.
        max_prompt: limit of a prompt; 0: the tokens that the longer response leaves.
        account: counts of the file, updated.

    Raises:
        InputError: the chat template refuses a row's messages (names the row).
    """
    pairs = []
    for preference in preferences:
        chosen, rejected = _responses(preference, template)
        room = max_tokens - max(len(chosen), len(rejected))
        room = min(room, max_prompt) if max_prompt else room
        prompt = _prompt(preference, template, room) if room > 0 else None
        if chosen == rejected:  # different texts that the tokenizer maps to the same tokens
            account.drop("equal_text", preference.where)
        elif prompt is None:
            account.drop("too_long", preference.where)
        else:
            account.shortened += bool(prompt.dropped_turns or prompt.cut_tokens)
            account.dropped_turns += prompt.dropped_turns
            account.cut_tokens += prompt.cut_tokens
            pairs.append(RenderedPair(prompt.tokens, chosen, rejected, prompt.dropped_turns))
    return pairs


def pair_lengths(pairs: Sequence[RenderedPair]) -> dict[str, dict[str, Any]]:
    """Return median, 95th percentile and maximum length in tokens, of prompts and responses."""
    found = {}
    for name in LENGTHS:
        lengths = np.array([len(getattr(pair, name)) for pair in pairs])
        median, high = np.percentile(lengths, [50, 95], method="higher")
        found[name] = {"median": int(median), "p95": int(high), "longest": int(lengths.max())}
    return found


def _responses(
    preference: Preference, template: ChatTemplate
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return both responses, each with its end token."""
    texts = preference.chosen, preference.rejected
    if isinstance(preference.prompt, str):
        chosen, rejected = (_text_response(template, preference.prompt, text) for text in texts)
    else:
        end = template.end_ids[0]
        chosen, rejected = ((*template.encode(text.strip()), end) for text in texts)
    return chosen, rejected


def _prompt(preference: Preference, template: ChatTemplate, room: int) -> FittedPrompt | None:
    if isinstance(preference.prompt, str):
        return _fit_text(_text_ids(template, preference.prompt), template, room)
    try:
        return _fit_chat(preference.prompt, template, room)
    except InputError as error:
        raise InputError(f"{preference.where}: {error}") from error


def _fit_chat(prompt: ChatPrompt, template: ChatTemplate, room: int) -> FittedPrompt | None:
    system, turns = prompt
    keep, nothing = min(1, len(turns)), TokenSegment.read(())
    fit = fit_history(template, system, turns, nothing, cue=True, keep=keep, max_tokens=room)
    if fit.body is not None:
        return FittedPrompt(fit.body.tokens, fit.dropped_turns)
    if not turns:
        return None
    newest = turns[-1]
    words = template.encode(newest.text.strip())
    cut = fit.tokens - room
    while cut < len(words):
        # The remaining text alone may have more tokens than it had within the whole text.
        left = template.decode(words[cut:]).lstrip("\ufffd")
        last = [SpeakerTurn(newest.own, left)]
        fit = fit_history(template, system, last, nothing, cue=True, keep=1, max_tokens=room)
        if fit.body is not None and left:
            return FittedPrompt(fit.body.tokens, len(turns) - 1, cut)
        cut += max(1, fit.tokens - room)
    return None


def _fit_text(ids: Sequence[int], template: ChatTemplate, room: int) -> FittedPrompt | None:
    """Return the newest tokens of a text, after its begin token if it has one."""
    begin = int(ids[:1] == [template.tokenizer.bos_token_id])
    cut = max(0, len(ids) - room)
    if cut >= len(ids) - begin:
        return None
    return FittedPrompt((*ids[:begin], *ids[begin + cut :]), cut_tokens=cut)


def _text_response(template: ChatTemplate, prompt: str, text: str) -> tuple[int, ...]:
    """Return the tokens that continue a text prompt, with the tokenizer's end token.

    If the tokenizer joins the end of the prompt and the beginning of the response into one token,
    the response is tokenised alone: the model continues from the tokens of the whole prompt.
    """
    end = str(template.tokenizer.eos_token or template.tokenizer.decode([template.end_ids[0]]))
    text = text if text.endswith(end) else text + end
    alone, whole = _text_ids(template, prompt), _text_ids(template, prompt + text)
    if whole[: len(alone)] == alone:
        return tuple(whole[len(alone) :])
    return tuple(template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _text_ids(template: ChatTemplate, text: str) -> list[int]:
    """Return a text's tokens, special tokens included, with exactly one begin token."""
    tokenizer = template.tokenizer
    begun = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    return list(tokenizer(text, add_special_tokens=not begun, verbose=False)["input_ids"])
