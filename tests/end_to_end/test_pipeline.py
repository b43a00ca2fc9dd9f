"""The whole road on a tiny run: what it writes, and that an interrupted one ends the same."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ixjax import io
from ixjax.generation import SamplingConfig
from ixjax.pipeline import Run, align, prepare, run_all, search, train_speakers
from ixjax.report import write_report
from ixjax.search import PairsConfig
from ixjax.training import SFTConfig, load_model
from tests.end_to_end.tiny import Silent, opened, tiny_run


def two_devices(out: Path, **changes: Any) -> Run:
    return opened(tiny_run(out, **changes), devices=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict, Silent]:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    reporter = Silent()
    result = run_all(two_devices(out), reporter)
    return out, result, reporter


def test_a_run_directory_holds_what_the_page_says(whole):
    out, _, _ = whole
    for name in (
        "config.yaml",
        "manifest.json",
        "conditions.jsonl",
        "tokenizer/tokenizer.json",
        "policy_sft/model/model.json",
        "simulator/model/model.json",
        "simulator_heldout/model/model.json",
        "trees/trees-00000-of-00001.jsonl",
        "pairs.jsonl",
        "pairs_trl.jsonl",
        "pairs_llama_factory/dataset_info.json",
        "pairs_llama_factory/pairs.jsonl",
        "human_pairs.jsonl",
        "policy_dpo/human/model/model.json",
        "policy_dpo/imcts/model/model.json",
        "policy_dpo/mix/model/model.json",
        "evaluation.json",
        "metrics.jsonl",
    ):
        assert (out / name).exists(), name


def test_every_method_meets_every_user(whole):
    _, result, _ = whole
    cells = {(cell["method"], cell["user"]) for cell in result["evaluate"]["cells"]}
    methods = {"sft", "best_of_n", "imcts", "dpo_human", "dpo_imcts", "dpo_mix"}
    assert cells == {
        (method, user) for method in methods for user in ("simulator", "simulator_heldout", "true")
    }


def test_a_finished_run_has_a_report_without_a_gap(whole, tmp_path):
    out, result, _ = whole
    _, text = write_report([str(out)], to=str(tmp_path))
    report = text.read_text().replace("\\", "")
    assert "*Missing:*" not in report
    for cell in result["evaluate"]["cells"]:
        assert f"| {cell['engagement']:.3f} |" in report


def test_every_finished_stage_says_what_it_was_made_with(whole):
    out, _, _ = whole
    manifest = io.Manifest.load(out / "manifest.json")
    assert manifest.made_with.keys() == manifest.stages.keys()
    for found in manifest.made_with.values():
        assert found["jax"] == jax.__version__
        assert found["devices"].startswith(f"2 {jax.default_backend()} device")


def test_pairs_are_in_trls_conversational_form(whole):
    out, _, _ = whole
    for line in (out / "pairs_trl.jsonl").read_text().splitlines():
        pair = json.loads(line)
        assert [message["role"] for message in pair["prompt"]][:2] == ["system", "user"]
        assert pair["chosen"][0]["role"] == pair["rejected"][0]["role"] == "assistant"
        assert pair["chosen"] != pair["rejected"]


def test_llama_factory_finds_every_pair_and_column_by_dataset_info(whole):
    out, result, _ = whole
    folder = out / "pairs_llama_factory"  # its `dataset_dir`
    [(name, entry)] = io.read_json(folder / "dataset_info.json").items()
    assert (name, entry["ranking"]) == ("ixjax_pairs", True)
    lines = (folder / entry["file_name"]).read_text().splitlines()
    assert len(lines) == result["search"]["pairs"]["imcts"]
    for line, trl in zip(lines, (out / "pairs_trl.jsonl").read_text().splitlines(), strict=True):
        pair, messages = json.loads(line), json.loads(trl)
        assert set(entry["columns"].values()) == set(pair)
        assert pair["system"] == messages["prompt"][0]["content"]
        assert pair["instruction"] == messages["prompt"][-1]["content"]
        assert pair["chosen"] == messages["chosen"][0]["content"]


def test_pairs_kept_and_dropped_are_all_that_the_trees_have(whole):
    out, result, _ = whole
    pairs, considered = result["search"]["pairs"], 0
    for record in io.read_jsonl(out / "trees" / "trees-00000-of-00001.jsonl", schema="ixjax.tree"):
        compared = collections.Counter(
            node["parent"]
            for node in record["nodes"]
            if node["kind"] == "response" and node["visits"] and node["text"] != "..."
        )
        considered += sum(count * (count - 1) // 2 for count in compared.values())
    assert pairs["considered"] == considered
    assert pairs["imcts"] + sum(pairs["dropped"].values()) == considered


def test_the_condition_never_reaches_the_policys_prompt(whole):
    out, _, _ = whole
    for line in (out / "pairs_trl.jsonl").read_text().splitlines():
        assert "patience" not in json.loads(line)["prompt"][0]["content"]
    for line in (out / "pairs_llama_factory" / "pairs.jsonl").read_text().splitlines():
        assert "patience" not in json.loads(line)["system"]


def test_a_finished_run_is_not_done_again(whole):
    out, result, _ = whole
    reporter = Silent()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run_all(two_devices(out), reporter)["evaluate"] == result["evaluate"]
    assert reporter.told == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_interrupted_in_every_stage_it_continues_to_the_same_result(whole, tmp_path):
    out, result, _ = whole
    again = tmp_path / "again"
    places = {
        "sft policy": 3,  # behind a checkpoint
        "sft simulator": 1,  # in front of it
        "sft simulator_heldout": 3,
        "search": 3,  # in the second of two batches
        "human pairs": 1,
        "dpo human": 3,
        "dpo imcts": 1,
        "dpo mix": 3,
        "evaluate": 4,
    }
    for stage, after in places.items():
        interrupted = Silent(stop_in=stage, after=after)
        with pytest.raises(KeyboardInterrupt, match=stage):
            run_all(two_devices(again), interrupted)
    ended = run_all(two_devices(again), Silent())
    assert ended["evaluate"] == result["evaluate"]
    for name in ("pairs.jsonl", "human_pairs.jsonl", "trees/trees-00000-of-00001.jsonl"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_the_aligned_policy_is_not_the_sft_policy(whole):
    out, _, _ = whole
    sft, aligned = load_model(out / "policy_sft"), load_model(out / "policy_dpo" / "imcts")
    assert np.abs(sft.embedding[...] - aligned.embedding[...]).max() > 0


def test_zero_pairs_say_which_flag_to_change(tmp_path):
    run = two_devices(tmp_path / "run", pairs=PairsConfig(min_margin=1.0))
    prepare(run, Silent())
    train_speakers(run, Silent())
    told = r"no preference pair was found.*--pairs.min-margin \(1\): the largest margin .* was 0\."
    with pytest.raises(io.InputError, match=told):
        search(run, Silent())
    with pytest.raises(io.InputError, match="run `ixjax search`"):
        align(run, Silent())


@pytest.mark.slow
def test_no_readable_outcome_at_all_is_said(tmp_path):
    run = two_devices(
        tmp_path / "run",
        readout="sampled",
        sft=SFTConfig(steps=1, batch_size=8),
        sampling=SamplingConfig(max_new_tokens=3),
    )
    prepare(run, Silent())
    train_speakers(run, Silent())
    with pytest.raises(io.InputError, match=r"simulated outcomes could be read"):
        search(run, Silent())
