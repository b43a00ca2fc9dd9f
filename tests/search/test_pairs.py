"""Pairs follow the rules of docs/algorithm.md, section 4, and what was dropped is counted."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax.dialogue.types import Dialogue, Turn, UserCondition
from ixjax.io import InputError
from ixjax.search import (
    PAIR_RULES,
    RESPONSE_RULES,
    FinishedTree,
    PairsConfig,
    PreferencePair,
    TreeNode,
    balance_depths,
    extract_pairs,
)
from tests.search.doubles import MoodScenario

ROOT = Dialogue("d", UserCondition("c", {"mood": 1}), (Turn("user", "hello"),))


def tree_of(*responses: tuple[str, float, int], truncated: tuple[str, ...] = ()) -> FinishedTree:
    """A root with these responses: text, Q, N."""
    nodes = [TreeNode(0, -1, "decision", "", 0, visits=9, value_sum=4.0)]
    for i, (text, value, visits) in enumerate(responses, start=1):
        nodes.append(
            TreeNode(
                i,
                0,
                "response",
                text,
                1,
                visits=visits,
                value_sum=value * visits,
                truncated=text in truncated,
            )
        )
    return FinishedTree("mood", ROOT, tuple(nodes))


def texts(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_all_ordered_pairs_with_a_margin_widest_first():
    tree = tree_of(("a", 0.2, 1), ("b", 0.9, 1), ("c", 0.5, 1), ("d", 0.45, 1))
    assert texts(extract_pairs(tree, PairsConfig(max_pairs_per_node=9))) == [
        ("b", "a"), ("b", "d"), ("b", "c"), ("c", "a"), ("d", "a"),
    ]  # fmt: skip


def test_extremes_are_the_best_against_the_worst():
    tree = tree_of(("a", 0.2, 1), ("b", 0.9, 1), ("c", 0.5, 1))
    assert texts(extract_pairs(tree, PairsConfig(selection="extremes"))) == [("b", "a")]


def test_extremes_are_taken_among_what_may_be_taken():
    tree = tree_of(
        ("cut", 1.0, 1), ("a", 0.9, 1), ("b", 0.2, 1), ("...", 0.0, 1), truncated=("cut",)
    )
    extremes = PairsConfig(selection="extremes")
    assert texts(extract_pairs(tree, extremes)) == [("a", "b")]
    assert texts(extract_pairs(tree_of(("cut", 1.0, 1), truncated=("cut",)), extremes)) == []


def test_each_rule_drops_what_it_says_and_counts_it():
    tree = tree_of(
        ("a", 0.9, 5), ("b", 0.85, 5), ("few", 0.0, 1), ("cut", 1.0, 5), ("...", 0.0, 5),
        ("c", 0.1, 5), truncated=("cut",),
    )  # fmt: skip
    account: Counter[str] = Counter()
    config = PairsConfig(min_visits=2, max_pairs_per_node=1)
    assert texts(extract_pairs(tree, config, account=account)) == [("a", "c")]
    # cut-a (0.1), cut-b, cut-c are truncated; a-b is too close; the silence is left out; of a-c
    # and b-c the wider one is kept.
    assert account == Counter(
        few_visits=1, truncated=3, small_margin=1, silent=1, over_limit=1, kept=1
    )
    kept = extract_pairs(tree, PairsConfig(min_visits=2, keep_truncated=True))
    assert texts(kept)[0] == ("cut", "c")


def test_nearly_equal_texts_make_no_pair_unless_they_may():
    said = "That sounds hard. What would help you to rest tonight?"
    tree = tree_of((said, 0.9, 1), (said.replace(".", "!"), 0.6, 1), ("Tell me more.", 0.1, 1))
    account: Counter[str] = Counter()
    assert texts(extract_pairs(tree, PairsConfig(), account=account)) == [
        (said, "Tell me more."), (said.replace(".", "!"), "Tell me more."),
    ]  # fmt: skip
    assert +account == Counter(kept=2, near_duplicate=1)
    assert len(extract_pairs(tree, PairsConfig(max_similarity=1.0))) == 3
    # A margin that is too small is said first: it would keep the pair out in any case.
    account = Counter()
    extract_pairs(tree, PairsConfig(min_margin=0.4), account=account)
    assert +account == Counter(kept=2, small_margin=1)


def test_a_margin_of_exactly_min_margin_is_enough():
    tree = tree_of(("a", 0.6, 1), ("b", 0.5, 1))
    assert len(extract_pairs(tree, PairsConfig(min_margin=0.1))) == 1


def test_equal_texts_never_make_a_pair():
    account: Counter[str] = Counter()
    tree = tree_of(("a", 0.9, 1), ("a", 0.1, 1))
    assert extract_pairs(tree, PairsConfig(), account=account) == []
    assert account["equal_text"] == 1
    with pytest.raises(InputError, match="has the same text twice: 'a'"):
        PreferencePair(ROOT, "a", "a")


# Of the texts some are equal, and some nearly ("tell me more" and with a dot: similarity 1).
responses = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "tell me more", "tell me more.", "..."]),
        st.floats(0, 1, width=16),
        st.integers(0, 4),
    ),
    max_size=7,
)


@given(
    responses,
    st.sampled_from(["all", "extremes"]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([0.9, 1.0]),
)
def test_pairs_are_those_of_a_search_over_all_combinations(
    found, selection, limit, min_visits, max_similarity
):
    config = PairsConfig(
        selection=selection,
        max_pairs_per_node=limit,
        min_visits=min_visits,
        max_similarity=max_similarity,
    )
    account: Counter[str] = Counter()
    pairs = extract_pairs(tree_of(*found), config, account=account)
    enough = [(t, tree_value(v, n), n) for t, v, n in found if n >= min_visits and t != "..."]
    expected = [
        (a[1] - b[1], a, b)
        for a, b in itertools.permutations(enough, 2)
        if (a[0] != b[0] if max_similarity == 1 else a[0].strip(".") != b[0].strip("."))
        and a[1] - b[1] >= 0.1 - 1e-6
    ]
    assert len(pairs) <= limit
    if selection == "all":
        widest = sorted((margin for margin, _, _ in expected), reverse=True)[:limit]
        assert [pair.margin for pair in pairs] == pytest.approx(widest)
        considered = len(enough) * (len(enough) - 1) // 2
    else:
        considered = int(len(enough) > 1)
    # Nothing is lost: each pair considered was kept, or dropped by one rule; each response not
    # compared was left out by one.
    assert set(account) <= {"kept", *PAIR_RULES, *RESPONSE_RULES}
    assert account["kept"] == len(pairs)
    assert account["kept"] + sum(account[rule] for rule in PAIR_RULES) == considered
    assert sum(account[rule] for rule in RESPONSE_RULES) == len(found) - len(enough)
    assert all(pair.chosen != pair.rejected for pair in pairs)
    assert all(min(p.chosen_visits, p.rejected_visits) >= min_visits for p in pairs)


def tree_value(value: float, visits: int) -> float:
    return value * visits / visits


def pair_at(depth: int, margin: float, condition: str = "c", node: int = 0) -> PreferencePair:
    dialogue = Dialogue("d", UserCondition(condition, {}), ROOT.turns)
    return PreferencePair(
        dialogue, "yes", "no", chosen_value=margin, rejected_value=0.0, node_id=node, depth=depth
    )


def test_a_crowded_depth_keeps_its_widest_margins_in_their_order():
    shallow = [pair_at(0, margin) for margin in (0.3, 0.9, 0.5, 0.7)]
    deep = [pair_at(2, 0.1), pair_at(2, 0.2)]
    account = Counter(kept=6)
    config = PairsConfig(max_depth_ratio=1.0)  # the mean of 4 and 2 is 3
    kept = balance_depths([*deep, *shallow], config, account=account)
    assert kept == [*deep, *shallow[1:]]
    assert account == Counter(kept=5, over_depth_limit=1)
    assert balance_depths([*deep, *shallow], PairsConfig()) == [*deep, *shallow]


@given(
    st.lists(
        # Few margins, conditions and nodes: most pairs have others that are as good.
        st.builds(
            pair_at,
            st.integers(0, 3),
            st.sampled_from([0.25, 0.5, 1.0]),
            st.sampled_from(["c", "d"]),
            st.integers(0, 1),
        ),
        max_size=20,
    ),
    st.fractions(1, 4, max_denominator=4),
    st.randoms(use_true_random=False),
)
def test_balance_does_not_depend_on_the_order_of_trees_and_loses_no_pair(pairs, ratio, random):
    config = PairsConfig(max_depth_ratio=float(ratio))
    account = Counter(kept=len(pairs))
    kept = balance_depths(pairs, config, account=account)
    assert account["kept"] == len(kept)
    assert account["kept"] + account["over_depth_limit"] == len(pairs)
    counts = Counter(pair.depth for pair in pairs)
    for depth, count in counts.items():
        limit = ratio * len(pairs) // len(counts)
        here = [pair for pair in kept if pair.depth == depth]
        assert len(here) == min(count, limit) > 0
        margins = sorted((p.margin for p in pairs if p.depth == depth), reverse=True)
        assert sorted((p.margin for p in here), reverse=True) == margins[: len(here)]
    shuffled = random.sample(pairs, len(pairs))
    again = balance_depths(shuffled, config)
    assert sorted(map(repr, again)) == sorted(map(repr, kept))


def test_pairs_of_deeper_nodes_carry_their_history():
    tree = FinishedTree(
        "mood",
        ROOT,
        (
            TreeNode(0, -1, "decision", "", 0, visits=2, value_sum=1.0),
            TreeNode(1, 0, "response", "hi", 1, visits=2, value_sum=1.0),
            TreeNode(2, 1, "decision", "nice", 2, visits=2, value_sum=1.0),
            TreeNode(3, 2, "response", "yes", 3, visits=1, value_sum=1.0),
            TreeNode(4, 2, "response", "no", 3, visits=1, value_sum=0.0),
        ),
    )
    (pair,) = extract_pairs(tree, PairsConfig())
    assert (pair.node_id, pair.depth, pair.condition_id, pair.margin) == (2, 1, "c", 1.0)
    assert pair.to_trl(MoodScenario()) == {
        "prompt": [
            {"role": "system", "content": "Lift the mood."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "nice"},
        ],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }


@pytest.mark.parametrize(
    "pair",
    [
        PreferencePair(ROOT, "a", "b", "imcts", 0.5, 0.25, 3, 4, node_id=7, depth=2),
        PreferencePair.from_human(ROOT, chosen="a", rejected="b"),
    ],
)
def test_json_round_trip(pair):
    record = json.loads(json.dumps(pair.to_json(), allow_nan=False))
    assert PreferencePair.from_json(record) == pair


def test_a_record_that_is_no_pair_is_refused():
    record = PreferencePair(ROOT, "a", "b").to_json()
    del record["rejected"]
    with pytest.raises(InputError, match=r"not a preference pair: .*rejected"):
        PreferencePair.from_json(record)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("selection", "best"),
        ("min_visits", 0),
        ("min_margin", -0.1),
        ("max_pairs_per_node", 0),
        ("max_similarity", -0.1),
        ("max_similarity", 1.5),
        ("max_similarity", float("nan")),
        ("max_depth_ratio", 0.5),
        ("max_depth_ratio", -1.0),
        ("max_depth_ratio", float("inf")),
    ],
)
def test_rules_that_make_no_sense_are_refused(field, value):
    with pytest.raises(InputError, match=f"pairs.{field} is {value!r}; expected"):
        PairsConfig(**{field: value})
