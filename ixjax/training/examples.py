"""SFT examples: dialogues rendered from one speaker's side, with the tokens to learn.

The policy learns the supporter's or persuader's turns. The simulator learns the user's turns and
the closing outcome line. It also learns the final outcome after random earlier user turns, so that
the outcome can be read at any turn (docs/algorithm.md, read-outs).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.chat import Rendered, View
from ixjax.dialogue.types import Dialogue


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
            another example, which scores the final outcome after that turn.
        seed: of the choice of these turns.
    """
    examples = [view.training(d, max_tokens=max_tokens, outcome=True) for d in dialogues]
    if view.role == "user":
        rng = np.random.default_rng(seed)
        for dialogue in dialogues:
            if dialogue.outcome is None:
                continue
            spoken = [i for i, turn in enumerate(dialogue.turns) if turn.role == "user"][:-1]
            chosen = [i for i in spoken if rng.random() < prefix_outcome_rate]
            examples += [view.prefix_outcome(dialogue, i, max_tokens=max_tokens) for i in chosen]
    return [example for example in examples if any(example.scored)]
