"""One tree of i×MCTS, from its root to its record: select, expand, roll out, back-propagate.

At a decision leaf the policy samples `width` responses, of which equal ones become one. The user
reacts to each response `reactions` times, and each reaction is followed by `rollouts` rollouts to
the end of the dialogue. At a response leaf the user reacts once more. A tree waits for turns,
outcomes and tree arithmetic, which the driver batches over all trees; its result does not depend on
other trees.

The method is docs/algorithm.md, "The tree", after Wang et al. 2025, arXiv 2506.21497.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ixjax.dialogue.scenarios.base import RewardsReactions, Scenario
from ixjax.dialogue.types import Dialogue, Utterance
from ixjax.generation import (
    Participant,
    Rollout,
    Speaker,
    Task,
    User,
    UserParticipant,
    rollout,
    together,
)
from ixjax.generation.turns import OPENING, POLICY, USER, engagements, hashed, words
from ixjax.io import InputError
from ixjax.search.config import SearchConfig
from ixjax.search.expansion import Expansion, Reaction, Response, add, readable
from ixjax.search.node_table import NodeTable, Participants, policy_turns
from ixjax.search.tree import FinishedTree, Tree, TreeNode
from ixjax.search.tree_pool import TreePool


def check_reaction_weight(config: SearchConfig, scenario: Scenario) -> None:
    """Raise `InputError` for `reaction_weight` in a scenario without rewards for reactions."""
    if config.reaction_weight and not isinstance(scenario, RewardsReactions):
        raise InputError(
            f"search.reaction_weight is {config.reaction_weight}, but scenario {scenario.name!r} "
            "has no `reaction_reward(text)`; expected 0, or a scenario with that method"
        )


@dataclasses.dataclass(frozen=True)
class Search:
    """The arguments that all trees of a search share.

    policy: the side that is searched for.
    simulator: the user.
    scenario: says who opens, and may reward reactions.
    config: budget and constants.
    seed: of the run.
    pool: holds the trees' arrays.
    """

    policy: Speaker
    simulator: User
    scenario: Scenario
    config: SearchConfig
    seed: int
    pool: TreePool

    def __post_init__(self) -> None:
        check_reaction_weight(self.config, self.scenario)

    def reward(self, reaction: Utterance) -> float:
        """Return the weighted reward of a reaction."""
        weight, scenario = self.config.reaction_weight, self.scenario
        if not weight or not isinstance(scenario, RewardsReactions):
            return 0.0
        return weight * scenario.reaction_reward(reaction.text)


def search_tree(search: Search, root: Dialogue | FinishedTree) -> Task[FinishedTree]:
    """Grow a tree from a root until its budget is spent.

    Args:
        search: shared by all trees.
        root: a dialogue in which the policy moves next or the user opens, or a finished tree to
            search further.
    """
    pool, config = search.pool, search.config
    slot = yield from pool.acquire()
    try:
        known = root if isinstance(root, FinishedTree) else None
        dialogue = root.root if isinstance(root, FinishedTree) else root
        table = yield from _plant(search, dialogue)
        yield from pool.root(slot, terminal=table.nodes[Tree.ROOT].terminal, known=known)
        if known is not None:
            for node in known.nodes[1:]:
                table.add(node)
        while not (yield from _stops(search, table, slot)):
            leaves = yield from pool.select(slot)
            expansions = yield from _expand(search, table, leaves)
            reached = yield from add(pool, table, slot, expansions)
            # A selected terminal node sends its outcome up again: it has no other return.
            ends = [table.nodes[leaf] for leaf in leaves if table.nodes[leaf].terminal]
            again = [(n.id, math.nan if n.outcome is None else n.outcome) for n in ends]
            yield from pool.backpropagate(slot, [*reached, *again], selected=leaves)
            table.iteration += 1
            table.close_oldest(config.kept)
        statistics = yield from pool.statistics(slot)
        table.close()
    finally:
        pool.release(slot)
    return table.finish(statistics, scenario=search.scenario.name)


def _plant(search: Search, root: Dialogue) -> Task[NodeTable]:
    """Return a table with a root; if the scenario lets the user open, it speaks first."""
    policy, user = search.policy.begin(root), search.simulator.begin(root)
    table = NodeTable(root, search.policy, search.simulator)
    over = policy_turns(root) >= search.config.max_turns
    if not root.turns and not search.scenario.policy_opens:
        identity = _identity(search, table, Tree.ROOT, 0)
        said = yield from user.speak((*identity, OPENING, USER))
        table.spend("simulator", [said])
        if said.text:
            table.root = root.said("user", said.text)
        over = said.ended
        if not over:
            policy.hear(words(said))
    outcome = None
    if over:
        [outcome] = engagements([(yield from user.outcome())]).tolist()
        policy.close()
        user.close()
    else:
        table.hold(Tree.ROOT, (policy, user))
    node = TreeNode(Tree.ROOT, Tree.NO_NODE, "decision", "", 0, 0, 0.0, terminal=over)
    table.add(dataclasses.replace(node, outcome=readable(outcome)))
    return table


def _expand(search: Search, table: NodeTable, leaves: Sequence[int]) -> Task[list[Expansion]]:
    """Expand all selected leaves at once."""
    tasks: list[Task[Expansion]] = []
    for leaf in dict.fromkeys(leaves):
        if table.nodes[leaf].terminal:
            continue
        table.counts["collisions"] += leaves.count(leaf) - 1
        expand = _respond if table.nodes[leaf].kind == "decision" else _widen
        tasks.append(expand(search, table, leaf))
    return (yield from together(tasks))


def _identity(search: Search, table: NodeTable, leaf: int, sample: int) -> tuple[int, ...]:
    """Return the first numbers of the identities of a leaf's turns."""
    return (search.seed & 0xFFFFFFFF, hashed(table.root.condition.id), leaf, sample)


