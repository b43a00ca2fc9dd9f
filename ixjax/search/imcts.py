"""i×MCTS: many trees at once, one per user.

Here trees are started and handed out as they finish; `search_tree` is the method, `uct` the
arithmetic. Each tree goes at its own pace: while rollouts of some are in play, leaves of others are
selected, so the decode batch stays full. A finished tree makes room for the next condition.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, UserCondition
from ixjax.generation import Driver, ModelSpeaker, Speaker, User
from ixjax.generation.memory import dialogue_tokens
from ixjax.io import InputError
from ixjax.search.config import SearchConfig
from ixjax.search.search_tree import Search, search_tree
from ixjax.search.selection import SelectionRule
from ixjax.search.stats import SearchStats
from ixjax.search.tree import FinishedTree
from ixjax.search.tree_pool import TreePool

AHEAD = 4  # trees that may finish before the oldest one, in multiples of `config.trees`


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
        simulator: the user, who knows its condition and states the outcome.
        scenario: gives the name, and whether the policy opens.
        conditions: users; or dialogues to start from, where it is the policy's move. If the user
            opens, the simulator speaks the opening turn of a bare condition.
        config: budget and constants.
        seed: of the run.
        rule: scores responses in selection; default the rule that `config` names.
        stats: where the time that this takes is added up.

    Raises:
        InputError: a root is not the policy's move, two roots share a condition id, or, once all
            trees were yielded, not a single outcome of the whole run could be read. A single tree
            without a readable outcome is yielded with no visits; its account says so.
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
    """Raise `InputError` if a search with `unreadable` outcomes read none (`arrived` is 0)."""
    if not arrived:
        raise InputError(
            f"not one of the {unreadable} simulated outcomes could be read; expected a closing "
            f"line that matches {scenario.outcome_pattern.pattern!r}. Train the simulator longer, "
            "or read outcomes out as expectations"
        )


def searchable(
    conditions: Sequence[UserCondition | Dialogue], scenario: Scenario
) -> list[Dialogue]:
    """Return roots for `grow`: conditions as dialogues without a turn, dialogues unchanged.

    Raises:
        InputError: a root is not the policy's move, or two roots share a condition id.
    """
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
    """As `run`, of roots that can be searched; finished trees grow on.

    Args:
        policy: see `run`.
        simulator: see `run`.
        scenario: see `run`.
        roots: all of different conditions.
        config: see `run`.
        seed: see `run`.
        rule: see `run`.
        stats: see `run`.
        nodes: nodes that a tree can have at most, the known ones included; default what the budget
            allows.
        in_order: yield trees in the order of the roots; otherwise as they finish, so that none
            waits for a slow one.
    """
    stats = stats or SearchStats()
    pool = TreePool(config, nodes=nodes, rule=rule)
    search = Search(policy, simulator, scenario, config, seed, pool)
    _reserve(policy, simulator, roots, config)
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
) -> None:
    """Allocate the KV cache that the trees will need, so that it does not grow step by step."""
    trees = min(config.trees, len(roots))
    for speaker in (policy, simulator):
        if isinstance(speaker, ModelSpeaker):
            tokens = search_tokens(config, speaker.sampling.max_new_tokens, speaker.limit)
            speaker.engine.pool.reserve(trees * tokens)


def search_tokens(config: SearchConfig, turn: int, longest: int) -> int:
    """Return an upper estimate of the tokens that one side of one tree stores at once.

    Every held node stores one exchange of its own, every rollout in play the rest of its dialogue,
    and the root its history.

    Args:
        config: of the search.
        turn: tokens of a turn at most.
        longest: tokens of a context at most.
    """
    held = config.kept * dialogue_tokens(1, turn, longest)
    in_play = config.games * dialogue_tokens(config.max_turns, turn, longest)
    return held + in_play + dialogue_tokens(config.max_turns, turn, longest)


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
    _reserve(policy, simulator, roots, config)
    conditions = list({root.condition.id: root.condition for root in roots}.values())
    for speaker in (policy, simulator):
        speaker.engine.warm_up(
            ends=len(speaker.view.template.end_ids), scored=speaker.scored_shapes(conditions)
        )
