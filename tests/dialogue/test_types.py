"""Every valid dialogue can be written, read and rendered."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue.types import Dialogue, Outcome, Turn, UserCondition, text_problem

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1)
texts = texts.filter(str.strip)
numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
outcomes = st.builds(Outcome, st.floats(-1e6, 1e6), st.floats(0, 1))


@st.composite
def dialogues(draw):
    """Draw a valid dialogue."""
    said = draw(st.lists(texts, max_size=6))
    order = draw(st.sampled_from([("user", "policy"), ("policy", "user")]))
    name = draw(texts)
    return Dialogue(
        id=name,
        condition=UserCondition(name, draw(st.dictionaries(texts, texts | numbers, max_size=4))),
        turns=tuple(Turn(order[i % 2], text) for i, text in enumerate(said)),
        outcome=draw(st.none() | outcomes),
        groups=tuple(draw(st.lists(texts, max_size=3))),
    )


@given(dialogues())
def test_json_round_trip(dialogue):
    assert Dialogue.from_json(json.loads(json.dumps(dialogue.to_json()))) == dialogue


@given(dialogues(), texts)
def test_saying_a_turn_opens_the_outcome_and_leaves_the_dialogue_as_it_was(dialogue, text):
    turns = dialogue.turns
    role = "user" if turns and turns[-1].role == "policy" else "policy"
    after = dialogue.said(role, text)
    assert after.turns == (*turns, Turn(role, text))
    assert after.outcome is None
    assert dialogue.turns == turns
    assert after.before(len(turns)).turns == turns
    with pytest.raises(ValueError, match=rf"turns {len(turns)} and {len(turns) + 1} are both the"):
        after.said(role, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("a\0b", "holds a NUL character at 1"),
        ("ab\ud83dc", "holds a lone surrogate (U+D83D) at 2"),
        ("\udc00", "holds a lone surrogate (U+DC00) at 0"),
        (None, "is null"),
        (3, "is 3"),
    ],
)
def test_text_that_no_file_can_hold_is_refused(text, problem):
    assert text_problem(text) == problem
    with pytest.raises(ValueError, match=re.escape(f"text {problem}")):
        Turn("user", text)


@given(st.text())
def test_text_is_fine_just_if_it_has_content_and_encodes(text):
    """Python's encoder refuses lone surrogates."""
    try:
        encodes = bool(text.encode())
    except UnicodeEncodeError:
        encodes = False
    assert (text_problem(text) is None) == (encodes and "\0" not in text and not text.isspace())


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="role is 'assistant'; expected 'policy' or 'user'"):
        Turn("assistant", "hi")


@pytest.mark.parametrize("engagement", [-0.01, 1.01, float("nan"), float("inf")])
def test_an_engagement_out_of_range_is_refused(engagement):
    with pytest.raises(ValueError, match=r"engagement is .*; expected a number in \[0, 1\]"):
        Outcome(1.0, engagement)
