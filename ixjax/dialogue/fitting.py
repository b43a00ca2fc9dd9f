"""Fit a history into a token limit: whole oldest turns are dropped first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ixjax.dialogue.chat_template import ChatTemplate, TokenSegment
from ixjax.dialogue.rendering import SpeakerTurn


@dataclasses.dataclass(frozen=True)
class Fit:
    """The part of a history that fits.

    body: the opening, the newest turns and the tail; None if the shortest form does not fit.
    dropped_turns: oldest turns that did not fit.
    tokens: number of tokens of the body, or of the shortest form.
    """

    body: TokenSegment | None
    dropped_turns: int
    tokens: int


def fit_history(
    template: ChatTemplate,
    system: str | None,
    turns: Sequence[SpeakerTurn],
    tail: TokenSegment,
    *,
    cue: bool,
    keep: int,
    max_tokens: int,
) -> Fit:
    """Drop the fewest oldest turns with which the history fits.

    Args:
        template: renders the history.
        system: the speaker's instructions, never dropped; None: there are none.
        turns: the oldest first.
        tail: tokens after the turns, never dropped.
        cue: whether this speaker speaks next.
        keep: number of newest turns that are never dropped.
        max_tokens: limit of all segments together.
    """
    needed = 0
    for dropped in range(len(turns) - keep + 1):
        kept = turns[dropped:]
        if dropped and len(kept) > keep and kept[0].own and not template.opens_own:
            continue  # a neutral opening would state that nothing came before
        segments = [*template.segments(system, kept, cue=cue), tail]
        needed = sum(len(segment.tokens) for segment in segments)
        if needed <= max_tokens:
            return Fit(TokenSegment.join(segments), dropped, needed)
    return Fit(None, len(turns) - keep, needed)
