"""The automaton has found a string exactly where the text of the tokens contains one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ixjax.dialogue.token_bytes import token_bytes
from ixjax.generation.stops import (
    FOUND,
    START,
    StopTable,
    advance,
    compile_stops,
    cut,
    stack_stops,
    state_after,
)
from tests.dialogue.chat_families import SENTENCES, build

# Letters that repeat, so that strings overlap; é and è share their first byte.
STRINGS = st.lists(st.text("abéè", min_size=1, max_size=5), max_size=4)
# Pieces that cut characters apart, that say nothing, that hold whole strings and more.
PIECE = st.lists(st.sampled_from([b"a", b"b", b"\xc3", b"\xa9", b"\xa8"]), max_size=7).map(b"".join)
PIECES = st.lists(PIECE, min_size=1, max_size=8)
TOKENS = st.lists(st.integers(0, 9), max_size=12)


def contained(found: list[str], text: bytes) -> bool:
    return any(string.encode() in text for string in found)


@given(STRINGS, PIECES, TOKENS)
@example(["aba"], [b"ab"], [0, 0])  # overlaps itself
@example(["abab", "ba"], [b"a", b"b"], [0, 1, 0])  # one within the other
@example(["b", "ab", "aab"], [b"a", b"b"], [0, 0, 1])  # suffixes of one another
@example(["aab"], [b"a", b"b"], [0, 0, 0, 1])  # falls back to a shorter prefix
@example(["é"], [b"\xc3", b"\xa9"], [0, 1])  # a character over two tokens
@example(["ab"], [b"bbabaab"], [0])  # within one token
@example(["ab"], [b"aab", b"a", b"", b"b"], [1, 2, 3, 1])  # past a token that says nothing
@example([], [b"a"], [0, 0])
def test_found_from_the_first_token_on_whose_text_contains_a_string(strings, pieces, tokens):
    tokens = [token % (len(pieces) + 2) for token in tokens]  # two ids have no piece
    stops = compile_stops(strings, pieces, vocab_size=len(pieces) + 2)
    said = [*pieces, b"", b""]
    for count in range(len(tokens) + 1):
        text = b"".join(said[token] for token in tokens[:count])
        found = state_after(stops, tokens[:count]) == FOUND
        assert found == contained(strings, text), (count, text)


@given(STRINGS, PIECES, TOKENS, st.integers(0, 12))
def test_a_turn_in_two_parts_ends_in_the_state_of_the_whole(strings, pieces, tokens, cut):
    tokens = [token % len(pieces) for token in tokens]
    stops = compile_stops(strings, pieces, vocab_size=len(pieces))
    state = state_after(stops, tokens[:cut])
    assert state_after(stops, tokens[cut:], state=state) == state_after(stops, tokens)


@given(st.sampled_from(SENTENCES), st.data())
def test_any_stretch_of_a_sentence_is_found_where_its_last_token_completes_it(sentence, data):
    start = data.draw(st.integers(0, len(sentence) - 1))
    string = sentence[start : data.draw(st.integers(start + 1, len(sentence)))]
    tokenizer = build("own")
    stops = compile_stops([string], token_bytes(tokenizer), vocab_size=len(tokenizer))
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    found = [state_after(stops, ids[:count]) == FOUND for count in range(len(ids) + 1)]
    assert found == [string in tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]


def test_rows_choose_their_set_and_advance_as_on_the_host():
    pieces = [b"a", b"b", b"ab", b"ba", b""]
    sets = [["abba"], ["bb", "aaa"], []]
    tables = [compile_stops(found, pieces, vocab_size=6) for found in sets]
    stacked = stack_stops(tables, vocab_size=6)
    assert stacked.shape == (4, 5, 6)  # a, ab, abb; b, a, aa: three begun strings are the most
    rng = np.random.default_rng(0)
    which = np.repeat(np.arange(4, dtype=np.int32), 25)
    drawn = rng.integers(0, 6, (100, 8)).astype(np.int32)
    state = np.full(100, START, np.int32)
    never = StopTable(stacked[0])
    step = jax.jit(advance)
    for t in range(8):
        state = step(stacked, which, state, drawn[:, t])
        assert state.dtype == np.int32
        hosts = [
            state_after([never, *tables][i], row[: t + 1])
            for i, row in zip(which, drawn, strict=True)
        ]
        np.testing.assert_array_equal(state, hosts)
    found = np.asarray(state) == FOUND
    assert not found[which == 0].any()
    assert not found[which == 3].any()
    assert found[which == 1].any()
    assert found[which == 2].any()


def test_without_sets_no_row_ever_stops():
    stacked = stack_stops([], vocab_size=3)
    assert stacked.shape == (1, 2, 3)
    np.testing.assert_array_equal(stacked[0, START], START)


def test_a_large_vocabulary_with_tokens_of_any_length():
    strings = ["\nUser:", "\nAssistant:", "###", "…"]
    rng = np.random.default_rng(0)
    parts = [*strings, "\n", "\nUser", " word", "#"]
    pieces = ["".join(rng.choice(parts, count)).encode() for count in rng.geometric(0.5, 50_000)]
    stops = compile_stops(strings, pieces, vocab_size=60_000)
    assert stops.table.shape == (20, 60_000)
    found = np.array([contained(strings, piece) for piece in pieces])
    np.testing.assert_array_equal(stops.table[START, :50_000] == FOUND, found)
    np.testing.assert_array_equal(stops.table[:, 50_000:], np.arange(20)[:, None].repeat(10_000, 1))


@pytest.mark.parametrize(
    ("strings", "vocab_size", "message"),
    [
        (["User:", ""], 2, r"stop strings are \['User:', ''\]; expected a character in each"),
        (["a"], 1, "vocab_size is 1; expected 2 or more, .* Take vocab_size from the model"),
        (["é" * 2000, "a" * 97], 2, "stop strings have 4097 bytes; expected 4096"),
    ],
)
def test_what_cannot_be_compiled_is_refused(strings, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        compile_stops(strings, [b"a", b"b"], vocab_size=vocab_size)


def test_tables_of_two_vocabularies_are_not_stacked():
    tables = [compile_stops(["a"], [b"a"], vocab_size=size) for size in (3, 4)]
    with pytest.raises(ValueError, match="table 1 is for a vocabulary of 4; expected 3"):
        stack_stops(tables, vocab_size=3)


def test_a_turn_is_cut_in_front_of_the_first_stop_string():
    pieces = ["Hi", " the", "re\nUs", "er:", " me"]
    tokens = [0, 1, 2, 3, 4]
    spelled = [piece.encode() for piece in pieces]
    assert cut(tokens, ["er:", "\nUser:"], spelled) == (2, b"Hi there")
    assert cut(tokens, [" there"], spelled) == (1, b"Hi")
    assert cut(tokens, ["Assistant"], spelled) is None
    assert cut([0, 9, 1], [" the"], spelled) == (2, b"Hi")  # 9 is a token of the model's alone
