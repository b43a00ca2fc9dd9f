"""The explorer's columns against their trees and pairs."""

from __future__ import annotations

from ixjax.report import Limits
from ixjax.report.explorer import explorer, pair_marks, tree_columns
from ixjax.report.files import open_runs
from tests.report.runs import pair, tree, write_run


def test_columns_hold_what_the_nodes_held():
    made = tree("user-0", 20, str)
    columns = tree_columns(made, {})
    assert columns["parent"] == [node["parent"] for node in made["nodes"]]
    assert columns["value"] == [node["value_sum"] / node["visits"] for node in made["nodes"]]
    assert [bool(p) for p in columns["policy"]] == [n["depth"] % 2 == 1 for n in made["nodes"]]
    assert columns["over"] == [node["id"] for node in made["nodes"] if node["depth"] == 2]


def test_a_node_without_a_return_has_no_value():
    made = tree("user-0", 7, str)
    made["nodes"][3] |= {"visits": 0, "value_sum": 0.0}
    assert tree_columns(made, {})["value"][3] is None


def test_marks_count_the_pairs_in_which_a_response_was_chosen_and_rejected():
    one = pair(str)
    other = one | {"chosen": "response 1"}
    third = one | {"chosen": "response 2", "rejected": "response 1"}
    elsewhere = one | {"condition_id": "user-1"}
    deeper = one | {"node_id": 4}
    columns = tree_columns(
        tree("user-0", 7, str), pair_marks([one, other, third, elsewhere, deeper])
    )
    assert columns["chosen"] == {1: 1, 2: 1, 3: 1}
    assert columns["rejected"] == {2: 1, 3: 2}


def trees_in(tmp_path, **limits) -> list[str]:
    runs = open_runs([str(write_run(tmp_path, nodes=100))])
    data = explorer(runs, Limits(**limits)).blocks[-1].data
    return [one["id"] for one in data["runs"][0]["trees"]]


def test_trees_are_let_in_until_a_limit_is_reached(tmp_path):
    assert trees_in(tmp_path) == ["user-0", "user-1"]
    assert trees_in(tmp_path, nodes=107) == ["user-0", "user-1"]
    assert trees_in(tmp_path, nodes=106) == ["user-0"]
    assert trees_in(tmp_path, trees=1) == ["user-0"]
    assert trees_in(tmp_path, nodes=1) == ["user-0"]  # one is always there
