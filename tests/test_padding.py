"""Sizes are rounded up, and sequences are padded to them."""

from __future__ import annotations

import pytest

from ixjax.padding import bucket, pad, quarter_bucket, round_up


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 4), (1, 4), (4, 4), (5, 8), (64, 64), (65, 128), (9000, 16384)]
)
def test_buckets_are_powers_of_two(size, expected):
    assert bucket(size) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (1, 1), (7, 7), (9, 10), (300, 320), (1024, 1024), (1025, 1280)]
)
def test_quarter_buckets_exceed_a_size_by_a_quarter_at_most(size, expected):
    assert quarter_bucket(size) == expected


def test_a_bucket_is_never_smaller_than_the_smallest():
    assert bucket(3, smallest=1) == 4
    assert bucket(1, smallest=1) == 1
    assert bucket(3, smallest=16) == 16


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_sizes_are_rounded_up_to_multiples(size, expected):
    assert round_up(size, 64) == expected


def test_sequences_are_padded_on_the_right():
    padded, lengths = pad([[1, 2, 3], []], 4, fill=-1)
    assert padded.tolist() == [[1, 2, 3, -1], [-1, -1, -1, -1]]
    assert lengths.tolist() == [3, 0]
    assert padded.dtype == lengths.dtype == "int32"
