"""The figures of the pairs: each margin in its bar."""

from __future__ import annotations

import pytest

from ixjax.report.search import MARGIN_BINS, margin_bin


@pytest.mark.parametrize("tenths", range(10))
def test_a_margin_at_an_edge_is_in_the_bar_that_begins_there(tenths):
    for lower in range(10 - tenths):
        margin = (lower + tenths) / 10 - lower / 10  # as means of returns differ: 0.6 - 0.5 < 0.1
        assert margin_bin(margin) == tenths * MARGIN_BINS // 10


@pytest.mark.parametrize(("margin", "bar"), [(-0.3, 0), (1.0, 19), (1.7, 19), (0.049, 0)])
def test_a_margin_beyond_the_ends_is_in_the_bar_at_the_end(margin, bar):
    assert margin_bin(margin) == bar
