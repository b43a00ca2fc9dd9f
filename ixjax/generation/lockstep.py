"""Play in lockstep: for speakers without an engine, and what the scheduler is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ixjax.dialogue.types import Utterance
from ixjax.generation.buckets import bucket
from ixjax.generation.games import Finished, Game
from ixjax.generation.in_play import Event, InPlay, play_out, root_of
from ixjax.generation.protocols import Speaker, User
from ixjax.generation.turns import USER, as_uint32, words


def play_in_lockstep(
    policy: Speaker, user: User, games: Sequence[Game], *, max_turns: int, rows: int
) -> list[Finished]:
    """As `ixjax.generation.play`, but that all games finish a turn before the next turn begins."""
    return play_out(Lockstep(policy, user, size=rows, max_turns=max_turns), games)


class Lockstep(InPlay):
    """Any two speakers, in whatever games are begun together; see `InPlay`.

    Args:
        policy: one side.
        user: the other.
        size: games in play at the most.
        kept: contexts that can be kept.
        max_turns: a dialogue with this many policy turns is over.
    """

    def __init__(self, policy: Speaker, user: User, *, size: int, kept: int = 0, max_turns: int):
        super().__init__(size=size, kept=kept, max_turns=max_turns)
        self._speakers, self._user = (policy, user), user
        # Few sizes: a speaker that compiles for a number of rows finds its programs there.
        self._begun, self._rows = (bucket(rows, smallest=1) for rows in (size, size + kept))
        self._states: list[Any] = [speaker.empty(self._rows) for speaker in self._speakers]

    def free(self) -> list[int]:
        """All places once no game is in play: those that begin together stay together."""
        return [] if self.places else list(range(self.size))

    def keep(self, places: Mapping[int, int]) -> None:
        """See `InPlay.keep`."""
        self._copy([self.size + number for number in places.values()], list(places))

    def _copy(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        if not rows:
            return
        for k, speaker in enumerate(self._speakers):
            copies = speaker.fork(self._states[k], np.array(sources))
            numbers = np.arange(len(rows))
            self._states[k] = speaker.store(self._states[k], np.array(rows), copies, numbers)

    def _make_ready(self, games: Mapping[int, Game]) -> None:
        kept = {i: game.kept for i, game in games.items() if game.root is None}
        known = {i: number for i, number in kept.items() if number is not None}
        self._copy(list(known), [self.size + number for number in known.values()])
        read = {i: root_of(game) for i, game in games.items() if i not in known}
        if not read:
            return
        # Always as many rows, so that nothing compiles anew.
        anyone = next(iter(read.values()))
        rows = np.array(list(read))
        for k, speaker in enumerate(self._speakers):
            started = speaker.start([read.get(i, anyone) for i in range(self._begun)])
            self._states[k] = speaker.store(self._states[k], rows, started, rows)

    def advance(self) -> list[tuple[int, Event]]:
        """A turn of one side, at all places where it is that side's; see `InPlay.advance`."""
        self._require_some()
        speaker = self.furthest_behind()
        waiting = self.waiting(speaker)
        if not waiting:
            return self._read_outcomes()
        active = np.zeros(self._rows, bool)
        active[waiting] = True
        identities = _by_row({i: self.places[i].identity for i in waiting}, self._rows)
        self._states[speaker], spoken = self._speakers[speaker].speak(
            self._states[speaker], identities, active
        )
        events: list[tuple[int, Event]] = []
        heard: list[str | None] = [None] * self._rows
        for i in waiting:
            utterance = _uttered(spoken[i])
            events += self._take_down(i, utterance)
            if not self.places[i].over:
                heard[i] = words(utterance)
        if any(text is not None for text in heard):
            other = 1 - speaker
            self._states[other] = self._speakers[other].listen(self._states[other], heard)
        return events

    def _read_outcomes(self) -> list[tuple[int, Event]]:
        done = self.done()
        active = np.zeros(self._rows, bool)
        active[done] = True
        readings = self._user.outcomes(self._states[USER], active)
        return self._finish(done, [readings[i] for i in done])


def _uttered(utterance: Utterance | None) -> Utterance:
    """What an active row said.

    Raises:
        ValueError: it said nothing.
    """
    if utterance is None:
        raise ValueError("a speaker said nothing for a row that is active")
    return utterance


def _by_row(identities: Mapping[int, tuple[int, ...]], rows: int) -> np.ndarray:
    """`[rows, k]` uint32: identities by row, zeros elsewhere; at least one is given."""
    [length] = {len(parts) for parts in identities.values()}
    array = np.zeros((rows, length), np.int64)
    for row, parts in identities.items():
        array[row] = parts
    return as_uint32(array)
