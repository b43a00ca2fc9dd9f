"""Both speakers at many leaves at once: plant roots, expand, play on; contexts kept in pools.

Each speaker has one pool of contexts, with a row for every node that may be spoken from. A leaf is
expanded from copies of its row, so no history is ever read twice. All shapes follow from the
configuration: what does not fill them is idle rows, not another compilation.

Axes: `B` trees, `L` leaves a tree, `W` samples a leaf, `R` rollouts, `S = B * L * W` slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import Game, ModelSpeaker, Speaker, User, play
from ixjax.generation.scheduler import places
from ixjax.generation.turns import (
    IDENTITY_PARTS,
    POLICY,
    SILENCE,
    USER,
    ended,
    engagements,
    hashed,
    heard,
    identity_base,
    turn_identities,
    words,
)
from ixjax.search.config import SearchConfig
from ixjax.search.ledger import NO_ROW, Entry, Ledger
from ixjax.search.tree import Tree


@dataclass(frozen=True)
class Slots:
    """One iteration's work. Slot (b, l, w), flattened, is the w-th sample at leaf l of tree b.

    Attributes:
        tree: `[S]` b.
        leaf: `[S]` node id.
        source: `[S]` row of the pools to continue from.
        turns: `[S]` policy turns before the response.
        base: `[S, 4]` identities, see `generation.turns.identity_base`.
        responding: `[S]` a response is sampled, with a first reaction to it.
        widening: `[S]` one more reaction is sampled to the response `leaf`.
    """

    tree: np.ndarray  # [S]
    leaf: np.ndarray  # [S]
    source: np.ndarray  # [S]
    turns: np.ndarray  # [S]
    base: np.ndarray  # [S, 4]
    responding: np.ndarray  # [S]
    widening: np.ndarray  # [S]


@dataclass(frozen=True)
class Samples:
    """What was said at an iteration's slots, and what it earned.

    Attributes:
        responses: `[S]` what the policy said.
        reactions: `[S]` what the user said to it; None for a response equal to an earlier one.
        multiplicity: `[S]` samples of the leaf with this text; 0 for all but the first of them.
        over: `[S]` the reaction was the dialogue's last turn.
        response_row: `[S]` rows of the pools; `NO_ROW` where nothing was kept.
        reaction_row: `[S]` likewise.
        outcome: `[S]` engagement where it is over; nan where unreadable.
        returns: `[S, R]` discounted to the reaction; nan where unreadable.
    """

    responses: list[Utterance | None]  # [S]
    reactions: list[Utterance | None]  # [S]
    multiplicity: np.ndarray  # [S]
    over: np.ndarray  # [S]
    response_row: np.ndarray  # [S]
    reaction_row: np.ndarray  # [S]
    outcome: np.ndarray  # [S]
    returns: np.ndarray  # [S, R]

    @property
    def fresh(self) -> np.ndarray:
        """`[S]` the response is a new child."""
        return self.multiplicity > 0


class Stage:
    """The two speakers of a search and the pools that hold their contexts.

    Args:
        policy: the side that is searched for.
        simulator: the user.
        scenario: says who opens.
        config: sizes and constants.
        seed: of the run.
    """

    def __init__(
        self, policy: Speaker, simulator: User, scenario: Scenario, config: SearchConfig, seed: int
    ):
        self.policy, self.simulator = policy, simulator
        self.scenario, self.config, self.seed = scenario, config, seed
        self._policy_pool = policy.empty(config.trees * config.rows)
        self._simulator_pool = simulator.empty(config.trees * config.rows)

    def plant(self, roots: Sequence[Dialogue]) -> list[Ledger]:
        """Root contexts into the pools; the simulator opens where that is the user's part.

        Args:
            roots: at most `B` dialogues; copies of the first, inactive, fill up the rest.

        Returns:
            `B` ledgers that hold their root's entry.
        """
        trees, rows = self.config.trees, self.config.rows
        padded = [*roots, *[roots[0]] * (trees - len(roots))]
        ledgers = [Ledger(root, i * rows, i < len(roots)) for i, root in enumerate(padded)]
        turns = np.array([sum(turn.role == "policy" for turn in root.turns) for root in padded])
        over = turns >= self.config.max_turns
        simulator_state = self.simulator.start(padded)
        opening = np.array([self._user_opens(root) for root in padded])
        if opening.any():
            simulator_state, left = self._open(ledgers, simulator_state, opening)
            over |= left
        outcomes = np.full(trees, np.nan)
        if over.any():
            outcomes = engagements(self.simulator.outcomes(simulator_state, over))
        # A user who left without a word: nothing will be said there, but a row needs a history.
        histories = [
            ledger.root.said("user", SILENCE) if self._user_opens(ledger.root) else ledger.root
            for ledger in ledgers
        ]
        first_rows = np.array([ledger.new_row() for ledger in ledgers])
        self._keep(first_rows, self.policy.start(histories), simulator_state)
        for i, ledger in enumerate(ledgers):
            entry = Entry(
                kind="decision",
                text="",
                turns=int(turns[i]),
                row=int(first_rows[i]),
                terminal=bool(over[i]),
                outcome=float(outcomes[i]),
            )
            ledger.add(Tree.ROOT, entry)
        return ledgers

    def _user_opens(self, root: Dialogue) -> bool:
        return not root.turns and not self.scenario.policy_opens

    def _open(
        self, ledgers: list[Ledger], simulator_state: Any, opening: np.ndarray
    ) -> tuple[Any, np.ndarray]:
        """Opening turns where `opening`; the state, and `[B]` where the user left with it."""
        zeros = np.zeros(len(ledgers), np.int64)
        conditions = np.array([hashed(ledger.root.condition.id) for ledger in ledgers])
        base = identity_base(seed=self.seed, condition=conditions, node=zeros, sample=zeros)
        simulator_state, openings = self.simulator.speak(
            simulator_state, turn_identities(base, zeros, USER), opening
        )
        for ledger, said in zip(ledgers, openings, strict=True):
            if said is not None:
                ledger.counts["simulator_tokens"] += said.num_tokens
                if said.text:
                    ledger.root = ledger.root.said("user", said.text)
        return simulator_state, ended(openings)

    def expand(self, ledgers: list[Ledger], slots: Slots) -> Samples:
        """Both speakers' turns at every slot, then on to the end of each dialogue."""
        policy_state = self.policy.fork(self._policy_pool, slots.source)
        simulator_state = self.simulator.fork(self._simulator_pool, slots.source)
        policy_state, responses = self.policy.speak(
            policy_state, turn_identities(slots.base, slots.turns, POLICY), slots.responding
        )
        multiplicity = _merge_equal(slots, responses, width=self.config.width)
        fresh = multiplicity > 0
        simulator_state = self.simulator.listen(
            simulator_state,
            heard(responses, fresh),
        )
        # A response is sampled from again only where there may be more than one reaction to it.
        response_row = _new_rows(ledgers, slots, fresh & (self.config.reactions > 1))
        self._keep(response_row, policy_state, simulator_state)

        reacting = fresh | slots.widening
        simulator_state, reactions = self.simulator.speak(
            simulator_state, turn_identities(slots.base, slots.turns, USER), reacting
        )
        over = reacting & (ended(reactions) | (slots.turns + 1 >= self.config.max_turns))
        alive = reacting & ~over
        policy_state = self.policy.listen(
            policy_state,
            heard(reactions, alive),
        )
        reaction_row = _new_rows(ledgers, slots, alive)
        self._keep(reaction_row, policy_state, simulator_state)
        outcome, returns = self._roll_out(
            ledgers, slots, policy_state, simulator_state, alive=alive, over=over
        )
        return Samples(
            responses, reactions, multiplicity, over, response_row, reaction_row, outcome, returns
        )

    def _roll_out(
        self,
        ledgers: list[Ledger],
        slots: Slots,
        policy_state: Any,
        simulator_state: Any,
        *,
        alive: np.ndarray,
        over: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`R` ends of every living dialogue; `[S]` outcomes of those over, `[S, R]` returns.

        A dialogue that is over ends `R` times in the same way, so that a response which the user
        left at weighs as much in its ancestors' means as one that was played on from.
        """
        rollouts = self.config.rollouts
        # One that is over is read once, and counts as often as the others.
        slots_of = [*np.repeat(np.flatnonzero(alive), rollouts), *np.flatnonzero(over)]
        nth = [*np.tile(np.arange(rollouts), alive.sum()), *np.zeros(over.sum(), int)]
        games = []
        for slot, i in zip(slots_of, nth, strict=True):
            base = slots.base[slot].tolist()
            games.append(
                Game(
                    identity=(*base[:3], base[3] * rollouts + int(i)),
                    row=int(slot),
                    turns=int(slots.turns[slot]) + 1,
                    over=bool(over[slot]),
                )
            )
        finished = play(
            self.policy,
            self.simulator,
            games,
            max_turns=self.config.max_turns,
            rows=len(alive) * rollouts,
            states=(policy_state, simulator_state),
        )
        outcome = np.full(len(alive), np.nan)
        returns = np.full((len(alive), rollouts), np.nan)
        found = engagements([game.reading for game in finished])
        for slot, i, game, engagement in zip(slots_of, nth, finished, found, strict=True):
            if over[slot]:
                outcome[slot] = engagement
                returns[slot] = engagement
                continue
            remaining = game.turns - int(slots.turns[slot]) - 1
            returns[slot, i] = self.config.gamma**remaining * engagement
            counts = ledgers[slots.tree[slot]].counts
            counts["policy_tokens"] += sum(game.tokens(POLICY))
            counts["simulator_tokens"] += sum(game.tokens(USER))
        return outcome, returns

    def _keep(self, rows: np.ndarray, policy_state: Any, simulator_state: Any) -> None:
        """Row i of the states becomes row `rows[i]` of the pools, unless that is `NO_ROW`."""
        kept = np.flatnonzero(rows != NO_ROW)
        if len(kept):
            self._policy_pool = self.policy.store(self._policy_pool, rows[kept], policy_state, kept)
            self._simulator_pool = self.simulator.store(
                self._simulator_pool, rows[kept], simulator_state, kept
            )


def warm_up(
    policy: ModelSpeaker,
    simulator: ModelSpeaker,
    roots: Sequence[Dialogue],
    config: SearchConfig,
) -> None:
    """Compile all that a search of these roots will need, so that nothing compiles while it runs.

    Args:
        policy: the side that is searched for.
        simulator: the user.
        roots: what is searched.
        config: sizes.
    """
    slots = config.trees * config.leaves * config.width
    pool = config.trees * config.rows
    playing = places(policy, simulator, slots * config.rollouts)
    in_play = playing * (1 + (policy.engine is simulator.engine))
    conditions = list({root.condition.id: root.condition for root in roots}.values())
    for speaker in (policy, simulator):
        speaker.warm_up(
            [config.trees, slots, in_play],
            conditions,
            identity_parts=IDENTITY_PARTS,
            copies=[(pool, config.trees), (slots, pool), (pool, slots), (in_play, slots)],
        )


def _merge_equal(slots: Slots, responses: Sequence[Utterance | None], *, width: int) -> np.ndarray:
    """`[S]` how many samples of the same leaf had this text; 0 for all but the first of them."""
    multiplicity = np.zeros(len(responses), np.int64)
    first: dict[tuple[int, str], int] = {}
    for slot in np.flatnonzero(slots.responding).tolist():
        said = responses[slot]
        if said is not None:
            multiplicity[first.setdefault((slot // width, words(said)), slot)] += 1
    return multiplicity


def _new_rows(ledgers: list[Ledger], slots: Slots, wanted: np.ndarray) -> np.ndarray:
    """`[S]` an unused row of the pools for every slot where `wanted`, else `NO_ROW`."""
    rows = np.full(len(wanted), NO_ROW)
    for slot in np.flatnonzero(wanted).tolist():
        rows[slot] = ledgers[slots.tree[slot]].new_row()
    return rows
