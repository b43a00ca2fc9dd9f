"""i×MCTS: the policy and the simulated user talk, and a tree per user keeps what that earned.

Many trees grow at once, each at its own pace: while rollouts of some are still in play, leaves of
others are selected, so that the decode batch stays full; a tree that is finished makes room for the
next condition. The arithmetic is `uct`, the talking `expansion`; here is the loop that joins them.

The method is docs/algorithm.md, "The tree", after Wang et al. 2025, arXiv 2506.21497.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, UserCondition
from ixjax.generation import InPlay, ModelSpeaker, Speaker, User, side_by_side
from ixjax.generation.turns import IDENTITY_PARTS
from ixjax.io import InputError
from ixjax.search.account import SearchAccount
from ixjax.search.config import SearchConfig
from ixjax.search.forest import Forest, Growing
from ixjax.search.talk import Talk
from ixjax.search.tree import FinishedTree

AHEAD = 4  # trees may be finished so many times `config.trees` before the oldest one is


def run(
    policy: Speaker,
    simulator: User,
    scenario: Scenario,
    conditions: Sequence[UserCondition | Dialogue],
    config: SearchConfig,
    *,
    seed: int = 0,
    account: SearchAccount | None = None,
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
        account: where the time that this takes is added up.

    Raises:
        InputError: a root is not the policy's move, two roots share a condition id, or, once all
            trees were yielded, not a single outcome of the whole run could be read. A single tree
            without a readable outcome is yielded with no visits; its account says so.
    """
    roots = searchable(conditions, scenario)
    if not roots:
        return
    arrived, unreadable = 0, 0
    for tree in grow(policy, simulator, scenario, roots, config, seed=seed, account=account):
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


def searchable(
    conditions: Sequence[UserCondition | Dialogue], scenario: Scenario
) -> list[Dialogue]:
    """Roots for `grow`: conditions as dialogues without a turn, dialogues as they are.

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
    account: SearchAccount | None = None,
    nodes: int | None = None,
    in_order: bool = True,
) -> Iterator[FinishedTree]:
    """As `run`, of roots that can be searched; trees that were searched before grow on.

    Args:
        policy: see `run`.
        simulator: see `run`.
        scenario: see `run`.
        roots: all of different conditions.
        config: see `run`.
        seed: see `run`.
        account: see `run`.
        nodes: the most nodes that a tree can have, those that it has included; default, what the
            budget allows.
        in_order: yield trees in the order of the roots; otherwise as they finish, so that none
            waits for a slow one.
    """
    account = account or SearchAccount()
    in_play = _side_by_side(policy, simulator, config)
    talk = Talk(in_play, scenario, config, seed)
    forest = Forest(talk, config, scenario.name, nodes=nodes)
    queue = list(enumerate(roots))[::-1]
    to_begin: list[Growing] = []
    playing: dict[int, Growing] = {}  # by place
    due = 0
    while due < len(roots):
        with account.clock("total"):
            while queue and forest.room and queue[-1][0] < due + AHEAD * config.trees:
                to_begin.append(forest.plant(*queue.pop()))
            to_begin = _begin(talk, to_begin, playing)
            with account.clock("play"):
                talk.carry_out()
                events = in_play.advance() if in_play.places else []
            for place, event in events:
                playing[place].task.note(place, event)
            with account.clock("trees"):
                to_begin += forest.grow()
            with account.clock("play"):
                talk.carry_out()
        while forest.finished and (not in_order or due in forest.finished):
            yield forest.finished.pop(due if in_order else next(iter(forest.finished)))
            due += 1
    in_play.close()


def _side_by_side(policy: Speaker, simulator: User, config: SearchConfig) -> InPlay:
    return side_by_side(
        policy,
        simulator,
        max_turns=config.max_turns,
        rows=config.trees * config.games,
        at_least=config.games,
        kept=config.trees * config.kept,
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
    in_play = _side_by_side(policy, simulator, config)
    in_play.close()
    sides = 1 + (policy.engine is simulator.engine)
    rows = sides * (in_play.size + in_play.kept)
    conditions = list({root.condition.id: root.condition for root in roots}.values())
    for speaker in (policy, simulator):
        speaker.warm_up([rows], conditions, identity_parts=IDENTITY_PARTS, moves=[rows])


def _begin(talk: Talk, trees: Sequence[Growing], playing: dict[int, Growing]) -> list[Growing]:
    """Begin the tasks of trees, in their order, while there are places; those that wait on."""
    for i, tree in enumerate(trees):
        places = talk.reserve(tree.task.places_needed)
        if places is None:
            return list(trees[i:])
        playing |= dict.fromkeys(tree.task.begin(places), tree)
    return []
