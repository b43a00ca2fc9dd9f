"""One iteration of one tree: the talking that expands its leaves, in whatever order turns end.

At a decision leaf the policy says `width` responses. Once all of them are known, equal ones become
one, and the user reacts to each, `reactions` times; every reaction is played on from, `rollouts`
times, to the end of the dialogue. At a response leaf the user reacts once more. All of it goes on
beside the expansions of other trees, in one batch; what comes of it depends on the tree alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ixjax.dialogue.types import Utterance
from ixjax.generation import Finished, Game, Spoken
from ixjax.generation.turns import POLICY, USER, engagements, hashed, words
from ixjax.search.kept import Stamp
from ixjax.search.ledger import Ledger
from ixjax.search.talk import Talk


@dataclass(eq=False)
class Sample:
    """A response at a leaf with a first reaction, or another reaction to a response.

    leaf: node id.
    widening: the leaf is a response, which is reacted to.
    response_of: the sample whose response is reacted to; None: its own, or the leaf.
    turns: policy turns before the response.
    identity: seed of the run, condition, node and which sample at it.
    number: which of the iteration's it is.
    places: one for each rollout.
    multiplicity: samples of the leaf with this text; 0 for all but the first of them.
    over: the reaction was the dialogue's last turn.
    response_context: when the contexts behind the response were made, if they are kept.
    reaction_context: likewise.
    outcome: engagement where it is over; nan where unreadable.
    returns: `[R]` discounted to the reaction; nan where unreadable.
    left: rollouts that have not ended.
    """

    leaf: int
    widening: bool
    response_of: Sample | None
    turns: int
    identity: tuple[int, int, int, int]
    number: int
    places: list[int]
    returns: np.ndarray
    left: int
    response: Utterance | None = None
    reaction: Utterance | None = None
    multiplicity: int = 0
    over: bool = False
    response_context: Stamp | None = None
    reaction_context: Stamp | None = None
    outcome: float = math.nan

    @property
    def responds(self) -> bool:
        """Whether the policy speaks first."""
        return not self.widening and self.response_of is None

    @property
    def fresh(self) -> bool:
        """Whether the response is a new child."""
        return self.multiplicity > 0


class Expansion:
    """The samples of one iteration of one tree.

    Args:
        talk: where they are played.
        ledger: the tree's.
        leaves: node ids that were selected.
        iteration: which one of the tree's.

    Attributes:
        samples: leaf by leaf.
        leaves: see the argument.
    """

    def __init__(self, talk: Talk, ledger: Ledger, leaves: Sequence[int], iteration: int):
        self._talk, self._ledger, self._iteration = talk, ledger, iteration
        self.leaves = list(leaves)
        self.samples: list[Sample] = []
        self._at: dict[int, tuple[Sample, int]] = {}  # sample and rollout by place
        for leaf in dict.fromkeys(self.leaves):
            entry = ledger.entries[leaf]
            if entry.terminal:
                continue
            ledger.counts["collisions"] += self.leaves.count(leaf) - 1
            if entry.kind == "response":
                self._add(leaf, entry.turns - 1, ledger.reactions[leaf], widening=True)
                continue
            width = talk.config.width
            for nth in range(width):
                first = self._add(leaf, entry.turns, nth)
                for more in range(1, talk.config.reactions):
                    self._add(leaf, entry.turns, nth + more * width, response_of=first)

    def _add(
        self,
        leaf: int,
        turns: int,
        nth: int,
        *,
        widening: bool = False,
        response_of: Sample | None = None,
    ) -> Sample:
        """One more sample: the `nth` that is drawn at its leaf."""
        condition, rollouts = hashed(self._ledger.root.condition.id), self._talk.config.rollouts
        sample = Sample(
            leaf=leaf,
            widening=widening,
            response_of=response_of,
            turns=turns,
            identity=(self._talk.seed, condition, leaf, nth),
            number=len(self.samples),
            places=[],
            returns=np.full(rollouts, np.nan),
            left=rollouts,
        )
        self.samples.append(sample)
        return sample

    @property
    def places_needed(self) -> int:
        """Places for its games."""
        return len(self.samples) * self._talk.config.rollouts

    @property
    def done(self) -> bool:
        """Whether all returns are known."""
        return not any(sample.left for sample in self.samples)

    def begin(self, places: Sequence[int]) -> list[int]:
        """Begin the games; returns the places, at which events are this expansion's."""
        rollouts = self._talk.config.rollouts
        sources = {
            leaf: self._ledger.source(leaf, (self._iteration, 0, i))
            for i, leaf in enumerate(dict.fromkeys(sample.leaf for sample in self.samples))
        }
        for i, sample in enumerate(self.samples):
            sample.places = list(places[i * rollouts : (i + 1) * rollouts])
            self._at |= {place: (sample, r) for r, place in enumerate(sample.places)}
            if sample.response_of is not None:
                continue  # it begins once the response is known
            kept, root = sources[sample.leaf]
            game = Game(
                identity=sample.identity,
                root=root,
                kept=kept,
                turns=sample.turns,
                first=USER if sample.widening else POLICY,
                holds=1 if sample.widening else 2,
            )
            self._talk.begin(sample.places[0], game)
        return list(self._at)

    def note(self, place: int, event: Spoken | Finished) -> None:
        """A turn or an end at one of the places, and what is to follow it."""
        sample, rollout = self._at[place]
        if isinstance(event, Finished):
            self._end(sample, rollout, event)
        elif event.speaker == POLICY:
            sample.response = event.utterance
            self._ledger.count("policy", event.utterance)
            siblings = [s for s in self.samples if s.leaf == sample.leaf and s.responds]
            if all(s.response is not None for s in siblings):
                self._merge_equal(siblings)
        else:
            sample.reaction = event.utterance
            self._ledger.count("simulator", event.utterance)
            self._play_on(sample)

    def _merge_equal(self, siblings: Sequence[Sample]) -> None:
        """Responses of one text become the first of them; the user reacts to that one."""
        alike: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in siblings:
            assert sample.response is not None
            alike[words(sample.response)].append(sample)
        for first, *others in alike.values():
            first.multiplicity = 1 + len(others)
            if self._talk.config.most_reactions > 1:
                # It is reacted to again only where there may be more than one reaction.
                first.response_context = self._keep(first, reaction=False)
            self._talk.in_play.resume(first.places[0])
            for sample in self.samples:
                if sample.response_of is first:
                    self._react(sample, first.response_context)
                elif sample in others or sample.response_of in others:
                    self._give_up(sample)

    def _react(self, sample: Sample, context: Stamp | None) -> None:
        """Another reaction to a response whose contexts are kept."""
        assert context is not None  # there may be several reactions
        kept = self._ledger.kept.use(context, context)
        game = Game(sample.identity, kept=kept, turns=sample.turns, first=USER, holds=1)
        self._talk.begin(sample.places[0], game)

    def _give_up(self, sample: Sample) -> None:
        """Nothing comes of a sample whose response another one has said."""
        sample.left = 0
        if sample.responds:
            self._talk.drop(sample.places[0])
        self._talk.release(sample.places)

    def _keep(self, sample: Sample, *, reaction: bool) -> Stamp:
        made = (self._iteration, 1, 2 * sample.number + reaction)
        self._talk.keep(sample.places[0], self._ledger.kept.keep(made))
        return made

    def _play_on(self, sample: Sample) -> None:
        """Rollouts behind a reaction, or its outcome where the dialogue is over."""
        talk, place = self._talk, sample.places[0]
        sample.over = talk.in_play.places[place].over
        if sample.over:
            talk.in_play.resume(place)
            talk.release(sample.places[1:])
            return
        sample.reaction_context = made = self._keep(sample, reaction=True)
        *base, nth = sample.identity
        for r, at in enumerate(sample.places):
            identity = (*base, nth * talk.config.rollouts + r)
            if not r:
                talk.in_play.resume(at, identity)
                continue
            kept = self._ledger.kept.use(made, made)
            talk.begin(at, Game(identity, kept=kept, turns=sample.turns + 1))

    def _end(self, sample: Sample, rollout: int, game: Finished) -> None:
        [engagement] = engagements([game.reading])
        self._talk.release([sample.places[rollout]])
        if sample.over:
            # It ends in the same way as often as others are played on from, so that a response
            # which the user left at weighs as much in its ancestors' means.
            sample.outcome, sample.returns[:], sample.left = engagement, engagement, 0
            return
        sample.left -= 1
        # The first rollout's game has said what the sample has, which is counted already.
        held = rollout == 0
        responses = game.said[POLICY][held and sample.responds :]
        reactions = game.said[USER][held:]
        self._ledger.spend("policy", responses)
        self._ledger.spend("simulator", reactions)
        gamma = self._talk.config.gamma
        shaping = sum(
            gamma**k * self._talk.reaction_reward(said) for k, said in enumerate(reactions, start=1)
        )
        sample.returns[rollout] = shaping + gamma ** len(reactions) * engagement
