"""Dialogues to be played, and what became of them."""

from __future__ import annotations

import dataclasses

from ixjax.dialogue.types import Dialogue, OutcomeReading, Utterance
from ixjax.generation.turns import POLICY


@dataclasses.dataclass(frozen=True)
class Game:
    """A dialogue to be played from where it stands.

    identity: what it is; with the turn and the speaker this draws all that is said.
    root: what was said before, where contexts are to be made of it; the policy moves.
    row: which row of given states it goes on from (then `root` is not needed).
    turns: policy turns before, whose reactions are known.
    first: whose move it is, `POLICY`'s or `USER`'s, who has heard all before.
    over: nothing more is to be said, and the outcome alone is to be read.
    """

    identity: tuple[int, ...]
    root: Dialogue | None = None
    row: int = 0
    turns: int = 0
    first: int = POLICY
    over: bool = False


@dataclasses.dataclass(frozen=True)
class Finished:
    """A dialogue that is over.

    reading: what it has come to, as the user tells it.
    turns: policy turns in all.
    ended: whether the user closed it in this play.
    said: the turns of this play, by speaker.
    """

    reading: OutcomeReading | None
    turns: int
    ended: bool
    said: tuple[tuple[Utterance, ...], tuple[Utterance, ...]]

    def tokens(self, speaker: int) -> tuple[int, ...]:
        """Tokens of each turn of `POLICY` or `USER`."""
        return tuple(said.num_tokens for said in self.said[speaker])


def root_of(game: Game) -> Dialogue:
    """What contexts are made of.

    Raises:
        ValueError: the game goes on from states.
    """
    if game.root is None:
        raise ValueError(
            f"game {game.identity} has no root, and no states were given to go on from"
        )
    return game.root


def uttered(utterance: Utterance | None) -> Utterance:
    """What an active row said.

    Raises:
        ValueError: it said nothing.
    """
    if utterance is None:
        raise ValueError("a speaker said nothing for a row that is active")
    return utterance
