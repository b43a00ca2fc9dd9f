"""Preference pairs from human dialogues: the human's turn is preferred to the policy's sample.

The paper mixes such pairs with pairs of the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import Speaker, Task, run_all
from ixjax.generation.turns import SILENCE, hashed
from ixjax.search.preference import PreferencePair


def human_pairs(
    policy: Speaker, dialogues: Sequence[Dialogue], *, count: int, batch: int, seed: int
) -> Iterator[PreferencePair | None]:
    """Draw pairs at `count` random policy turns of `dialogues`, without replacement.

    Yields:
        One pair for each drawn turn; None if the policy's sample equals the human's turn or is
        empty.
    """

    def sample(history: Dialogue) -> Task[Utterance]:
        participant = policy.begin(history)
        said = yield from participant.speak((hashed(history.id), len(history.turns)))
        participant.close()
        return said

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
        utterances = run_all(map(sample, histories), at_once=batch)
        for history, (dialogue, i), said in zip(histories, chosen, utterances, strict=True):
            human = dialogue.turns[i].text
            if said.text in (human, SILENCE):
                yield None
                continue
            yield PreferencePair.from_human(history, chosen=human, rejected=said.text)
