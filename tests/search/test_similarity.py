"""The similarity of texts is Dice's coefficient of their character trigrams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.search.similarity import text_similarity

texts = st.text(max_size=40)


@given(texts, texts)
def test_it_is_symmetric_and_between_0_and_1(first, second):
    similarity = text_similarity(first, second)
    assert 0 <= similarity <= 1
    assert similarity == text_similarity(second, first)


@given(texts)
def test_a_text_is_like_itself_whatever_its_spaces_and_punctuation(text):
    assert text_similarity(text, text) == 1
    assert text_similarity(text, f" ({text}) \n!") == 1


@given(st.text("abc", min_size=1), st.text("xyz", min_size=1))
def test_texts_without_a_common_letter_share_nothing(first, second):
    assert text_similarity(first, second) == 0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Counted by hand: "·ab·" and "·ac·" have two trigrams each, none in common.
        ("ab", "ac", 0),
        # "·ab·cd·" has ·ab ab· b·c ·cd cd·; "·ab·ce·" has ·ab ab· b·c ·ce ce·: 2·3 / (5 + 5).
        ("ab cd", "ab ce", 0.6),
        # "·aaaa·" has ·aa aaa aaa aa·; "·aaa·" has ·aa aaa aa·: repetitions count, 2·3 / (4 + 3).
        ("aaaa", "aaa", 6 / 7),
        ("I hear you.", "i  hear you!", 1),
        ("well-known", "well known", 1),
        ("cafe\u0301", "caf\u00e9", 1),  # an accent of its own, or in its letter
        ("?!", "...", 1),
        ("", "a", 0),
        ("🙂", "🙁", 0),
        # No spaces between words: "·我很难过·" against "·我很高兴·" has one trigram in common of 4.
        ("我很难过。", "我很高兴。", 0.25),
    ],
)
def test_examples(first, second, expected):
    assert text_similarity(first, second) == pytest.approx(expected)


def test_one_other_word_in_a_long_turn_is_nearly_the_same_and_a_negation_of_a_short_one_is_not():
    turn = "That sounds like a hard week. What would help you most tonight, rest or company?"
    assert text_similarity(turn, turn.replace("hard", "long")) > 0.9
    assert text_similarity("You are alone.", "You are not alone.") < 0.9
