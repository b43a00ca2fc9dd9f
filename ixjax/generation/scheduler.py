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
from collections.abc import Mapping, Sequence

import numpy as np

from ixjax.generation.buckets import bucket
from ixjax.generation.config import EngineConfig
from ixjax.generation.contexts import Turns
from ixjax.generation.games import Finished, Game
from ixjax.generation.in_play import Event, InPlay, play_out, root_of
from ixjax.generation.lockstep import Lockstep
from ixjax.generation.protocols import Speaker, User
from ixjax.generation.rows import Rows
from ixjax.generation.speakers import ModelSpeaker
from ixjax.generation.turns import POLICY, USER, as_uint32, words

PAUSE = 1 / 8  # of a batch: turns that have ended, for which decoding pauses
OVER = 1 / 8  # of the places: dialogues that are over, for which outcomes are read and others begun


def play(
    policy: Speaker, user: User, games: Sequence[Game], *, max_turns: int, rows: int
) -> list[Finished]:
    """Policy and user in turn, until the user ends a dialogue or it has `max_turns`.

    Args:
        policy: one side.
        user: answers, and may leave.
        games: what to play, the first ones first.
        max_turns: a dialogue with this many policy turns is over.
        rows: dialogues that are played side by side at the most.

    Returns:
        One for each game, in their order.
    """
    board = side_by_side(policy, user, max_turns=max_turns, rows=rows)
    finished = play_out(board, games)
    board.close()
    return finished


def side_by_side(
    policy: Speaker, user: User, *, max_turns: int, rows: int, at_least: int = 1, kept: int = 0
) -> InPlay:
    """Where games of these two are played.

    Args:
        policy: one side.
        user: the other.
        max_turns: a dialogue with this many policy turns is over.
        rows: games that are wanted side by side; there may be room for fewer, or a few more.
        at_least: games that there must be room for.
        kept: contexts that can be kept.
    """
    if min(rows, max_turns) < 1:
        raise ValueError(f"expected 1 or more of each, got rows={rows}, max_turns={max_turns}")
    if isinstance(policy, ModelSpeaker) and isinstance(user, ModelSpeaker):
        size = max(places(policy, user, rows), at_least)
        return Scheduler(policy, user, max_turns=max_turns, size=size, kept=kept)
    return Lockstep(policy, user, max_turns=max_turns, size=max(rows, at_least), kept=kept)


@dataclasses.dataclass
class _Side:
    """One speaker's rows.

    state: contexts and dialogues; of speakers that share an engine, both hold the same contexts.
    first: the row of the first place.
    first_kept: the row of the first contexts that are kept.
    tokens: of the turns that are being spoken, by place.
    logprobs: sums of theirs.
    starts: tokens that their rows held before, by place.
    """

    speaker: ModelSpeaker
    state: Rows
    first: int
    first_kept: int
    tokens: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    logprobs: dict[int, float] = dataclasses.field(default_factory=dict)
    starts: dict[int, int] = dataclasses.field(default_factory=dict)

    def unread(self, place: int) -> Sequence[int]:
        """Tokens that a place has yet to read before it can be spoken from."""
        return self.state.unread[self.first + place]


def places(policy: ModelSpeaker, user: ModelSpeaker, rows: int) -> int:
    """Rows that each side has for dialogues in play, where `rows` of them are wanted."""
    engine = policy.engine
    return rows_in_play(engine.config, rows, shared=engine is user.engine)


def rows_in_play(config: EngineConfig, rows: int, *, shared: bool) -> int:
    """The same by the engine's settings, and whether both sides share one."""
    in_flight = 1 if shared else config.in_flight
    # Half a batch more, since some are over and wait for their outcomes to be read.
    return min(round((in_flight + 1 / 2) * config.rows), bucket(rows))


