"""Contexts that a tree keeps: which make room, and which are gone on from where one is gone."""

from __future__ import annotations

import itertools

import pytest

from ixjax.search.kept import ROOT, KeptContexts, Stamp
from ixjax.search.ledger import Entry, Ledger
from ixjax.search.tree import Tree
from tests.search.doubles import roots

MADE = [(0, 1, i) for i in range(3)]  # in the first iteration, one after the other
FIRST = 20  # of the numbers


def kept(made: list[Stamp]) -> KeptContexts:
    """Room for the root's and three more, which are full."""
    contexts = KeptContexts(FIRST, 4)
    for stamp in (ROOT, *made):
        contexts.keep(stamp)
    return contexts


@pytest.mark.parametrize("order", list(itertools.permutations(MADE)))
def test_the_least_recently_used_makes_room_in_whatever_order_they_came(order):
    contexts = kept(list(order))
    places = {stamp: contexts.use(stamp, stamp) for stamp in MADE}
    contexts.use(MADE[0], (1, 0, 0))  # the oldest is used again, the newest is not
    contexts.use(ROOT, (1, 0, 1))
    assert contexts.keep((1, 1, 0)) == places[MADE[1]]
    assert contexts.keep((1, 1, 1)) == places[MADE[2]]
    assert [stamp in contexts for stamp in MADE] == [True, False, False]
    assert contexts.keep((1, 1, 2)) == places[MADE[0]]


def test_the_roots_contexts_never_go():
    contexts = kept(MADE)
    place = contexts.use(ROOT, ROOT)
    found = {contexts.keep((iteration, 1, 0)) for iteration in range(1, 9)}
    assert ROOT in contexts
    assert found == set(range(FIRST, FIRST + 4)) - {place}


def test_a_dropped_context_is_read_on_from_its_nearest_ancestor_that_is_kept():
    """Down a path of three turns a side, whose last decision's contexts were dropped."""
    [root] = roots(1)
    ledger = Ledger(root, kept(MADE[:2]))
    ledger.add(0, Entry("decision", Tree.NO_NODE, "", 0, context=ROOT))
    stamps = [*MADE[:2], (0, 0, 9)]  # the last one is not kept
    for turn, stamp in enumerate(stamps, start=1):
        ledger.add(2 * turn - 1, Entry("response", 2 * turn - 2, f"say {turn}", turn))
        ledger.add(2 * turn, Entry("decision", 2 * turn - 1, f"hear {turn}", turn, context=stamp))
    number = {stamp: ledger.kept.use(stamp, stamp) for stamp in (ROOT, *MADE[:2])}

    assert ledger.source(4, (1, 0, 0)) == (number[MADE[1]], None)
    assert ledger.source(0, (1, 0, 0)) == (number[ROOT], None)
    assert (ledger.counts["context_hits"], ledger.counts["context_misses"]) == (2, 0)

    place, whole = ledger.source(6, (1, 0, 1))
    assert place == number[MADE[1]]  # that of the decision a turn above, not the root's
    assert [turn.text for turn in whole.turns[-6:]] == [
        text for turn in (1, 2, 3) for text in (f"say {turn}", f"hear {turn}")
    ]
    assert (ledger.counts["context_hits"], ledger.counts["context_misses"]) == (2, 1)
