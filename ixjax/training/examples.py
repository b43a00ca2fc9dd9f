"""SFT examples: dialogues rendered from one speaker's side, with the tokens to learn.

The policy learns the supporter's or persuader's turns. The simulator learns the user's turns and
the closing outcome line. It also learns the final outcome after random earlier user turns, so that
the outcome can be read at any turn (docs/algorithm.md, read-outs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.chat import Rendered, View
from ixjax.dialogue.types import Dialogue
from ixjax.padding import common_beginning


def sft_examples(
    dialogues: Sequence[Dialogue],
    view: View,
    *,
    max_tokens: int,
    prefix_outcome_rate: float,
    seed: int,
) -> list[Rendered]:
    """Render every dialogue for `view.role`.

    Args:
        dialogues: the training dialogues.
        view: the speaker to train.
        max_tokens: longest example; the oldest turns are dropped whole.
        prefix_outcome_rate: simulator only: probability that a user turn, except the last, gives
            another example, which scores the final outcome after that turn. It is a branch of the
            dialogue's own example, unless a row lacks the room.
        seed: of the choice of these turns.
    """
    examples = [view.training(d, max_tokens=max_tokens, outcome=True) for d in dialogues]
    if view.role == "user":
        rng = np.random.default_rng(seed)
        for number, dialogue in enumerate(dialogues):
            if dialogue.outcome is None:
                continue
            spoken = [i for i, turn in enumerate(dialogue.turns) if turn.role == "user"][:-1]
            chosen = [i for i in spoken if rng.random() < prefix_outcome_rate]
            earlier = [view.prefix_outcome(dialogue, i, max_tokens=max_tokens) for i in chosen]
            examples[number], *others = _joined([examples[number], *earlier[::-1]], max_tokens)
            examples += others
    every = lambda example: (example, *example.branches)
    return [e for e in examples if any(any(one.scored) for one in every(e))]


def _joined(examples: Sequence[Rendered], max_tokens: int) -> list[Rendered]:
    """Make the later examples of a dialogue branches of the first, while a row has room for them.

    What finds no room is joined in the same way.

    Args:
        examples: of one dialogue, those of more turns first.
        max_tokens: tokens of a row.
    """
    main, *others = examples
    room, branches, left = max_tokens - len(main.tokens), [], []
    for one in others:
        new = len(one.tokens) - common_beginning(one.tokens, main.tokens)
        # A context that lost its oldest turns begins otherwise.
        if one.dropped_turns == main.dropped_turns and new <= room:
            branches.append(one)
            room -= new
        else:
            left.append(one)
    joined = dataclasses.replace(main, branches=tuple(branches))
    return [joined, *(_joined(left, max_tokens) if left else [])]
