"""SFT examples: outcomes after earlier turns are branches of their dialogue."""

from __future__ import annotations

import pytest

from ixjax.dialogue.chat import View
from ixjax.dialogue.scenarios import get_scenario
from ixjax.dialogue.types import Dialogue, Outcome, UserCondition
from ixjax.training import sft_examples
from tests.generation.dialogues import template

CONDITION = UserCondition("d", {"need": "listening", "distress": 3, "patience": 4})


def dialogue(turns: int) -> Dialogue:
    found = Dialogue("d", CONDITION, ())
    for _ in range(turns):
        found = found.said("user", "i feel bad .").said("policy", "i hear you .")
    found = found.said("user", "thank you .")
    return Dialogue("d", CONDITION, found.turns, Outcome(1.0, 1.0))


def examples(turns: int, *, max_tokens: int, rate: float = 1.0):
    view = View(get_scenario("sandbox"), "user", template())
    given = {"max_tokens": max_tokens, "prefix_outcome_rate": rate, "seed": 0}
    return view, sft_examples([dialogue(turns)], view, **given)


def test_outcomes_after_earlier_turns_are_branches_of_their_dialogue():
    view, (found,) = examples(3, max_tokens=4000)
    expected = [view.prefix_outcome(dialogue(3), i, max_tokens=4000) for i in (4, 2, 0)]
    assert list(found.branches) == expected
    assert all(one.line == found.line > 0 for one in expected)
    assert len(examples(3, max_tokens=4000, rate=0.0)[1][0].branches) == 0


def test_what_a_row_does_not_hold_is_an_example_of_its_own():
    _, (alone,) = examples(3, max_tokens=4000, rate=0.0)
    room = len(alone.tokens) + len(alone.tokens) // 4
    _, found = examples(3, max_tokens=room)
    assert 0 < len(found[0].branches) < 3
    assert sum(1 + len(example.branches) for example in found) == 4


@pytest.mark.parametrize("dropped", [120])
def test_a_dialogue_that_lost_its_oldest_turns_shares_nothing_with_its_beginning(dropped):
    _, (alone,) = examples(8, max_tokens=4000, rate=0.0)
    _, found = examples(8, max_tokens=len(alone.tokens) - dropped)
    for example in found:
        assert {one.dropped_turns for one in example.branches} <= {example.dropped_turns}
    assert sum(1 + len(example.branches) for example in found) == 9
