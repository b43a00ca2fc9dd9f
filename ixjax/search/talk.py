"""Where the games of all trees are played."""

from __future__ import annotations

from collections.abc import Iterable

from ixjax.dialogue.scenarios.base import RewardsReactions, Scenario
from ixjax.dialogue.types import Utterance
from ixjax.generation import Game, InPlay
from ixjax.io import InputError
from ixjax.search.config import SearchConfig


def check_reaction_weight(config: SearchConfig, scenario: Scenario) -> None:
    """Raise `InputError` for a weight of what reactions earn in a scenario where they earn none."""
    if config.reaction_weight and not isinstance(scenario, RewardsReactions):
        raise InputError(
            f"search.reaction_weight is {config.reaction_weight}, but scenario {scenario.name!r} "
            "has no `reaction_reward(text)`; expected 0, or a scenario that rewards reactions"
        )


class Talk:
    """Where the games of all trees are played; what they want done is done for all at once.

    Args:
        in_play: the places.
        scenario: rewards reactions, if it does.
        config: sizes and constants.
        seed: of the run.

    Raises:
        InputError: see `check_reaction_weight`.
    """

    def __init__(self, in_play: InPlay, scenario: Scenario, config: SearchConfig, seed: int):
        check_reaction_weight(config, scenario)
        self.in_play, self.config, self.seed = in_play, config, seed
        self.scenario = scenario
        self._reserved: set[int] = set()
        self._kept: dict[int, int] = {}
        self._dropped: list[int] = []
        self._begun: dict[int, Game] = {}
        self._read: dict[int, int] = {}

    def reserve(self, count: int) -> list[int] | None:
        """Places for games; None where there are not as many."""
        free = [i for i in self.in_play.free() if i not in self._reserved]
        if len(free) < count:
            return None
        self._reserved.update(free[:count])
        return free[:count]

    def release(self, places: Iterable[int]) -> None:
        """Reserved places that are needed no more."""
        self._reserved.difference_update(places)

    def begin(self, place: int, game: Game) -> None:
        """Begin a game at a reserved place."""
        self._begun[place] = game

    def read(self, place: int, game: Game, number: int) -> None:
        """Make a game's contexts at a reserved place, to keep them alone; nothing is played."""
        self._begun[place], self._read[place] = game, number

    def keep(self, place: int, number: int) -> None:
        """Keep the contexts of a place as they are now."""
        self._kept[place] = number

    def drop(self, place: int) -> None:
        """End a game, and release its place."""
        self._dropped.append(place)

    def carry_out(self) -> None:
        """What was asked for since."""
        self.in_play.keep(self._kept)
        self._drop(self._dropped)
        self.in_play.begin(self._begun)
        self.in_play.keep(self._read)
        self._drop(self._read)
        self._kept, self._dropped, self._begun, self._read = {}, [], {}, {}

    def _drop(self, places: Iterable[int]) -> None:
        self.in_play.drop(places)
        self.release(places)

    def reaction_reward(self, utterance: Utterance) -> float:
        """What a reaction earns by itself, weighted."""
        weight, scenario = self.config.reaction_weight, self.scenario
        if not weight or not isinstance(scenario, RewardsReactions):
            return 0.0
        return weight * scenario.reaction_reward(utterance.text)
