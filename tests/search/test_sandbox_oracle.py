"""With the sandbox's true user as simulator, the search finds what enumeration says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ixjax.dialogue.scenarios.sandbox import (
    RESPONSES,
    SandboxScenario,
    TrueUser,
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
        config = SearchConfig(
            trees=6,
            iterations=iterations,
            width=24,
            max_turns=MAX_TURNS,
            c_uct=2.0,
            widening_factor=2.0,
            widening_exponent=1.0,
        )
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
