"""Whole searches against one that is written plainly: the same trees, node for node."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy.stats import chi2_contingency

from ixjax.io import InputError
from ixjax.search import SearchConfig, run
from tests.reference.plain_imcts import PlainSearch
from tests.search.doubles import MoodScenario, MoodUser, even_policy, roots


@dataclasses.dataclass(frozen=True)
class GladScenario(MoodScenario):
    """A reaction earns something by itself: the mood that it tells."""

    def reaction_reward(self, text: str) -> float:
        return int(text.rsplit(maxsplit=1)[-1]) / MoodUser.TOP


BASE = SearchConfig(trees=3, iterations=12, width=4, max_turns=4)
CONFIGS = {
    "one leaf": {},
    "several leaves": {"leaves": 3},
    "rollouts": {"rollouts": 3, "leaves": 2},
    "reactions": {"reactions": 3},
    "more reactions than iterations": {
        "iterations": 4,
        "width": 2,
        "reactions": 6,
        "widening_factor": 3.0,
        "widening_exponent": 0.5,
    },
    "widening": {"widening_factor": 1.5, "widening_exponent": 0.6, "c_uct": 0.5},
    "discount": {"gamma": 0.8, "leaves": 2},
    "max backup": {"backup": "max", "gamma": 0.9},
    "puct": {"rule": "puct", "c_uct": 2.0},
    "shaping": {"reaction_weight": 0.25, "gamma": 0.9, "rollouts": 2},
    "all at once": {
        "leaves": 2,
        "rollouts": 2,
        "reactions": 2,
        "widening_factor": 2.0,
        "widening_exponent": 0.5,
        "gamma": 0.9,
        "backup": "max",
        "reaction_weight": 0.1,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_trees_are_those_of_the_plain_search(name):
    config = dataclasses.replace(BASE, **CONFIGS[name])
    scenario = GladScenario()
    for tree, root in zip(
        run(even_policy(), MoodUser(), scenario, roots(3), config, seed=4), roots(3), strict=True
    ):
        plain = PlainSearch(
            even_policy(), MoodUser(), root, config, seed=4, reward=scenario.reaction_reward
        )
        nodes = plain.run()
        assert len(tree.nodes) == len(nodes) > 10
        for node, other in zip(tree.nodes, nodes, strict=True):
            assert node.kind == other.kind
            assert tree.dialogue_at(node.id).turns == plain.dialogues[node.id].turns
            assert (node.visits, node.terminal) == (other.visits, other.terminal)
            assert math.isclose(node.value_sum, other.value_sum, rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.slow
def test_more_leaves_do_not_change_what_returns_are_drawn_from():
    """With every leaf a fresh sample of the same response, returns have one distribution."""
    flat = SearchConfig(
        trees=12,
        width=8,
        max_turns=3,
        c_uct=2.0,
        widening_factor=2.0,
        widening_exponent=1.0,
        iterations=64,
    )
    several = dataclasses.replace(flat, iterations=16, leaves=4)
    sides, returns = (even_policy(), MoodUser(), MoodScenario()), {}
    for seed, config in enumerate((flat, several)):
        by_text: dict[str, list[float]] = {}
        for tree in run(*sides, roots(36)[::3], config, seed=seed):
            for node in tree.children(0):
                single = [r.value_sum for r in tree.children(node.id) if r.visits == 1]
                by_text.setdefault(node.text, []).extend(single)
        returns[config.leaves] = by_text
    for text, flat_returns in returns[1].items():
        others = returns[4][text]
        levels = sorted({*flat_returns, *others})  # quarters: the user's moods
        table = [[found.count(level) for level in levels] for found in (flat_returns, others)]
        assert min(map(sum, table)) > 100
        assert chi2_contingency(table).pvalue > 0.01, (text, table)


def test_a_weight_for_reactions_that_earn_nothing_is_refused():
    config = dataclasses.replace(BASE, reaction_weight=0.5)
    policy = even_policy()
    with pytest.raises(InputError, match=r"search.reaction_weight is 0.5, but scenario 'mood'"):
        list(run(policy, MoodUser(), MoodScenario(), roots(1), config))
    assert "speak" not in policy.calls  # nothing was played before that
