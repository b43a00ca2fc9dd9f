"""i×MCTS: many trees at once, one per user.

This module starts trees and yields finished ones; `search_tree` is the method, `uct` the
arithmetic. Trees do not wait for each other: while some play rollouts, others select leaves, so the
decode batch stays full. A finished tree makes room for the next condition.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, UserCondition
from ixjax.generation import Driver, ModelSpeaker, Speaker, User
from ixjax.generation.memory import TYPICAL, dialogue_tokens
from ixjax.generation.speakers import reserve
from ixjax.io import InputError
from ixjax.search.config import SearchConfig
from ixjax.search.search_tree import Search, search_tree
from ixjax.search.selection import SelectionRule
from ixjax.search.stats import SearchStats
from ixjax.search.tree import FinishedTree
from ixjax.search.tree_pool import TreePool

AHEAD = 4  # reorder window, in multiples of `config.trees`


def run(
    policy: Speaker,
    simulator: User,
    scenario: Scenario,
    conditions: Sequence[UserCondition | Dialogue],
    config: SearchConfig,
    *,
    seed: int = 0,
    rule: SelectionRule | None = None,
    stats: SearchStats | None = None,
) -> Iterator[FinishedTree]:
    """Search one tree per condition; yield them in the order of the conditions.

    A tree is a function of the speakers, its condition, the configuration and the seed, not of the
    other conditions or of `config.trees`.

    Args:
        policy: the side that is searched for.
        simulator: the user, who is given the condition and states the outcome.
        scenario: gives the name, and whether the policy opens.
        conditions: users, or dialogues in which the policy moves next. If the user opens, the
            simulator speaks the opening turn of a bare condition.
        config: budget and constants.
        seed: of the run.
        rule: scores responses in selection; default the rule that `config` names.
        stats: totals, to which the time of the search is added.

    Raises:
        InputError: the policy does not move next at a root, two roots share a condition id, or,
            after the last tree, no outcome of the whole run was readable. A single tree without a
            readable outcome is yielded; it has no visits, and its account counts the outcomes.
    """
    roots = searchable(conditions, scenario)
    if not roots:
        return
    arrived, unreadable = 0, 0
    shared = {"seed": seed, "rule": rule, "stats": stats}
    for tree in grow(policy, simulator, scenario, roots, config, **shared):
        arrived += tree.account["simulations"]
        unreadable += tree.account["unreadable"]
        yield tree
    check_readable(arrived, unreadable, scenario)


def check_readable(arrived: int, unreadable: int, scenario: Scenario) -> None:
    """Raise `InputError` if no outcome of a search was readable (`arrived` is 0)."""
    if not arrived:
        raise InputError(
            f"not one of the {unreadable} simulated outcomes could be read; expected a closing "
            f"line that matches {scenario.outcome_pattern.pattern!r}. Train the simulator longer, "
            "or read outcomes as expectations"
        )


def searchable(
    conditions: Sequence[UserCondition | Dialogue], scenario: Scenario
) -> list[Dialogue]:
    """Return roots for `grow`: conditions as dialogues without a turn, dialogues unchanged.

    Raises:
        InputError: the policy does not move next at a root, or two roots share a condition id.
    """
    roots: list[Dialogue] = []
    seen: set[str] = set()
    for given in conditions:
        bare = isinstance(given, UserCondition)
        root = Dialogue(given.id, given, turns=(), outcome=None) if bare else given
        if root.turns and root.turns[-1].role == "policy":
            raise InputError(
                f"dialogue {root.id!r} ends with a turn of the policy; expected the policy to move "
                "next. Cut it after a turn of the user"
            )
        if root.condition.id in seen:
            raise InputError(
                f"condition id {root.condition.id!r} occurs twice; expected a unique id for every "
                f"{scenario.name} user, since trees are named by their conditions"
            )
        seen.add(root.condition.id)
        roots.append(root)
    return roots


def grow(
    policy: Speaker,
    simulator: User,
    scenario: Scenario,
    roots: Sequence[Dialogue | FinishedTree],
    config: SearchConfig,
    *,
    seed: int,
    rule: SelectionRule | None = None,
    stats: SearchStats | None = None,
    nodes: int | None = None,
    in_order: bool = True,
) -> Iterator[FinishedTree]:
    """Search as `run` does, from checked roots; finished trees are searched further.

    Args:
        policy: see `run`.
        simulator: see `run`.
        scenario: see `run`.
        roots: from `searchable`, or finished trees; each has another condition.
        config: see `run`.
        seed: see `run`.
        rule: see `run`.
        stats: see `run`.
        nodes: most nodes of a tree, those of a finished tree included; default by the budget.
        in_order: whether to yield trees in the order of the roots or as they finish.
    """
    stats = stats or SearchStats()
    pool = TreePool(config, nodes=nodes, rule=rule)
    search = Search(policy, simulator, scenario, config, seed, pool)
    _reserve(policy, simulator, roots, config, share=TYPICAL)
    driver, started = Driver(stats.seconds), time.perf_counter()
    finished: dict[int, FinishedTree] = {}
    due = 0
    found = driver.run(
        (search_tree(search, root) for root in roots),
        at_once=config.trees,
        may_start=lambda number: not in_order or number < due + AHEAD * config.trees,
    )
    for number, tree in found:
        stats.total += time.perf_counter() - started
        finished[number] = tree
        while finished and (not in_order or due in finished):
            yield finished.pop(due if in_order else number)
            due += 1
        started = time.perf_counter()


def _reserve(
    policy: Speaker,
    simulator: User,
    roots: Sequence[Dialogue | FinishedTree],
    config: SearchConfig,
    *,
    share: float,
) -> None:
    """Allocate this share of the most that the trees store in the KV cache."""
    trees = min(config.trees, len(roots))

    def tokens(speaker: ModelSpeaker) -> int:
        most = search_tokens(config, speaker.sampling.max_new_tokens, speaker.limit)
        return int(share * trees * most)

    reserve([policy, simulator], tokens)


def search_tokens(config: SearchConfig, turn: int, longest: int) -> int:
    """Return an upper estimate of the tokens that one side of one tree stores at once.

    Each kept node stores one exchange, each rollout the rest of its dialogue, and the root its
    history.

    Args:
        config: of the search.
        turn: most tokens of a turn.
        longest: most tokens of a context.
    """
    held = config.kept * dialogue_tokens(1, turn, longest)
    in_play = config.most_rollouts * dialogue_tokens(config.max_turns, turn, longest)
    return held + in_play + dialogue_tokens(config.max_turns, turn, longest)


def warm_up(
    policy: ModelSpeaker,
    simulator: ModelSpeaker,
    roots: Sequence[Dialogue],
    config: SearchConfig,
) -> None:
    """Compile every program of a search of these roots before it starts.

    Args:
        policy: the side that is searched for.
        simulator: the user.
        roots: of the search.
        config: its budget.
    """
    _reserve(policy, simulator, roots, config, share=1)  # growing would compile again
    conditions = list({root.condition.id: root.condition for root in roots}.values())
    scored = simulator.scored_shapes(conditions)
    ends = max(len(speaker.view.template.end_ids) for speaker in (policy, simulator))
    for engine in {policy.engine, simulator.engine}:
        engine.warm_up(ends=ends, scored=scored if engine is simulator.engine else [])
