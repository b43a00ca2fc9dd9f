"""Rollouts: a policy and a user speak in turn until the dialogue is over.

`rollout` continues one dialogue; `play` plays many from their roots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ixjax.dialogue.types import Dialogue, OutcomeReading, Utterance
from ixjax.generation.config import EngineConfig
from ixjax.generation.driver import Task, run_all
from ixjax.generation.memory import TYPICAL, dialogue_tokens
from ixjax.generation.protocols import Participant, Speaker, User, UserParticipant
from ixjax.generation.speakers import ModelSpeaker, reserve
from ixjax.generation.turns import POLICY, USER, words
from ixjax.padding import bucket


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A dialogue that was played to its end.

    reading: its outcome, as the user reads it.
    turns: policy turns of the dialogue, those before the rollout included.
    ended: whether the user closed it.
    said: the turns of the rollout, by speaker.
    """

    reading: OutcomeReading
    turns: int
    ended: bool
    said: tuple[tuple[Utterance, ...], tuple[Utterance, ...]]

    def tokens(self, speaker: int) -> tuple[int, ...]:
        """Return the tokens of each turn of `POLICY` or `USER`."""
        return tuple(said.num_tokens for said in self.said[speaker])


def rollout(
    policy: Participant,
    user: UserParticipant,
    identity: Sequence[int],
    *,
    turns: int = 0,
    max_turns: int,
) -> Task[Rollout]:
    """Continue a dialogue to its end, and close its participants.

    Args:
        policy: moves first.
        user: in the same dialogue.
        identity: of the rollout; with the turn and the speaker it is the identity of each turn.
        turns: policy turns before the rollout.
        max_turns: a dialogue with this many policy turns is over.
    """
    responses: list[Utterance] = []
    reactions: list[Utterance] = []
    ended = False
    while turns < max_turns and not ended:
        response = yield from policy.speak((*identity, turns, POLICY))
        user.hear(words(response))
        responses.append(response)
        reaction = yield from user.speak((*identity, turns, USER))
        reactions.append(reaction)
        turns, ended = turns + 1, reaction.ended
        if turns < max_turns and not ended:
            policy.hear(words(reaction))
    policy.close()
    reading = yield from user.outcome()
    user.close()
    return Rollout(reading, turns, ended, (tuple(responses), tuple(reactions)))


def play(
    policy: Speaker,
    user: User,
    roots: Sequence[tuple[Dialogue, Sequence[int]]],
    *,
    max_turns: int,
    rows: int,
) -> list[Rollout]:
    """Play many dialogues between a policy and a user, with full decode batches.

    Args:
        policy: moves first.
        user: answers, and may leave.
        roots: the beginning of each dialogue, and its identity (see `rollout`).
        max_turns: a dialogue with this many policy turns is over.
        rows: dialogues to play at once; two models may play a few less or more.

    Returns:
        One for each root, in order.
    """
    if min(rows, max_turns) < 1:
        raise ValueError(f"rows={rows}, max_turns={max_turns}; expected 1 or more of each")

    def one(root: Dialogue, identity: Sequence[int]) -> Task[Rollout]:
        return (
            yield from rollout(policy.begin(root), user.begin(root), identity, max_turns=max_turns)
        )

    at_once = side_by_side(policy, user, rows)

    def tokens(speaker: ModelSpeaker) -> int:
        dialogue = dialogue_tokens(max_turns, speaker.sampling.max_new_tokens, speaker.limit)
        return int(TYPICAL * min(at_once, len(roots)) * dialogue)

    reserve([policy, user], tokens)
    return run_all((one(root, identity) for root, identity in roots), at_once=at_once)


def side_by_side(policy: Speaker, user: User, rows: int) -> int:
    """Return how many dialogues of two speakers to play at once if `rows` are requested."""
    if not (isinstance(policy, ModelSpeaker) and isinstance(user, ModelSpeaker)):
        return rows
    return models_side_by_side(policy.engine.config, rows, shared=policy.engine is user.engine)


def models_side_by_side(config: EngineConfig, rows: int, *, shared: bool) -> int:
    """Return how many dialogues of two models to play at once, by the engine's settings.

    Args:
        config: of the engines.
        rows: dialogues requested.
        shared: whether both sides share one engine.
    """
    in_flight = 1 if shared else config.in_flight
    # Half a batch more, for dialogues that are over and wait for their outcomes.
    return min(round((in_flight + 1 / 2) * config.rows), bucket(rows))
