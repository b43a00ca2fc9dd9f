"""Preference pairs from the human dialogues: the human's turn against the policy's own sample.

The paper mixes such pairs into the ones that the search found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ixjax.dialogue.types import Dialogue
from ixjax.generation import Speaker
from ixjax.generation.turns import SILENCE, hashed
from ixjax.search.preference import PreferencePair


def human_pairs(
    policy: Speaker, dialogues: Sequence[Dialogue], *, count: int, batch: int, seed: int
) -> Iterator[PreferencePair | None]:
    """Pairs at `count` random policy turns of `dialogues`, no turn twice.

    Yields:
        One pair for each drawn turn; None where the policy's sample equals the human's turn, or
        has no word in it.
    """
    turns = [
        (dialogue, i)
        for dialogue in dialogues
        for i, turn in enumerate(dialogue.turns)
        if turn.role == "policy"
    ]
    order = np.random.default_rng(seed).permutation(len(turns))[:count]
    for start in range(0, len(order), batch):
        chosen = [turns[i] for i in order[start : start + batch]]
        histories = [dialogue.before(i) for dialogue, i in chosen]
        padding = [histories[-1]] * (batch - len(histories))  # the row count never changes
        active = np.arange(batch) < len(histories)
        identities = np.array(
            [[hashed(d.id), len(d.turns)] for d in [*histories, *padding]], np.uint32
        )
        _, utterances = policy.speak(policy.start([*histories, *padding]), identities, active)
        for history, (dialogue, i), said in zip(histories, chosen, utterances, strict=False):
            human = dialogue.turns[i].text
            if said is None or said.text in (human, SILENCE):
                yield None
                continue
            yield PreferencePair.from_human(history, chosen=human, rejected=said.text)
