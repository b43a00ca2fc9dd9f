"""A history in as many tokens as there is room for: the oldest turns go first, and go whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ixjax.dialogue.chat_template import ChatTemplate, Segment
from ixjax.dialogue.rendering import Said


@dataclasses.dataclass(frozen=True)
class Fit:
    """What of a history has room.

    body: the opening, the newest turns and the tail; None where not even the least has room.
    dropped_turns: oldest turns that had to go.
    tokens: of the body, or of the least that was tried.
    """

    body: Segment | None
    dropped_turns: int
    tokens: int


def fit_history(
    template: ChatTemplate,
    system: str | None,
    turns: Sequence[Said],
    tail: Segment,
    *,
    cue: bool,
    keep: int,
    max_tokens: int,
) -> Fit:
    """Leave out as few of the oldest turns as there must be.

    Args:
        template: renders the history.
        system: the speaker's instructions; they never go. None: there are none.
        turns: the oldest first.
        tail: what stands behind them.
        cue: this speaker speaks next.
        keep: newest turns that stay whatever happens.
        max_tokens: room for all of it.
    """
    needed = 0
    for dropped in range(len(turns) - keep + 1):
        kept = turns[dropped:]
        if dropped and len(kept) > keep and kept[0].own and not template.opens_own:
            continue  # a neutral opening would claim that nothing went before
        segments = [*template.segments(system, kept, cue=cue), tail]
        needed = sum(len(segment.tokens) for segment in segments)
        if needed <= max_tokens:
            return Fit(Segment.join(segments), dropped, needed)
    return Fit(None, len(turns) - keep, needed)
