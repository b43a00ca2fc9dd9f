"""Sandbox dialogues from a seed, and two scripted supporters that bound a policy's gain.

Average supporters play the corpus; the need that the user shows changes their choice only a little.
The attentive supporter asks until the need shows and then acts on it, which a policy that reads the
dialogue can learn. Both see the turns alone, never the condition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ixjax.dialogue.scenarios.sandbox import world
from ixjax.dialogue.scenarios.sandbox.user import TrueUser, outcome_of
from ixjax.dialogue.types import Dialogue, UserCondition

MAX_EXCHANGES = 6  # responses in a dialogue of the corpus
# Probabilities of an average supporter's acts; the four needs have the rest.
ASKING = 0.1
IDLING = 0.1
FITTING = 0.3  # of the need that showed; the other three share the rest evenly
CORPUS_STREAM = 0x636F7270  # separates the corpus's draws from the user's


def average_supporter(dialogue: Dialogue) -> Mapping[str, float]:
    """Return the responses of the corpus's supporters, with their probabilities."""
    shown = world.shown_need(dialogue)
    helping = 1 - ASKING - IDLING
    shares: dict[world.Act, float] = {"question": ASKING, "other": IDLING}
    for need in world.NEEDS:
        if shown is None:
            shares[need] = helping / len(world.NEEDS)
        else:
            others = (helping - FITTING) / (len(world.NEEDS) - 1)
            shares[need] = FITTING if need == shown else others
    return _worded(shares)


def attentive_supporter(dialogue: Dialogue) -> Mapping[str, float]:
    """Return the responses of a supporter who asks until the need shows, then acts on it."""
    return _worded({world.shown_need(dialogue) or "question": 1.0})


def _worded(shares: Mapping[world.Act, float]) -> dict[str, float]:
    return {
        text: share / len(world.RESPONSES[act])
        for act, share in shares.items()
        for text in world.RESPONSES[act]
    }


def sample_condition(name: str, rng: np.random.Generator) -> UserCondition:
    """Sample a user: need, distress 3..5, patience 2..3, all uniform."""
    return UserCondition(
        name,
        {
            "need": world.NEEDS[rng.integers(len(world.NEEDS))],
            "distress": int(rng.integers(3, 6)),
            "patience": int(rng.integers(2, 4)),
        },
    )


def generate_corpus(count: int, *, seed: int) -> list[Dialogue]:
    """Sample dialogues of the true user with average supporters.

    Args:
        count: number of dialogues; a longer corpus of the same seed begins with the shorter one.
        seed: 0 or more; dialogue i is a function of (seed, i).
    """
    return [_generate(i, seed) for i in range(count)]


def _generate(index: int, seed: int) -> Dialogue:
    name = f"sandbox-{seed}-{index}"
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(CORPUS_STREAM, index)))
    user = TrueUser(seed)
    dialogue = Dialogue(name, sample_condition(name, rng), turns=())
    dialogue, ended = _react(user, dialogue, (index, 0))
    for exchange in range(1, MAX_EXCHANGES + 1):
        if ended:
            break
        response = average_supporter(dialogue)
        chosen = rng.choice(len(response), p=list(response.values()))
        dialogue = dialogue.said("policy", list(response)[chosen])
        dialogue, ended = _react(user, dialogue, (index, exchange))
    return dataclasses.replace(
        dialogue, outcome=outcome_of(dialogue.condition, world.mood_in(dialogue))
    )


def _react(user: TrueUser, dialogue: Dialogue, identity: tuple[int, ...]) -> tuple[Dialogue, bool]:
    participant = user.begin(dialogue)
    said = participant.answer(identity)
    return participant.dialogue, said.ended
