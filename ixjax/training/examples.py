"""What each speaker is trained on: dialogues rendered from its side, with the tokens it must learn.

The policy learns the supporter's or persuader's turns. The simulator learns the user's turns and
the closing outcome line; copies of its dialogues cut after random user turns carry the final
outcome too, so that the outcome can be read at any turn (docs/algorithm.md, read-outs).
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
        max_tokens: longest example; older turns are dropped whole.
        prefix_outcome_rate: simulator only: each user turn but the last becomes, with this
            probability, one more example that scores the final outcome after that turn.
        seed: draws those turns.
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