def _respond(search: Search, table: NodeTable, leaf: int) -> Task[Expansion]:
    """Sample responses at a decision node; equal ones become one."""
    config, turns = search.config, table.turns(leaf)
    identities = [_identity(search, table, leaf, nth) for nth in range(config.width)]
    policy, user = table.participants(leaf)
    policies = yield from policy.fork(config.width)
    said = yield from together(
        [p.speak((*i, turns, POLICY)) for p, i in zip(policies, identities, strict=True)]
    )
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for nth, response in enumerate(said):
        table.count("policy", response)
        alike[words(response)].append(nth)
    for others in alike.values():
        for nth in others[1:]:
            policies[nth].close()
    responses = yield from together(
        [
            _react_to(search, table, leaf, equal, said[equal[0]], policies[equal[0]], user)
            for equal in alike.values()
        ]
    )
    return Expansion(leaf, responses)


def _react_to(
    search: Search,
    table: NodeTable,
    leaf: int,
    equal: Sequence[int],
    said: Utterance,
    policy: Participant,
    user: UserParticipant,
) -> Task[Response]:
    """Sample the reactions to a response at a leaf.

    Args:
        search: shared.
        table: of the tree.
        leaf: the decision node.
        equal: indices of the samples with this text.
        said: the first of them.
        policy: has said it.
        user: has not heard it yet.
    """
    config = search.config
    again = config.most_reactions > 1  # whether there may be later reactions
    count = config.reactions + again
    policies = (yield from policy.fork(count - 1)) if count > 1 else []
    policies = [policy, *policies]
    users = yield from user.fork(count)
    for one in users:
        one.hear(words(said))
    reactions = yield from together(
        [
            _react(
                search,
                table,
                _identity(search, table, leaf, equal[0] + more * config.width),
                (policies[more], users[more]),
                turns=table.turns(leaf),
            )
            for more in range(config.reactions)
        ]
    )
    held = (policies[-1], users[-1]) if again else None
    return Response(said, len(equal), held, reactions)


