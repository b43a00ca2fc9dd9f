"""Dialogues to be played, and what became of them."""

from __future__ import annotations

import dataclasses

from ixjax.dialogue.types import Dialogue, OutcomeReading, Utterance
from ixjax.generation.turns import POLICY


@dataclasses.dataclass(frozen=True)
class Game:
    """A dialogue to be played from where it stands.

    identity: what it is; with the turn and the speaker this draws all that is said.
    root: what was said before, where contexts are to be made of it.
    kept: which of the kept contexts it goes on from (`InPlay.keep`). With a `root` too, they hold
        a beginning of that one, and the rest is read.
    turns: policy turns before, whose reactions are known; -1 before the user's opening turn.
    first: whose move it is, `POLICY`'s or `USER`'s, who has heard all before.
    over: nothing more is to be said, and the outcome alone is to be read.
    holds: after each of its first turns, of both sides, the game waits to be resumed.
    """

    identity: tuple[int, ...]
    root: Dialogue | None = None
    kept: int | None = None
    turns: int = 0
    first: int = POLICY
    over: bool = False
    holds: int = 0


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


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A turn after which its game waits to be resumed."""

    speaker: int
    utterance: Utterance
