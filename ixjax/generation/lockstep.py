"""Play in lockstep: for speakers without an engine, and what the scheduler is measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ixjax.dialogue.types import Utterance
from ixjax.generation.games import Finished, Game, root_of, uttered
from ixjax.generation.protocols import Speaker, User
from ixjax.generation.turns import USER, ended, heard, turn_identities


def play_in_lockstep(
    policy: Speaker,
    user: User,
    games: Sequence[Game],
    max_turns: int,
    rows: int,
    states: tuple[Any, Any] | None,
) -> list[Finished]:
    """All dialogues finish a turn before the next speaker's begins."""
    real = np.arange(rows) < len(games)
    # Always as many rows, so that nothing compiles anew.
    games = [*games, *[dataclasses.replace(games[-1], over=True)] * (rows - len(games))]
    if states is None:
        roots = [root_of(game) for game in games]
        policy_state, user_state = policy.start(roots), user.start(roots)
    else:
        copies = np.array([game.row for game in games])
        policy_state, user_state = policy.fork(states[0], copies), user.fork(states[1], copies)
    states_now, speakers = [policy_state, user_state], (policy, user)
    base = np.array([game.identity for game in games], np.uint32)
    turns = np.array([game.turns for game in games])
    left = np.zeros(len(games), bool)
    said: list[tuple[list[Utterance], list[Utterance]]] = [([], []) for _ in games]
    speaker = games[0].first
    if any(game.first != speaker for game in games):
        raise ValueError("games that are played in lockstep must begin with the same side's move")
    over = np.array([game.over for game in games])
    alive = ~over & ((turns < max_turns) | (speaker == USER))
    while alive.any():
        states_now[speaker], spoken = speakers[speaker].speak(
            states_now[speaker], turn_identities(base, turns, speaker), alive
        )
        for row in np.flatnonzero(alive):
            said[row][speaker].append(uttered(spoken[row]))
        if speaker == USER:
            turns = turns + alive
            left |= alive & ended(spoken)
            alive = alive & ~left & (turns < max_turns)
        speaker = 1 - speaker
        if alive.any():
            states_now[speaker] = speakers[speaker].listen(
                states_now[speaker], heard(spoken, alive)
            )
    readings = user.outcomes(states_now[USER], real)
    found = [
        Finished(reading, int(count), bool(gone), (tuple(responses), tuple(reactions)))
        for reading, count, gone, (responses, reactions) in zip(
            readings, turns, left, said, strict=True
        )
    ]
    return found[: int(real.sum())]
