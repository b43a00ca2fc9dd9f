"""Intervals and kappas against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats import inter_rater

from ixjax.evaluation.agreement import cohen_kappa, fleiss_kappa, wilson_interval

CATEGORIES = ("sft", "dpo", "tie")
CHOICES = st.sampled_from(CATEGORIES)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(trial):
    wins, count = trial
    expected = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(wins / count, count) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_an_interval_of_nothing_is_nan():
    assert all(map(math.isnan, wilson_interval(math.nan, 0)))


@given(st.lists(st.tuples(CHOICES, CHOICES), min_size=1, max_size=60))
def test_cohens_kappa_is_statsmodels(pairs):
    table = np.zeros((3, 3))
    for left, right in pairs:
        table[CATEGORIES.index(left), CATEGORIES.index(right)] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = inter_rater.cohens_kappa(table, return_results=False)
    found = cohen_kappa([left for left, _ in pairs], [right for _, right in pairs])
    assert found == pytest.approx(float(expected), nan_ok=True)


@given(
    st.integers(2, 5).flatmap(
        lambda raters: st.lists(
            st.lists(CHOICES, min_size=raters, max_size=raters), min_size=1, max_size=30
        )
    )
)
def test_fleiss_kappa_is_statsmodels(items):
    counts = np.array([[item.count(name) for name in CATEGORIES] for item in items])
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = inter_rater.fleiss_kappa(counts, method="fleiss")
    assert fleiss_kappa(counts) == pytest.approx(float(expected), nan_ok=True)


def test_fleiss_own_example():
    """Ten subjects, fourteen raters, five categories: kappa 0.210 (as in Wikipedia's table)."""
    counts = np.array(
        [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
         [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    )  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("counts", [[[1, 0]], [[2, 0], [1, 0]]])
def test_unequal_or_single_ratings_have_no_fleiss_kappa(counts):
    with pytest.raises(ValueError, match=r"items have \[.*\] ratings; expected .* 2 or more"):
        fleiss_kappa(np.array(counts))


def test_lists_of_different_lengths_have_no_kappa():
    with pytest.raises(ValueError, match="2 and 1 ratings; expected one per item from both"):
        cohen_kappa(["a", "b"], ["a"])
