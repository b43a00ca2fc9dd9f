"""Dialogues in play: where games are begun, held, resumed, and end.

Whoever wants dialogues played gives them places, calls `advance` until all are over, and is told of
each that ended. `play` does that for a list of games. The search holds games too: a response waits
for its siblings before the user hears it, and contexts to come back to are kept.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation.games import Finished, Game, Spoken
from ixjax.generation.turns import POLICY, USER

Event = Spoken | Finished


@dataclasses.dataclass
class Place:
    """A game in play.

    speaker: whose move it is.
    turns: policy turns whose reactions are known.
    over: nothing more is to be said.
    ended: the user closed the dialogue.
    held: it waits to be resumed.
    said: the turns of this play, by speaker.
    """

    game: Game
    speaker: int
    turns: int
    over: bool
    ended: bool = False
    held: bool = False
    said: tuple[list[Utterance], list[Utterance]] = dataclasses.field(
        default_factory=lambda: ([], [])
    )

    @property
    def identity(self) -> tuple[int, ...]:
        """What the next turn is drawn by."""
        return (*self.game.identity, self.turns, self.speaker)


class InPlay(abc.ABC):
    """Games side by side, and contexts that are kept to begin others from.

    Args:
        size: games in play at the most, one a place.
        kept: contexts that can be kept.
        max_turns: a dialogue with this many policy turns is over.

    Attributes:
        places: the games in play.
    """

    def __init__(self, *, size: int, kept: int, max_turns: int):
        self.size, self.kept, self.max_turns = size, kept, max_turns
        self.places: dict[int, Place] = {}

    def free(self) -> list[int]:
        """Places where games can be begun."""
        return [i for i in range(self.size) if i not in self.places]

    def begin(self, games: Mapping[int, Game]) -> None:
        """Begin games at free places."""
        for i, game in games.items():
            over = game.over or (game.turns >= self.max_turns and game.first == POLICY)
            self.places[i] = Place(game, game.first, game.turns, over)
        if games:
            self._make_ready(games)

    def resume(self, place: int, identity: Sequence[int] | None = None) -> None:
        """Let a game go on that was held; with an `identity`, as another game from here on."""
        held = self.places[place]
        held.held = False
        if identity is not None:
            held.game = dataclasses.replace(held.game, identity=tuple(identity))

    def drop(self, places: Iterable[int]) -> None:
        """Games that nobody wants to see the end of."""
        for i in places:
            del self.places[i]

    @abc.abstractmethod
    def keep(self, places: Mapping[int, int]) -> None:
        """Keep the contexts of places as they are: the number they are kept at, by place."""

    @abc.abstractmethod
    def advance(self) -> list[tuple[int, Event]]:
        """Play on until some turns have ended.

        Returns:
            By place, turns after which a game is held, and ends. Games that ended have left.

        Raises:
            RuntimeError: there is no game that could go on.
        """

    def close(self) -> None:
        """Give back what was held to play with."""
        self.places.clear()

    @abc.abstractmethod
    def _make_ready(self, games: Mapping[int, Game]) -> None:
        """Contexts for games that begin."""

    def waiting(self, speaker: int) -> list[int]:
        """Places where it is this speaker's turn."""
        return [
            i
            for i, place in self.places.items()
            if place.speaker == speaker and not place.over and not place.held
        ]

    def furthest_behind(self) -> int:
        """Whose turn it is where the fewest turns were played."""
        behind = [(self.places[i].turns, k) for k in (POLICY, USER) for i in self.waiting(k)]
        return min(behind, default=(0, POLICY))[1]

    def done(self) -> list[int]:
        """Places of games that are over."""
        return [i for i, place in self.places.items() if place.over and not place.held]

    def _take_down(self, i: int, utterance: Utterance) -> list[tuple[int, Event]]:
        """The turn that was spoken at a place; an event if it is held after it."""
        place, speaker = self.places[i], self.places[i].speaker
        place.said[speaker].append(utterance)
        place.turns += speaker == USER
        place.speaker = 1 - speaker
        place.ended = speaker == USER and utterance.ended
        place.over = place.ended or (speaker == USER and place.turns >= self.max_turns)
        place.held = len(place.said[POLICY]) + len(place.said[USER]) <= place.game.holds
        return [(i, Spoken(speaker, utterance))] if place.held else []

    def _finish(self, places: Sequence[int], readings: Sequence) -> list[tuple[int, Event]]:
        """Ends of games, whose places are free then."""
        found: list[tuple[int, Event]] = []
        for i, reading in zip(places, readings, strict=True):
            place = self.places.pop(i)
            said = (tuple(place.said[POLICY]), tuple(place.said[USER]))
            found.append((i, Finished(reading, place.turns, place.ended, said)))
        return found

    def _require_some(self) -> None:
        if not any(not place.held for place in self.places.values()):
            raise RuntimeError(
                f"none of {len(self.places)} games can go on: begin one, or resume those held"
            )


def play_out(in_play: InPlay, games: Sequence[Game]) -> list[Finished]:
    """Every game to its end, as many at once as there are places; in their order."""
    queue, playing = list(enumerate(games))[::-1], {}
    found: dict[int, Finished] = {}
    while queue or playing:
        begun = {i: queue.pop() for i in in_play.free()[: len(queue)]}
        playing |= {i: number for i, (number, _) in begun.items()}
        in_play.begin({i: game for i, (_, game) in begun.items()})
        for i, event in in_play.advance():
            if isinstance(event, Finished):
                found[playing.pop(i)] = event
            else:
                in_play.resume(i)
    return [found[number] for number in range(len(games))]


def root_of(game: Game) -> Dialogue:
    """What contexts are made of.

    Raises:
        ValueError: the game goes on from what was kept.
    """
    if game.root is None:
        raise ValueError(
            f"game {game.identity} has no root, and no kept contexts were named to go on from"
        )
    return game.root
