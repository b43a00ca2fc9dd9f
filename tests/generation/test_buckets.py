"""Shapes: few, never too small, and a row's padding depends on its own tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ixjax.generation.buckets import (
    CHUNKS,
    chunk_of,
    decode_spans,
    filled,
    group,
    pass_sizes,
    read_spans,
    span_of,
)
from ixjax.padding import bucket


@given(st.integers(1, 200).map(lambda n: 64 * n), st.data())
def test_spans_cover_what_is_held_with_little_to_spare(columns, data):
    held = data.draw(st.integers(0, columns))
    for spans, factor, most in ((decode_spans, 1.25, 40), (read_spans, 2, 11)):
        span = span_of(held, spans(columns))
        assert held <= span <= max(held * factor + 64, 64)
        assert span % 64 == 0
        assert spans(columns)[-1] == columns
        assert len(spans(columns)) < most


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 900)), min_size=1, max_size=90),
    st.sampled_from([64, 1024]),
    st.sampled_from([1, 4, 64]),
)
def test_every_context_is_in_one_pass_that_has_room_for_it(contexts, prefill_tokens, most):
    counts, lengths = (list(column) for column in zip(*contexts, strict=True))
    passes = group(counts, lengths, prefill_tokens=prefill_tokens, rows=most)
    members = [i for part in passes for i in part.rows]
    assert sorted(members) == [i for i, count in enumerate(counts) if count]
    for part in passes:
        sizes = pass_sizes(part.chunk, prefill_tokens=prefill_tokens, rows=most)
        assert part.size in sizes
        assert 0 < len(part.rows) <= part.size <= bucket(most, smallest=1)
        assert part.size * part.chunk <= max(prefill_tokens, part.chunk)
        for i in part.rows:
            assert part.chunk == chunk_of(counts[i])
            assert part.chunk >= min(counts[i], CHUNKS[0])
            assert part.chunk < counts[i] + 24
        assert len({lengths[i] > 0 for i in part.rows}) == 1
        assert not part.full or len(part.rows) == part.size
    # A handful of shapes for anything that is to be read.
    assert len({(part.size, part.chunk) for part in passes}) <= 2 * len(CHUNKS)


def test_padding_repeats_the_first():
    assert filled([7, 2], 4).tolist() == [7, 2, 7, 7]
    assert filled([], 2).tolist() == [0, 0]
