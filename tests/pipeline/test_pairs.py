"""What a run without a pair is told to change is what would give it one."""

from __future__ import annotations

from collections import Counter

from ixjax.pipeline.pairs import _advice as advice
from ixjax.pipeline.pairs import _Nearly as Nearly
from ixjax.search import PairsConfig, extract_pairs
from tests.search.test_pairs import tree_of


def told(config: PairsConfig, *responses: tuple[str, float, int], truncated=()) -> str:
    tree, account, nearly = tree_of(*responses, truncated=truncated), Counter[str](), Nearly(config)
    assert extract_pairs(tree, config, account=account) == []
    nearly.add(tree)
    return advice(account, config, nearly)


def test_the_widest_margin_is_that_of_a_pair_which_nothing_else_keeps_out():
    """Not of the silence, of a chosen text that was cut, or of one said nearly twice."""
    config = PairsConfig(min_margin=0.3)
    found = told(
        config,
        ("...", 0.0, 1),
        ("Tell me more about it.", 0.5, 1),
        ("Rest well, and call a friend.", 0.26, 1),
        ("And what is next?", 0.375, 1),
        ("Tell me more about it!", 0.21, 1),
    )
    assert "0.24" in found
    assert "Lower --pairs.min-margin (0.3)" in found


def test_a_margin_is_not_blamed_where_any_would_give_no_pair():
    config, cut = PairsConfig(min_margin=0.3), ("Tell me", "And what")
    found = told(config, ("Tell me", 0.5, 1), ("And what", 0.4, 1), truncated=cut)
    assert found.startswith("Allow longer turns")