class Scheduler(InPlay):
    """Keeps the decode batches of two `ModelSpeaker`s full; see `InPlay`.

    Args:
        policy: one side.
        user: the other.
        max_turns: a dialogue with this many policy turns is over.
        size: games in play at the most.
        kept: contexts that can be kept.
    """

    def __init__(
        self,
        policy: ModelSpeaker,
        user: ModelSpeaker,
        *,
        max_turns: int,
        size: int,
        kept: int = 0,
    ):
        super().__init__(size=size, kept=kept, max_turns=max_turns)
        self._shared = policy.engine is user.engine
        self._speakers = (policy, user)
        self._batch = policy.engine.config.rows
        self._sides = self._make_sides()
        self._speaker = POLICY

    def _make_sides(self) -> list[_Side]:
        policy, user = self._speakers
        if not self._shared:
            contexts = [
                s.engine.borrow([s.adapter] * (self.size + self.kept)) for s in self._speakers
            ]
            return [
                _Side(s, Rows.of(c), first=0, first_kept=self.size)
                for s, c in zip(self._speakers, contexts, strict=True)
            ]
        adapters = [[s.adapter] * n for n in (self.size, self.kept) for s in self._speakers]
        shared = policy.engine.borrow([a for part in adapters for a in part])
        return [
            _Side(policy, Rows.of(shared), first=0, first_kept=2 * self.size),
            _Side(user, Rows.of(shared), first=self.size, first_kept=2 * self.size + self.kept),
        ]

    def close(self) -> None:
        """See `InPlay.close`."""
        super().close()
        for side in self._sides:
            side.speaker.engine.give_back(side.state.contexts)

    def _update(self, side: _Side, state: Rows) -> None:
        """A side's new state; the other side's contexts may be the same ones."""
        side.state = state
        if self._shared:
            for other in self._sides:
                other.state = dataclasses.replace(other.state, contexts=state.contexts)

    def _make_ready(self, games: Mapping[int, Game]) -> None:
        kept = {i: game.kept for i, game in games.items() if game.kept is not None}
        roots = {i: game.root for i, game in games.items() if game.root is not None}
        for i in games.keys() - kept.keys() - roots.keys():
            root_of(games[i])  # raises
        for side in self._sides:
            if kept:
                sources = [side.first_kept + number for number in kept.values()]
                # Once here rather than once in each place.
                self._update(side, side.speaker.read(side.state, sources))
                rows = [side.first + i for i in kept]
                self._update(side, side.speaker.move(side.state, rows, sources))
            new = {side.first + i: root for i, root in roots.items()}
            held = [side.first + i for i in roots.keys() & kept.keys()]
            self._update(side, side.speaker.reset(side.state, new, held=held))

    def keep(self, places: Mapping[int, int]) -> None:
        """See `InPlay.keep`."""
        for side in self._sides:
            rows = [side.first_kept + number for number in places.values()]
            sources = [side.first + i for i in places]
            self._update(side, side.speaker.move(side.state, rows, sources))

    def advance(self) -> list[tuple[int, Event]]:
        """Until decoding pauses; see `InPlay.advance`."""
        self._require_some()
        self._speaker = speaker = self._next_speaker(self._speaker)
        events: list[tuple[int, Event]] = []
        if self.waiting(speaker):
            events = self._decode([POLICY, USER] if self._shared else [speaker])
        nothing_else = not events and not any(map(self.waiting, (POLICY, USER)))
        return events + self._read_outcomes(all_of_them=nothing_else)

    def _next_speaker(self, speaker: int) -> int:
        """Whose turns go on, after this speaker's did."""
        number = [len(self.waiting(POLICY)), len(self.waiting(USER))]
        # A side goes on while it fills its batch: the other then reads many turns at once.
        if number[speaker] >= self._batch:
            return speaker
        if max(number) >= self._batch:
            return int(np.argmax(number))
        # Towards the end nobody does, and whoever is furthest behind keeps the others waiting.
        return self.furthest_behind()

    def _decode(self, speakers: Sequence[int]) -> list[tuple[int, Event]]:
        """Let turns of these speakers go on until some have ended."""
        engine = self._speakers[speakers[0]].engine
        waiting = [(k, i) for k in speakers for i in self.waiting(k)]
        self._read(speakers, waiting, enough=min(self._batch, len(waiting)))
        chosen = [(k, i) for k, i in waiting if not self._sides[k].unread(i)]
        # Turns go on to their end, and then those that are furthest behind go first, so that few
        # are left alone at the end.
        chosen.sort(key=lambda p: (p[1] not in self._sides[p[0]].tokens, self.places[p[1]].turns))
        chosen = chosen[: self._batch]
        for k in speakers:
            self._begin_turns(self._sides[k], [i for which, i in chosen if which == k])
        contexts, decoded = engine.decode_chunk(
            self._sides[speakers[0]].state.contexts,
            self._turns(chosen),
            stay=max(len(chosen) - max(round(PAUSE * self._batch), 1), 0),
        )
        for k in speakers:
            side = self._sides[k]
            self._update(side, dataclasses.replace(side.state, contexts=contexts))
        ended: dict[int, list[int]] = {k: [] for k in speakers}
        turns = zip(chosen, decoded.tokens, decoded.logprobs, decoded.running, strict=True)
        for (k, i), tokens, logprobs, running in turns:
            side = self._sides[k]
            side.tokens[i] += tokens
            side.logprobs[i] += sum(logprobs)
            if not running:
                ended[k].append(i)
        return [event for k in speakers for event in self._settle(k, ended[k])]

    def _row(self, speaker: int, place: int) -> int:
        return self._sides[speaker].first + place

    def _read(
        self, speakers: Sequence[int], chosen: Sequence[tuple[int, int]], *, enough: int
    ) -> None:
        """Read on, until `enough` of these (speaker, place) have nothing left to read."""
        tokens = {
            self._row(k, i): unread
            for k in speakers
            for i, place in self.places.items()
            if not place.held and (unread := self._sides[k].unread(i))
        }
        needed = [self._row(k, i) for k, i in chosen]
        if sum(row not in tokens for row in needed) >= enough:
            return
        engine = self._speakers[speakers[0]].engine
        contexts, left = engine.extend_some(
            self._sides[speakers[0]].state.contexts, tokens, needed=needed, enough=enough
        )
        for k in speakers:
            side, unread = self._sides[k], list(self._sides[k].state.unread)
            for row in tokens.keys() & set(range(side.first, side.first + self.size)):
                unread[row] = left.get(row, ())
            self._update(side, dataclasses.replace(side.state, contexts=contexts, unread=unread))

    def _begin_turns(self, side: _Side, chosen: Sequence[int]) -> None:
        """Begin the turns of these places, where none is being spoken."""
        for i in chosen:
            if i not in side.tokens:
                side.tokens[i], side.logprobs[i] = [], 0.0
                side.starts[i] = len(side.state.contexts.tokens[side.first + i])

    def _turns(self, chosen: Sequence[tuple[int, int]]) -> Turns:
        """What is to be said at these (speaker, place): the rest of each turn."""
        speakers = [self._speakers[k] for k, _ in chosen]
        said = [self._sides[k].tokens[i] for k, i in chosen]
        identities = [self.places[i].identity for _, i in chosen]
        turns = zip(speakers, identities, said, strict=True)
        return Turns(
            sampling=[speaker.sampling for speaker in speakers],
            seed=[speaker.seed for speaker in speakers],
            identities=as_uint32(np.array(identities)),
            limits=[s.longest_turn(identity) - len(before) for s, identity, before in turns],
            end_ids=[speaker.view.template.end_ids for speaker in speakers],
            stops=[speaker.engine.stop_set(speaker.sampling.stop) for speaker in speakers],
            said=said,
            rows=[self._row(k, i) for k, i in chosen],
        )

    def _settle(self, speaker: int, ended: Sequence[int]) -> list[tuple[int, Event]]:
        """Turns that have ended: told to the other side, and perhaps the last."""
        if not ended:
            return []
        side, other = self._sides[speaker], self._sides[1 - speaker]
        state, said = side.speaker.settle(
            side.state,
            [side.first + i for i in ended],
            [side.starts.pop(i) for i in ended],
            [side.tokens.pop(i) for i in ended],
            [side.logprobs.pop(i) for i in ended],
            [self.places[i].identity for i in ended],
        )
        self._update(side, state)
        events: list[tuple[int, Event]] = []
        heard: dict[int, str] = {}
        for i, utterance in zip(ended, said, strict=True):
            events += self._take_down(i, utterance)
            if not self.places[i].over:
                heard[other.first + i] = words(utterance)
        self._update(other, other.speaker.hear(other.state, heard))
        return events

    def _read_outcomes(self, *, all_of_them: bool) -> list[tuple[int, Event]]:
        """Read what games have come to, once many are over; their places are free then."""
        done = self.done()
        if not done or (len(done) < round(OVER * self.size) and not all_of_them):
            return []
        self._read([USER], [(USER, i) for i in done], enough=len(done))
        user = self._sides[USER]
        rows = [self._row(USER, i) for i in done]
        active = np.zeros(len(user.state.dialogues), bool)
        active[rows] = True
        readings = user.speaker.outcomes(user.state, active)
        return self._finish(done, [readings[row] for row in rows])
