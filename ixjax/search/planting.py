"""Roots: the user opens where that is its part, and contexts are kept to begin from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ixjax.dialogue.types import Dialogue
from ixjax.generation import Finished, Game, Spoken
from ixjax.generation.turns import USER, engagements, hashed
from ixjax.search.kept import ROOT
from ixjax.search.ledger import Entry, Ledger
from ixjax.search.talk import Talk
from ixjax.search.tree import Tree


def policy_turns(dialogue: Dialogue) -> int:
    """Turns of the policy's in a dialogue."""
    return sum(turn.role == "policy" for turn in dialogue.turns)


class Planting:
    """A root that is got ready; then its ledger has an entry.

    Args:
        talk: where it is played.
        ledger: of the tree; its root may gain the opening turn.

    Attributes:
        done: whether it is ready.
    """

    places_needed = 1

    def __init__(self, talk: Talk, ledger: Ledger):
        self._talk, self._ledger = talk, ledger
        self.done = False

    def begin(self, places: Sequence[int]) -> list[int]:
        """Begin at a place, which is returned if there will be events at it."""
        [place] = places
        root = self._ledger.root
        identity = (self._talk.seed, hashed(root.condition.id), Tree.ROOT, 0)
        turns = policy_turns(root)
        if not root.turns and not self._talk.scenario.policy_opens:
            # Before turn 0: an identity that no reaction has.
            self._talk.begin(place, Game(identity, root, turns=-1, first=USER, holds=1))
        elif turns >= self._talk.config.max_turns:
            self._talk.begin(place, Game(identity, root, turns=turns, over=True))
        else:
            number = self._ledger.kept.keep(ROOT)
            self._talk.read(place, Game(identity, root, turns=turns), number)
            self._enter(over=False)
            return []
        return [place]

    def note(self, place: int, event: Spoken | Finished) -> None:
        """The opening, or the outcome of a root that is over."""
        if isinstance(event, Finished):
            self._talk.release([place])
            [outcome] = engagements([event.reading])
            self._enter(over=True, outcome=outcome)
            return
        said = event.utterance
        self._ledger.spend("simulator", [said])
        if said.text:
            self._ledger.root = self._ledger.root.said("user", said.text)
        if said.ended:
            self._talk.in_play.resume(place)  # to have its outcome read
            return
        self._talk.keep(place, self._ledger.kept.keep(ROOT))
        self._talk.drop(place)
        self._enter(over=False)

    def _enter(self, *, over: bool, outcome: float = math.nan) -> None:
        entry = Entry(
            kind="decision",
            parent=Tree.NO_NODE,
            text="",
            turns=policy_turns(self._ledger.root),
            context=None if over else ROOT,
            terminal=over,
            outcome=outcome,
        )
        self._ledger.add(Tree.ROOT, entry)
        self.done = True
