"""With the sandbox's true user as simulator, the search finds what enumeration says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from ixjax.dialogue.scenarios.sandbox import (
    RESPONSES,
    SandboxScenario,
    TrueUser,
    best_response_values,
    need_of,
    response_values,
    sample_condition,
)
from ixjax.dialogue.types import Dialogue
from ixjax.search import SearchConfig, Tree, run
from tests.search.doubles import TablePolicy

MAX_TURNS = 2
# One way to say each act: enumeration grows with the number of texts.
TABLE = {texts[0]: 1 / len(RESPONSES) for texts in RESPONSES.values()}

# Every visit of a root response samples a reaction of its own, and nothing below it is chosen.
FRESH_REACTIONS = SearchConfig(
    width=24, max_turns=MAX_TURNS, c_uct=2.0, widening_factor=2.0, widening_exponent=1.0
)


def table(dialogue: Dialogue) -> dict[str, float]:
    return TABLE


def search(config: SearchConfig, *, conditions: int):
    users = [sample_condition(f"u{i}", np.random.default_rng([5, i])) for i in range(conditions)]
    return list(run(TablePolicy(table), TrueUser(0), SandboxScenario(), users, config))


def test_root_action_values_converge_to_the_enumerated_ones():
    """Error against simulations: it falls as 1/sqrt, and its size is what chance allows.

    Compared is Q^pi(h, a): the expected engagement of a response if the table policy says all
    that follows. k_w = 2 and alpha_w = 1 make every visit to a root response sample a fresh
    reaction and roll the policy out from it, so nothing below the root is chosen and the search
    estimates exactly this. (With few reactions kept, the walk goes deeper and its visits drift to
    better responses than the policy's: then Q estimates the value of the improved policy.)
    """
    errors, largest = {}, 0.0
    for iterations in (4, 32, 256):
        config = dataclasses.replace(FRESH_REACTIONS, trees=6, iterations=iterations)
        squared = []
        for tree in search(config, conditions=6):
            exact = response_values(tree.root, table, max_turns=MAX_TURNS)
            for node in tree.children(Tree.ROOT):
                error = node.value - exact[node.text]
                squared.append(error**2)
                # A return lies in [0, 1], so its deviation is at most 1/2.
                largest = max(largest, abs(error) / (0.5 / math.sqrt(node.visits)))
        errors[iterations] = math.sqrt(np.mean(squared))
    assert errors[32] < errors[4] / 1.5, errors
    assert errors[256] < errors[32] / 1.5, errors
    assert errors[256] < 0.06, errors
    assert largest < 4.0  # standard errors, over about a hundred root responses


@pytest.mark.parametrize(
    ("conditions", "iterations", "expected"),
    [
        # With fewer visits t intervals cover less: returns are few values, and skewed.
        pytest.param(25, 150, (0.85, 0.99), id="few"),
        pytest.param(100, 400, (0.90, 0.99), id="many", marks=pytest.mark.slow),
    ],
)
def test_intervals_of_root_values_cover_the_enumerated_ones(conditions, iterations, expected):
    """Each visit of a root response samples a reaction of its own and one return behind it, so the
    values of its children are draws of Q^pi: a 95 % t interval of their mean covers it 95 times
    in 100. UCT looks again at what looks good, which costs some coverage at a given time.
    """
    config = dataclasses.replace(FRESH_REACTIONS, trees=25, iterations=iterations)
    covered, within_two_errors = [], []
    for tree in search(config, conditions=conditions):
        exact = response_values(tree.root, table, max_turns=MAX_TURNS)
        for response in tree.children(Tree.ROOT):
            reactions = tree.children(response.id)
            assert all(reaction.visits == 1 for reaction in reactions)
            returns = [reaction.value for reaction in reactions]
            if len(returns) < 2:
                continue
            standard_error = np.std(returns, ddof=1) / math.sqrt(len(returns))
            error = abs(response.value - exact[response.text]) - 1e-6  # sums are float32
            covered.append(error <= stats.t.ppf(0.975, len(returns) - 1) * standard_error)
            within_two_errors.append(error <= 2 * standard_error)
    low, high = expected
    print(f"{np.mean(covered):.3f} and {np.mean(within_two_errors):.3f} of {len(covered)}")
    assert len(covered) > 5 * conditions
    assert low <= np.mean(covered) <= high
    assert low <= np.mean(within_two_errors) <= high


def regrets(iterations: int, *, conditions: int) -> np.ndarray:
    """What the most visited response of each root is worth less than the best one.

    Worth is exact, if the best is said ever after: what a search approaches. Reactions widen with
    the square root of the visits; with a few that are kept for good, it would approach the best
    response to those.
    """
    config = SearchConfig(
        trees=25,
        iterations=iterations,
        width=24,  # at which one root in a hundred lacks some act
        max_turns=3,
        widening_factor=2.0,
        widening_exponent=0.5,
    )
    found = []
    for tree in search(config, conditions=conditions):
        worth = best_response_values(tree.root, TABLE, max_turns=3)
        chosen = max(tree.children(Tree.ROOT), key=lambda node: (node.visits, node.value))
        found.append(max(worth.values()) - worth[chosen.text])
    return np.array(found)


@pytest.mark.parametrize(
    ("budgets", "conditions", "left"),
    [
        pytest.param((4, 32), 25, 0.5, id="few"),
        # The table of docs/sandbox.md.
        pytest.param((4, 16, 64, 256), 100, 0.25, id="many", marks=pytest.mark.slow),
    ],
)
def test_regret_falls_as_the_budget_grows(budgets, conditions, left):
    found = {n: regrets(n, conditions=conditions) for n in budgets}
    curve = {n: float(regret.mean()) for n, regret in found.items()}
    for n, regret in found.items():
        error = regret.std() / math.sqrt(conditions)
        print(f"{n} iterations: {curve[n]:.4f} ± {error:.4f}, best in {np.mean(regret < 1e-9):.2f}")
    falling = list(curve.values())
    assert falling == sorted(falling, reverse=True), curve
    assert falling[-1] < left * falling[0], curve


@pytest.mark.parametrize(("leaves", "rollouts"), [(1, 1), (4, 2)])
def test_a_deep_search_finds_the_response_that_fits_the_need(leaves, rollouts):
    config = SearchConfig(
        trees=8,
        iterations=40 // leaves,
        leaves=leaves,
        rollouts=rollouts,
        width=16,
        max_turns=3,
        widening_factor=4.0,
    )
    fitting = 0
    for tree in search(config, conditions=8):
        best = max(tree.children(Tree.ROOT), key=lambda node: (node.visits, node.value))
        fitting += best.text in RESPONSES[need_of(tree.root.condition)]
    assert fitting >= 6
