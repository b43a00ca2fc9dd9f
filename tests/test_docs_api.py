"""The scripts of docs/api.md run unchanged."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ixjax.pipeline import export, find_checkpoint
from ixjax.search import Tree, add_children, uct_select
from tests.commands.conftest import untrained_run
from tests.docs import block


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run and the exported policy that the page speaks of."""
    folder = tmp_path_factory.mktemp("api")
    run = untrained_run(folder / "runs" / "quickstart")
    export(run, find_checkpoint(run, "policy_sft"), folder / "exported" / "policy")
    return folder


def run_block(folder, monkeypatch, containing: str) -> dict:
    monkeypatch.chdir(folder)
    exec(compile(block("api.md", "python", containing), "api.py", "exec"), found := {})
    return found


def test_a_folder_is_loaded_and_continues_prompts(folder, monkeypatch):
    found = run_block(folder, monkeypatch, "load_hf")
    assert len(found["answers"]) == 2
    assert all(1 <= len(answer) <= 40 for answer in found["answers"])
    own = found["tokenizer"].eos_token_id
    assert own in found["template"].end_ids


def test_contexts_are_kept_and_forked(folder, monkeypatch):
    found = run_block(folder, monkeypatch, "load_hf")
    exec(compile(block("api.md", "python", "engine.fork"), "api.py", "exec"), found)
    assert all(request.done for request in found["requests"])


def test_the_rule_of_the_page_is_one():
    exec(compile(block("api.md", "python", "def greedy"), "api.py", "exec"), found := {"jnp": jnp})
    tree, _ = add_children(Tree.create(1, 8, 4), np.zeros((1, 3), np.int32))
    _, leaves = uct_select(tree, 1.0, leaves=6, rule=found["greedy_after_two"])
    assert sorted(leaves[0].tolist()) == [1, 1, 2, 2, 3, 3]


def test_a_run_is_read_and_searched(folder, monkeypatch):
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    found = run_block(folder, monkeypatch, "read_run")
    assert found["tree"].condition_id == found["users"][-1].condition.id
    assert len(found["users"]) == 3
    assert found["pairs"]
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
