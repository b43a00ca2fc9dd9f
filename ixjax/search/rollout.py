"""Play on: many simulated dialogues at once, from wherever they stand to their end.

What a speaker says is a function of an identity: `[S, 6]` uint32 of seed, condition, node, sample,
turn and speaker. Nothing of it is a position in a batch, so a dialogue comes out the same whatever
is played beside it, on any number of devices and after a restart (docs/algorithm.md, "The tree").
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ixjax.dialogue.types import OutcomeReading, Utterance
from ixjax.generation import Speaker, User
from ixjax.generation.speakers import SILENCE

POLICY, USER = 0, 1
"""Speaker tags, the last column of an identity."""


def identity_base(
    *, seed: int, condition: np.ndarray, node: np.ndarray, sample: np.ndarray
) -> np.ndarray:
    """`[S, 4]` uint32: the part of an identity that a dialogue keeps while it plays on."""
    columns = np.broadcast_arrays(np.int64(seed), condition, node, sample)
    return (np.stack(columns, axis=-1) & 0xFFFFFFFF).astype(np.uint32)


def turn_identities(base: np.ndarray, turns: np.ndarray, speaker: int) -> np.ndarray:
    """`[S, 6]` uint32: who (`speaker`) says the turn after `turns` policy turns."""
    tail = np.stack(np.broadcast_arrays(turns, speaker), axis=-1)
    return np.concatenate([base, tail.astype(np.uint32)], axis=1)


def hashed(text: str) -> int:
    """A condition's id as a number that is the same in every process (`hash` is not)."""
    return zlib.crc32(text.encode())


def words(utterance: Utterance) -> str:
    """What the other side hears of a turn after which the dialogue goes on; never empty."""
    return utterance.text or SILENCE


def heard(utterances: Sequence[Utterance | None], where: np.ndarray) -> list[str | None]:
    """The words of the rows `where`, None for the others: what the other side listens to."""
    return [
        words(said) if on and said is not None else None
        for said, on in zip(utterances, where, strict=True)
    ]


def ended(utterances: Sequence[Utterance | None]) -> np.ndarray:
    """`[S]` whether the user closed the dialogue with this turn."""
    return np.array([said is not None and said.ended for said in utterances])


def num_tokens(utterances: Sequence[Utterance | None]) -> np.ndarray:
    """`[S]` tokens sampled, 0 where nothing was said."""
    return np.array([0 if said is None else said.num_tokens for said in utterances])


def engagements(readings: Sequence[OutcomeReading | None]) -> np.ndarray:
    """`[S]` float64 engagement; nan where it is unreadable and where nothing was read."""
    return np.array([np.nan if reading is None else reading.engagement for reading in readings])


@dataclass(frozen=True)
class Played:
    """Dialogues that were played to their end.

    simulator: the simulator's state, each row after the last reaction.
    turns: `[S]` policy turns in each dialogue.
    tokens: `[S, 2]` tokens sampled by the policy and by the simulator.
    """

    simulator: Any
    turns: np.ndarray  # [S]
    tokens: np.ndarray  # [S, 2]


def play_on(
    policy: Speaker,
    simulator: User,
    policy_state: Any,
    simulator_state: Any,
    *,
    base: np.ndarray,
    turns: np.ndarray,
    alive: np.ndarray,
    max_turns: int,
) -> Played:
    """Policy and simulator in turn, until the simulator ends a dialogue or it has `max_turns`.

    Consumes both states.

    Args:
        policy: moves first.
        simulator: answers, and may leave.
        policy_state: S rows at a decision.
        simulator_state: the same S rows as the simulator sees them.
        base: `[S, 4]` see `identity_base`.
        turns: `[S]` policy turns so far.
        alive: `[S]` rows to play; the others stay as they are.
        max_turns: a dialogue with this many policy turns is over.
    """
    turns, alive = turns.copy(), alive & (turns < max_turns)
    tokens = np.zeros((len(turns), 2), np.int64)
    while alive.any():
        policy_state, responses = policy.speak(
            policy_state, turn_identities(base, turns, POLICY), alive
        )
        simulator_state = simulator.listen(simulator_state, heard(responses, alive))
        simulator_state, reactions = simulator.speak(
            simulator_state, turn_identities(base, turns, USER), alive
        )
        tokens += np.stack([num_tokens(responses), num_tokens(reactions)], axis=1)
        turns += alive
        alive &= ~ended(reactions) & (turns < max_turns)
        if alive.any():
            policy_state = policy.listen(policy_state, heard(reactions, alive))
    return Played(simulator_state, turns, tokens)
