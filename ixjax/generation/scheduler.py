"""Play: two speakers in many dialogues, each to its end, with the decode batch kept full.

Dialogues advance independently. Whoever's turn has ended leaves the batch at the next pause, the
other side reads what was said and takes a place, and a dialogue that is over makes room for the
next one. Speakers that share an engine share its batch; those that don't have a batch each, and one
goes on while it is filled. Nothing is read before it has to be, or fills a pass with others. What
is said does not depend on any of this: turns are drawn by identity (`ixjax.generation.turns`).

`play` takes any two speakers; those without an engine are played in lockstep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation.buckets import bucket
from ixjax.generation.contexts import Turns
from ixjax.generation.games import Finished, Game, root_of, uttered
from ixjax.generation.lockstep import play_in_lockstep
from ixjax.generation.protocols import Speaker, User
from ixjax.generation.speakers import ModelSpeaker, Rows
from ixjax.generation.turns import POLICY, USER, words

PAUSE = 1 / 8  # of a batch: turns that have ended, for which decoding pauses
OVER = 1 / 8  # of the places: dialogues that are over, for which outcomes are read and others begun


def play(
    policy: Speaker,
    user: User,
    games: Sequence[Game],
    *,
    max_turns: int,
    rows: int,
    states: tuple[Any, Any] | None = None,
) -> list[Finished]:
    """Policy and user in turn, until the user ends a dialogue or it has `max_turns`.

    Args:
        policy: moves first.
        user: answers, and may leave.
        games: what to play, the first ones first.
        max_turns: a dialogue with this many policy turns is over.
        rows: dialogues that are played side by side at the most.
        states: of policy and user, to go on from (`Game.row`); they stay valid.

    Returns:
        One for each game, in their order.
    """
    if isinstance(policy, ModelSpeaker) and isinstance(user, ModelSpeaker):
        scheduler = Scheduler(policy, user, max_turns=max_turns, rows=rows, states=states)
        return scheduler.play(games)
    found = []
    for start in range(0, len(games), rows):
        part = list(games[start : start + rows])
        found += play_in_lockstep(policy, user, part, max_turns, rows, states)
    return found


def _by_row(identities: dict[int, tuple[int, ...]], rows: int) -> np.ndarray:
    """`[rows, k]` uint32: identities by row, zeros elsewhere."""
    [length] = {len(parts) for parts in identities.values()}
    array = np.zeros((rows, length), np.uint32)
    for row, parts in identities.items():
        array[row] = parts
    return array


@dataclasses.dataclass
class _Place:
    """A game in play, at one row of each side."""

    number: int
    game: Game
    turns: int
    speaker: int
    said: tuple[list[Utterance], list[Utterance]]
    ended: bool = False


@dataclasses.dataclass
class _Side:
    """One speaker's rows.

    state: contexts and dialogues; of speakers that share an engine, both hold the same contexts.
    first: of the rows that are this side's, of its state.
    unread: tokens that rows have yet to read before they can speak, by place.
    tokens: of the turns that are being spoken, by place.
    starts: tokens that their rows held before, by place.
    """

    speaker: ModelSpeaker
    state: Rows
    first: int = 0
    unread: dict[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    tokens: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    starts: dict[int, int] = dataclasses.field(default_factory=dict)


def places(policy: ModelSpeaker, user: ModelSpeaker, rows: int) -> int:
    """Rows that each side keeps for dialogues in play, of which there are `rows` at the most."""
    engine = policy.engine
    in_flight = 1 if engine is user.engine else engine.config.in_flight
    # Half a batch more, since some are over and wait for their outcomes to be read.
    return min(round((in_flight + 1 / 2) * engine.config.rows), bucket(rows))


class Scheduler:
    """Keeps the decode batches of two `ModelSpeaker`s full.

    Args:
        policy: moves first.
        user: answers, and may leave.
        max_turns: a dialogue with this many policy turns is over.
        rows: dialogues that are played side by side at the most.
        states: see `play`.
    """

    def __init__(
        self,
        policy: ModelSpeaker,
        user: ModelSpeaker,
        *,
        max_turns: int,
        rows: int,
        states: tuple[Rows, Rows] | None = None,
    ):
        self._max_turns, self._states = max_turns, states
        self._shared = policy.engine is user.engine
        self._speakers = (policy, user)
        self._batch = policy.engine.config.rows
        self._size = places(policy, user, rows)
        self._finished: dict[int, Finished] = {}

    def play(self, games: Sequence[Game]) -> list[Finished]:
        """Every game to its end; see `ixjax.generation.scheduler.play`."""
        self._places: dict[int, _Place] = {}
        self._sides = self._make_sides()
        queue, speaker = list(enumerate(games))[::-1], POLICY
        while queue or self._places:
            self._admit(queue)
            speaker = self._next_speaker(speaker)
            if self._waiting(speaker):
                self._decode([POLICY, USER] if self._shared else [speaker])
            self._read_outcomes(all_of_them=not any(map(self._waiting, (POLICY, USER))))
        for side in self._sides:
            side.speaker.engine.give_back(side.state.contexts)
        return [self._finished[number] for number in range(len(games))]

    def _make_sides(self) -> list[_Side]:
        policy, user = self._speakers
        rows = self._size * (1 + self._shared)
        adapters = [[speaker.adapter] * self._size for speaker in self._speakers]
        if self._shared:
            contexts = [policy.engine.borrow([*adapters[POLICY], *adapters[USER]])] * 2
        else:
            contexts = [s.engine.borrow(a) for s, a in zip(self._speakers, adapters, strict=True)]
        states = [Rows(c, [None] * rows, [None] * rows, [()] * rows) for c in contexts]
        return [
            _Side(policy, states[POLICY]),
            _Side(user, states[USER], first=self._size * self._shared),
        ]

    def _update(self, side: _Side, state: Rows) -> None:
        """A side's new state; the other side's contexts may be the same ones."""
        side.state = state
        if self._shared:
            for other in self._sides:
                other.state = dataclasses.replace(other.state, contexts=state.contexts)

    def _waiting(self, speaker: int) -> list[int]:
        """Places where it is this speaker's turn."""
        return [
            i for i, place in self._places.items() if place.speaker == speaker and not self._over(i)
        ]

    def _next_speaker(self, speaker: int) -> int:
        """Whose turns go on, after this speaker's did."""
        waiting = [self._waiting(POLICY), self._waiting(USER)]
        number = [len(places) for places in waiting]
        # A side goes on while it fills its batch: the other then reads many turns at once.
        if number[speaker] >= self._batch:
            return speaker
        if max(number) >= self._batch:
            return int(np.argmax(number))
        # Towards the end nobody does, and whoever is furthest behind keeps the others waiting.
        behind = [(self._places[i].turns, k) for k in (POLICY, USER) for i in waiting[k]]
        return min(behind, default=(0, speaker))[1]

    def _over(self, i: int) -> bool:
        place = self._places[i]
        done = place.turns >= self._max_turns and place.speaker == POLICY
        return place.game.over or place.ended or done

    def _admit(self, queue: list[tuple[int, Game]]) -> None:
        """Free places to the next games."""
        free = [i for i in range(self._size) if i not in self._places]
        new = {i: queue.pop() for i in free[: len(queue)]}
        if not new:
            return
        for i, (number, game) in new.items():
            self._places[i] = _Place(number, game, game.turns, game.first, ([], []))
        for k, side in enumerate(self._sides):
            rows = [side.first + i for i in new]
            if self._states is not None:
                sources = np.array([game.row for _, game in new.values()])
                stored = side.speaker.store(side.state, np.array(rows), self._states[k], sources)
                self._update(side, stored)
                continue
            roots: list[Dialogue | None] = [None] * len(side.state.dialogues)
            for row, (_, game) in zip(rows, new.values(), strict=True):
                roots[row] = root_of(game)
            state, unread = side.speaker.reset(side.state, roots)
            self._update(side, state)
            side.unread |= {i: unread[side.first + i] for i in new}

    def _decode(self, speakers: Sequence[int]) -> None:
        """Let turns of these speakers go on until some have ended."""
        engine = self._speakers[speakers[0]].engine
        waiting = [(k, i) for k in speakers for i in self._waiting(k)]
        self._read(speakers, waiting, enough=min(self._batch, len(waiting)))
        places = [(k, i) for k, i in waiting if i not in self._sides[k].unread]
        # Turns go on to their end, and then those that are furthest behind go first, so that few
        # are left alone at the end.
        places.sort(key=lambda p: (p[1] not in self._sides[p[0]].tokens, self._places[p[1]].turns))
        places = places[: self._batch]
        for k in speakers:
            self._begin(self._sides[k], [i for which, i in places if which == k])
        contexts, decoded = engine.decode_chunk(
            self._sides[speakers[0]].state.contexts,
            self._turns(places),
            stay=max(len(places) - max(round(PAUSE * self._batch), 1), 0),
        )
        for k in speakers:
            side = self._sides[k]
            self._update(side, dataclasses.replace(side.state, contexts=contexts))
        for k, i in places:
            side = self._sides[k]
            side.tokens[i] += decoded.tokens[side.first + i]
        for k in speakers:
            done = [i for which, i in places if which == k and not decoded.running[self._row(k, i)]]
            self._settle(k, done)

    def _row(self, speaker: int, place: int) -> int:
        return self._sides[speaker].first + place

    def _read(
        self, speakers: Sequence[int], places: Sequence[tuple[int, int]], *, enough: int
    ) -> None:
        """Read on, until `enough` of these (speaker, place) have nothing left to read."""
        state = self._sides[speakers[0]].state
        tokens: list[Sequence[int]] = [()] * len(state.dialogues)
        for k in speakers:
            for i, unread in self._sides[k].unread.items():
                tokens[self._row(k, i)] = unread
        needed = [self._row(k, i) for k, i in places]
        if sum(not tokens[row] for row in needed) >= enough:
            return
        engine = self._speakers[speakers[0]].engine
        contexts, left = engine.extend_some(state.contexts, tokens, needed=needed, enough=enough)
        for k in speakers:
            side = self._sides[k]
            self._update(side, dataclasses.replace(side.state, contexts=contexts))
            unread = {i: left[self._row(k, i)] for i in side.unread}
            side.unread = {i: rest for i, rest in unread.items() if rest}

    def _begin(self, side: _Side, places: Sequence[int]) -> None:
        """Begin the turns of these places, where none is being spoken."""
        for i in places:
            if i not in side.tokens:
                side.tokens[i] = []
                side.starts[i] = len(side.state.contexts.tokens[side.first + i])

    def _identity(self, speaker: int, place: int) -> tuple[int, ...]:
        return (*self._places[place].game.identity, self._places[place].turns, speaker)

    def _turns(self, places: Sequence[tuple[int, int]]) -> Turns:
        """What is to be said at these (speaker, place): the rest of each turn."""
        rows = len(self._sides[places[0][0]].state.dialogues)
        owner = [int(row >= self._size) if self._shared else places[0][0] for row in range(rows)]
        speakers = [self._speakers[k] for k in owner]
        identities: dict[int, tuple[int, ...]] = {}
        said: list[Sequence[int]] = [()] * rows
        limits = np.zeros(rows, np.int32)
        for k, i in places:
            side, row = self._sides[k], self._row(k, i)
            identities[row] = self._identity(k, i)
            said[row] = side.tokens[i]
            limits[row] = side.speaker.longest_turn(identities[row]) - len(said[row])
        return Turns(
            sampling=[speaker.sampling for speaker in speakers],
            seed=[speaker.seed for speaker in speakers],
            identities=_by_row(identities, rows),
            limits=limits,
            end_ids=[speaker.view.template.end_ids for speaker in speakers],
            stops=[speaker.engine.stop_set(speaker.sampling.stop) for speaker in speakers],
            said=said,
        )

    def _settle(self, speaker: int, places: Sequence[int]) -> None:
        """Turns that have ended: told to the other side, and perhaps the last."""
        if not places:
            return
        side, other = self._sides[speaker], self._sides[1 - speaker]
        rows = len(side.state.dialogues)
        active, starts = np.zeros(rows, bool), side.state.contexts.lengths
        tokens: list[list[int]] = [[] for _ in range(rows)]
        identities: dict[int, tuple[int, ...]] = {}
        for i in places:
            row = side.first + i
            active[row], starts[row] = True, side.starts.pop(i)
            tokens[row], identities[row] = side.tokens.pop(i), self._identity(speaker, i)
        state, said = side.speaker.settle(
            side.state, starts, tokens, _by_row(identities, rows), active
        )
        self._update(side, state)
        texts: list[str | None] = [None] * rows
        unread: list[Sequence[int]] = [()] * rows
        for i, left in other.unread.items():
            unread[other.first + i] = left
        for i in places:
            place, utterance = self._places[i], uttered(said[side.first + i])
            place.said[speaker].append(utterance)
            place.turns += speaker == USER
            place.speaker = 1 - speaker
            place.ended = speaker == USER and utterance.ended
            if not self._over(i):
                texts[other.first + i] = words(utterance)
        state, unread = other.speaker.hear(other.state, texts, unread)
        self._update(other, state)
        other.unread |= {i: unread[other.first + i] for i in places if unread[other.first + i]}

    def _read_outcomes(self, *, all_of_them: bool) -> None:
        """Read what games have come to, once many are over, and free their places."""
        over = [i for i in self._places if self._over(i)]
        if not over or (len(over) < round(OVER * self._size) and not all_of_them):
            return
        self._read([USER], [(USER, i) for i in over], enough=len(over))
        user = self._sides[USER]
        active = np.zeros(len(user.state.dialogues), bool)
        active[[self._row(USER, i) for i in over]] = True
        readings = user.speaker.outcomes(user.state, active)
        for i in over:
            place = self._places.pop(i)
            for side in self._sides:
                side.unread.pop(i, None)
            reading = readings[self._row(USER, i)]
            said = (tuple(place.said[POLICY]), tuple(place.said[USER]))
            self._finished[place.number] = Finished(reading, place.turns, place.ended, said)