def _widen(search: Search, table: NodeTable, leaf: int) -> Task[Expansion]:
    """Sample one more reaction to a response."""
    policy, user = table.participants(leaf)
    [policy] = yield from policy.fork(1)
    [user] = yield from user.fork(1)
    identity = _identity(search, table, leaf, table.reactions(leaf))
    reaction = yield from _react(
        search, table, identity, (policy, user), turns=table.turns(leaf) - 1
    )
    return Expansion(leaf, reaction=reaction)


def _react(
    search: Search,
    table: NodeTable,
    identity: tuple[int, ...],
    participants: Participants,
    *,
    turns: int,
) -> Task[Reaction]:
    """Sample a reaction and its returns: by rollouts, or the outcome if the dialogue is over.

    Args:
        search: shared.
        table: of the tree.
        identity: of the sample.
        participants: the policy has said the response, the user has heard it.
        turns: policy turns before the response.
    """
    config, (policy, user) = search.config, participants
    said = yield from user.speak((*identity, turns, USER))
    table.count("simulator", said)
    reward = search.reward(said)
    if said.ended or turns + 1 >= config.max_turns:
        policy.close()
        [outcome] = engagements([(yield from user.outcome())]).tolist()
        user.close()
        # One return per rollout of other reactions, so that all reactions have equal weight in
        # their ancestors' means.
        returns = np.full(config.rollouts, outcome)
        return Reaction(said, True, reward, outcome, None, returns)
    policy.hear(words(said))
    policies = yield from policy.fork(config.rollouts)
    users = yield from user.fork(config.rollouts)
    *base, nth = identity
    played = yield from together(
        [
            rollout(
                policies[r],
                users[r],
                (*base, nth * config.rollouts + r),
                turns=turns + 1,
                max_turns=config.max_turns,
            )
            for r in range(config.rollouts)
        ]
    )
    for found in played:
        table.spend("policy", found.said[POLICY])
        table.spend("simulator", found.said[USER])
    returns = np.array([_return(search, found) for found in played])
    return Reaction(said, False, reward, math.nan, participants, returns)


def _return(search: Search, found: Rollout) -> float:
    """Return a rollout's rewards and engagement, discounted to its first turn."""
    gamma, reactions = search.config.gamma, found.said[USER]
    shaping = sum(gamma**k * search.reward(said) for k, said in enumerate(reactions, start=1))
    return shaping + gamma ** len(reactions) * found.reading.engagement


def _stops(search: Search, table: NodeTable, slot: int) -> Task[bool]:
    """Return whether the budget is spent, or the root's responses are in a settled order."""
    config, size = search.config, len(table.nodes)
    if table.iteration >= config.iterations or size + config.growth > search.pool.capacity:
        return True
    if not table.iteration:
        return False
    if 0 < config.max_tokens <= table.tokens:
        return True
    if not config.stop_gap:
        return False
    statistics = yield from search.pool.statistics(slot)
    return _settled(table, statistics, gap=config.stop_gap)


def _settled(table: NodeTable, statistics: dict[str, np.ndarray], *, gap: float) -> bool:
    """Return whether adjacent means of the root's responses differ by `gap` standard errors.

    A mean of N returns in [0, 1] has a standard error of at most 1 / (2 sqrt N). With a single
    response the answer is False.
    """
    visits, value_sum = statistics["visits"], statistics["value_sum"]
    responses = [node.id for node in table.nodes if node.parent == Tree.ROOT]
    means = sorted((value_sum[i] / visits[i], visits[i]) for i in responses if visits[i])
    if len(means) < max(2, len(responses)):
        return False
    gaps = [
        (high - low) / math.hypot(0.5 / math.sqrt(n), 0.5 / math.sqrt(m))
        for (low, n), (high, m) in itertools.pairwise(means)
    ]
    return all(found >= gap for found in gaps)
