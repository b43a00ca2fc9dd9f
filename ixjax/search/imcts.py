"""i×MCTS: the policy and the simulated user talk, and a tree per user keeps what that earned.

Trees grow in lockstep, `config.trees` of them at a time: select leaves on the device, let both
speakers expand all of them at once, play every new response on to its end, send the outcomes up.
The arithmetic is `uct`, the talking is `expansion`; here is the loop that joins them.

The method is docs/algorithm.md, "The tree", after Wang et al. 2025, arXiv 2506.21497.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, UserCondition, Utterance
from ixjax.generation import Speaker, User
from ixjax.generation.turns import SILENCE, hashed, identity_base, words
from ixjax.io import InputError
from ixjax.search.config import SearchConfig
from ixjax.search.expansion import Samples, Slots, Stage
from ixjax.search.ledger import Entry, Ledger
from ixjax.search.tree import FinishedTree, Tree
from ixjax.search.uct import add_children, backpropagate, uct_select


def run(
    policy: Speaker,
    simulator: User,
    scenario: Scenario,
    conditions: Sequence[UserCondition | Dialogue],
    config: SearchConfig,
    *,
    seed: int = 0,
) -> Iterator[FinishedTree]:
    """Searches one tree a condition, and yields them in the order of the conditions.

    A tree is a function of the speakers, its condition, the configuration and the seed; neither
    the other conditions nor `config.trees` have a part in it.

    Args:
        policy: the side that is searched for.
        simulator: the user, who knows its condition and states the outcome.
        scenario: gives the name, and whether the policy opens.
        conditions: users; or dialogues to start from, where it is the policy's move. Where the
            user opens, a bare condition has its opening turn spoken by the simulator.
        config: budget and constants.
        seed: of the run.

    Raises:
        InputError: a root is not the policy's move, two roots share a condition id, or, once all
            trees were yielded, not a single outcome of the whole run could be read. A single tree
            without a readable outcome is yielded with no visits; its account says so.
    """
    roots = _roots(conditions, scenario)
    if not roots:
        return
    stage = Stage(policy, simulator, scenario, config, seed)
    arrived, unreadable = 0, 0
    for start in range(0, len(roots), config.trees):
        for tree in _search_batch(stage, roots[start : start + config.trees]):
            arrived += tree.account["simulations"]
            unreadable += tree.account["unreadable"]
            yield tree
    check_readable(arrived, unreadable, scenario)


def check_readable(arrived: int, unreadable: int, scenario: Scenario) -> None:
    """Raise `InputError` where a search of `unreadable` outcomes read none (`arrived` is 0)."""
    if not arrived:
        raise InputError(
            f"not one of the {unreadable} simulated outcomes could be read; expected a closing "
            f"line that matches {scenario.outcome_pattern.pattern!r}. Train the simulator longer, "
            "or read outcomes out as expectations"
        )


def _roots(conditions: Sequence[UserCondition | Dialogue], scenario: Scenario) -> list[Dialogue]:
    """Conditions as dialogues without a turn; refuses roots that cannot be searched."""
    roots: list[Dialogue] = []
    seen: set[str] = set()
    for given in conditions:
        bare = isinstance(given, UserCondition)
        root = Dialogue(given.id, given, turns=(), outcome=None) if bare else given
        if root.turns and root.turns[-1].role == "policy":
            raise InputError(
                f"dialogue {root.id!r} ends with a turn of the policy's; a search starts where the "
                "policy is to move: cut it after a turn of the user's"
            )
        if root.condition.id in seen:
            raise InputError(
                f"condition id {root.condition.id!r} occurs twice; a tree is known by its "
                f"condition, so give every {scenario.name} user an id of its own"
            )
        seen.add(root.condition.id)
        roots.append(root)
    return roots


def _search_batch(stage: Stage, roots: Sequence[Dialogue]) -> list[FinishedTree]:
    """Grows one batch of trees from their roots to the end of the budget."""
    config = stage.config
    ledgers = stage.plant(roots)
    tree = Tree.create(config.trees, config.nodes, max(config.width, config.reactions))
    over = np.array([ledger.entries[Tree.ROOT].terminal for ledger in ledgers])
    tree = dataclasses.replace(tree, terminal=tree.terminal.at[:, Tree.ROOT].set(over))
    for _ in range(config.iterations):
        tree, selected = uct_select(
            tree,
            config.c_uct,
            leaves=config.leaves,
            widening_factor=config.widening_factor,
            widening_exponent=config.widening_exponent,
        )
        leaves = np.asarray(selected)
        slots = _plan(stage, ledgers, leaves)
        reached = np.full(len(slots.leaf), Tree.NO_NODE, np.int32)
        returns = np.full((len(slots.leaf), config.rollouts), np.nan)
        if (slots.responding | slots.widening).any():
            samples = stage.expand(ledgers, slots)
            tree, reached = _add(tree, ledgers, slots, samples)
            returns = samples.returns
        tree = _send_up(tree, config, ledgers, leaves, reached, returns)
    arrays = jax.device_get(tree)
    return [
        ledger.finish(arrays, index, scenario=stage.scenario.name)
        for index, ledger in enumerate(ledgers)
        if ledger.active
    ]


def _plan(stage: Stage, ledgers: list[Ledger], leaves: np.ndarray) -> Slots:
    """What there is to do at the selected leaves, `[B, L]`."""
    shape = (*leaves.shape, stage.config.width)
    source, turns, sample = (np.zeros(shape, np.int64) for _ in range(3))
    responding, widening = np.zeros(shape, bool), np.zeros(shape, bool)
    for b, ledger in enumerate(ledgers):
        for k, leaf in enumerate(leaves[b]):
            entry = ledger.entries[leaf]
            if not ledger.active or entry.terminal:
                continue
            if leaf in leaves[b, :k]:
                ledger.counts["collisions"] += 1
                continue
            source[b, k] = entry.row
            if entry.kind == "decision":
                responding[b, k] = True
                turns[b, k] = entry.turns
                sample[b, k] = np.arange(shape[-1])
            else:
                # One more reaction to what was the last policy turn.
                widening[b, k, 0] = True
                turns[b, k] = entry.turns - 1
                sample[b, k] = ledger.reactions[leaf]
    conditions = np.array([hashed(ledger.root.condition.id) for ledger in ledgers])
    tree, leaf, condition = (
        np.broadcast_to(array, shape).ravel()
        for array in (
            np.arange(len(ledgers))[:, None, None],
            leaves[:, :, None],
            conditions[:, None, None],
        )
    )
    return Slots(
        tree=tree,
        leaf=leaf,
        source=source.ravel(),
        turns=turns.ravel(),
        base=identity_base(seed=stage.seed, condition=condition, node=leaf, sample=sample.ravel()),
        responding=responding.ravel(),
        widening=widening.ravel(),
    )


def _add(
    tree: Tree, ledgers: list[Ledger], slots: Slots, samples: Samples
) -> tuple[Tree, np.ndarray]:
    """New responses, then new reactions, to trees and ledgers; `[S]` the reactions' ids."""
    trees = len(ledgers)
    shape = (trees, -1)
    parents = np.where(samples.fresh, slots.leaf, Tree.NO_NODE)
    tree, ids = add_children(tree, parents.reshape(shape))
    responses = np.asarray(ids).ravel()
    parents = np.where(slots.widening, slots.leaf, responses)
    tree, ids = add_children(
        tree,
        parents.reshape(shape),
        samples.over.reshape(shape),
    )
    reactions = np.asarray(ids).ravel()
    for slot in np.flatnonzero(slots.responding).tolist():
        _count(ledgers[slots.tree[slot]].counts, "policy", samples.responses[slot])
    for slot in np.flatnonzero(responses != Tree.NO_NODE).tolist():
        ledger, said = ledgers[slots.tree[slot]], samples.responses[slot]
        assert said is not None
        entry = Entry(
            kind="response",
            text=words(said),
            turns=int(slots.turns[slot]) + 1,
            row=int(samples.response_row[slot]),
            multiplicity=int(samples.multiplicity[slot]),
            truncated=said.truncated,
        )
        ledger.add(int(responses[slot]), entry)
        ledger.counts["duplicates"] += entry.multiplicity - 1
    for slot in np.flatnonzero(reactions != Tree.NO_NODE).tolist():
        ledger, said = ledgers[slots.tree[slot]], samples.reactions[slot]
        assert said is not None
        _count(ledger.counts, "simulator", said)
        ledger.reactions[int(parents[slot])] += 1
        entry = Entry(
            kind="decision",
            text=said.text if said.ended else words(said),
            turns=int(slots.turns[slot]) + 1,
            row=int(samples.reaction_row[slot]),
            terminal=bool(samples.over[slot]),
            outcome=float(samples.outcome[slot]),
            truncated=said.truncated,
        )
        ledger.add(int(reactions[slot]), entry)
    return tree, reactions


def _count(counts: Counter[str], speaker: str, said: Utterance | None) -> None:
    if said is not None:
        counts[f"{speaker}_tokens"] += said.num_tokens
        counts["silent"] += said.text in ("", SILENCE) and not said.ended


def _send_up(
    tree: Tree,
    config: SearchConfig,
    ledgers: list[Ledger],
    leaves: np.ndarray,
    reached: np.ndarray,
    returns: np.ndarray,
) -> Tree:
    """Returns `[S, R]` from the reactions reached, `[S]`, and from leaves that were terminal."""
    # A dialogue that is over has its outcome sent up again: nothing else can come of it.
    ends = [
        [ledger.entries[leaf] for leaf in row] for ledger, row in zip(ledgers, leaves, strict=True)
    ]
    over = np.array([[entry.terminal for entry in row] for row in ends])
    outcomes = np.array([[entry.outcome for entry in row] for row in ends])
    reached = np.repeat(reached, config.rollouts).reshape(len(ledgers), -1)
    return backpropagate(
        tree,
        np.concatenate([reached, np.where(over, leaves, Tree.NO_NODE)], axis=1),
        np.concatenate([returns.reshape(len(ledgers), -1), outcomes], axis=1),
        gamma=config.gamma,
        selected=leaves,
    )
