"""Shapes: few, never too small, and what a row is padded to is its own affair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.generation.buckets import PIECES, bucket, filled, group, pad, piece_of, span_of, spans


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 4), (1, 4), (4, 4), (5, 8), (64, 64), (65, 128), (9000, 16384)]
)
def test_sizes_are_powers_of_two(size, expected):
    assert bucket(size) == expected


@given(st.integers(1, 200).map(lambda n: 64 * n), st.data())
def test_spans_cover_what_is_held_with_little_to_spare(columns, data):
    held = data.draw(st.integers(0, columns))
    span = span_of(held, columns)
    assert held <= span <= max(held * 1.25 + 64, 64)
    assert span % 64 == 0
    assert spans(columns)[-1] == columns
    assert len(spans(columns)) < 40


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 900)), min_size=1, max_size=90),
    st.sampled_from([64, 1024]),
)
def test_every_row_is_in_one_group_that_has_room_for_it(rows, prefill_tokens):
    lengths = {row: length for row, (_, length) in enumerate(rows)}
    counts = {row: count for row, (count, _) in enumerate(rows) if count}
    groups = group(counts, lengths, prefill_tokens=prefill_tokens, most_rows=len(rows))
    members = [row for part in groups for row in part.rows]
    assert sorted(members) == list(counts)
    for part in groups:
        assert 0 < len(part.rows) <= part.size
        assert part.size * part.piece <= max(prefill_tokens, part.piece)
        for row in part.rows:
            assert part.piece == piece_of(counts[row])
            assert part.piece >= min(counts[row], PIECES[0])
            assert part.piece < counts[row] + 24
        assert len({lengths[row] > 0 for row in part.rows}) == 1
        assert not part.full or len(part.rows) == part.size
    # No more than a handful of shapes, whatever is to be read.
    assert len({(part.size, part.piece) for part in groups}) <= 2 * len(PIECES)


def test_padding_repeats_the_first_and_fills_up():
    assert filled([7, 2], 4).tolist() == [7, 2, 7, 7]
    assert filled([], 2).tolist() == [0, 0]
    padded, counts = pad([[1, 2, 3], []], 4, fill=-1)
    assert padded.tolist() == [[1, 2, 3, -1], [-1, -1, -1, -1]]
    assert counts.tolist() == [3, 0]
