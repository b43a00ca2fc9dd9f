"""A file of preferences is a source of pairs like the run's own, and can be the only one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ixjax import io
from ixjax.dialogue.preferences import PreferencesConfig
from ixjax.dialogue.types import Dialogue, Turn, UserCondition
from ixjax.pipeline import (
    Run,
    align,
    find_checkpoint,
    prepare,
    run_checkpoints,
    train_speakers,
)
from ixjax.pipeline.evaluate import _methods as methods
from ixjax.pipeline.preferences import given_pairs
from ixjax.pipeline.stages import Inputs, pair_sources
from ixjax.search import PAIRS_SCHEMA, PreferencePair
from ixjax.training import ReferenceConfig, load_model
from tests.end_to_end.tiny import Notes, Silent, opened, tiny_run

CONDITION = UserCondition("c1", {"need": "rest", "distress": 4, "patience": 3})
ALONE = ["preferences"]


def rows(count: int) -> list[dict[str, Any]]:
    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    return [
        {
            "prompt": [said("user", f"I am tired of the number {i}.")],
            "chosen": [said("assistant", "Rest well, it will pass.")],
            "rejected": [said("assistant", "No.")],
        }
        for i in range(count)
    ]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Up to the SFT models; tests work on copies."""
    run = opened(tiny_run(tmp_path_factory.mktemp("runs") / "trained"))
    prepare(run, Silent())
    train_speakers(run, Silent())
    return run.directory.root


@pytest.fixture
def out(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def with_file(out: Path, path: Path | str, *, alone: bool = True, **settings: Any) -> Run:
    given = PreferencesConfig(path=str(path), alone=alone)
    return opened(tiny_run(out, preferences=given, **settings))


def test_a_file_alone_aligns_a_policy_without_a_search(out, tmp_path):
    given = [*rows(10), *rows(1), {**rows(1)[0], "rejected": rows(1)[0]["chosen"]}]
    run, reporter = with_file(out, written(tmp_path / "trl.jsonl", given)), Notes()
    result = align(run, reporter)
    assert list(result) == ALONE
    assert find_checkpoint(run, "").name == "policy_dpo/preferences"
    facts = result["preferences"]
    assert (facts["pairs"], facts["rows"]["read"], facts["rows"]["format"]) == (10, 12, "trl")
    assert facts["rows"]["dropped"] == {"equal_text": 1, "duplicate": 1}
    prompt = run.template.tokenizer.apply_chat_template(
        given[0]["prompt"], add_generation_prompt=True, return_dict=False
    )
    assert facts["lengths"]["prompt"]["median"] == len(prompt)
    assert f"left out as duplicate: 1 ({tmp_path}/trl.jsonl:11)" in "\n".join(reporter.notes)
    sft, aligned = load_model(out / "policy_sft"), load_model(out / "policy_dpo" / "preferences")
    assert np.abs(sft.embedding[...] - aligned.embedding[...]).max() > 0
    again = Silent()
    align(run, again)
    assert again.told == 0


def test_the_policy_of_a_file_is_a_model_of_the_run_and_a_method_to_evaluate(out, tmp_path):
    run = with_file(out, written(tmp_path / "trl.jsonl", rows(1)), alone=False)
    assert pair_sources(run.config) == ("human", "imcts", "mix", "preferences")
    names = [checkpoint.name for checkpoint in run_checkpoints(run)]
    assert names[-2:] == ["policy_dpo/mix", "policy_dpo/preferences"]
    assert list(methods(run))[-2:] == ["dpo_mix", "dpo_preferences"]
    assert list(methods(with_file(out, tmp_path / "trl.jsonl")))[-2:] == [
        "imcts",
        "dpo_preferences",
    ]
    with pytest.raises(io.InputError, match=r"pairs is not finished here; run `ixjax search`"):
        align(run, Silent())


@pytest.mark.parametrize("alone", [True, False])
def test_an_evaluation_is_stale_once_what_it_plays_with_has_changed(tmp_path, alone):
    """Of a policy that no search had a part in, too; what is the search's alone is not its."""
    given = PreferencesConfig(path="trl.jsonl", alone=alone)
    config = tiny_run(tmp_path, preferences=given)

    def changed(**settings: Any) -> bool:
        other = dataclasses.replace(config, **settings)
        first, then = (Inputs(c, "prepared", "rows").of("evaluate") for c in (config, other))
        return first != then

    assert changed(sampling=dataclasses.replace(config.sampling, temperature=0.5))
    assert changed(readout="sampled")
    assert changed(search=dataclasses.replace(config.search, c_uct=0.5))
    assert changed(search=dataclasses.replace(config.search, iterations=3)) is not alone
    assert changed(evaluation=dataclasses.replace(config.evaluation, think=1))
    assert not changed(out=str(tmp_path / "elsewhere"))


def history(*texts: str) -> Dialogue:
    turns = tuple(Turn(("user", "policy")[i % 2], text) for i, text in enumerate(texts))
    return Dialogue("c1", CONDITION, turns)


def test_pairs_of_a_run_are_read_as_the_run_itself_reads_them(out, tmp_path):
    pairs = [
        PreferencePair(history("Hi", "Hello", "I am sad"), "Why?", "No", chosen_value=0.5,
                       rejected_value=0.25),
        PreferencePair.from_human(history("Bye"), chosen="Good night", rejected="So"),
    ]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    io.write_jsonl(path, [pair.to_json() for pair in pairs], schema=PAIRS_SCHEMA)
    run = with_file(out, path)
    found, facts = given_pairs(run)
    view = run.view("policy")
    assert found == [
        view.pair(p.history, p.chosen, p.rejected, max_tokens=run.config.model.max_length)
        for p in pairs
    ]
    assert facts["format"] == "ixjax"
    # And as LLaMA-Factory and TRL get them: the scenario's dialogues begin with the user.
    for form in (PreferencePair.to_llama_factory, PreferencePair.to_trl):
        other = written(tmp_path / "other.jsonl", [form(pair, run.scenario) for pair in pairs])
        assert given_pairs(with_file(out, other))[0] == found


def test_a_bad_pair_of_a_run_is_named_by_its_line(out, tmp_path):
    good = PreferencePair.from_human(history("Bye"), chosen="Good night", rejected="So").to_json()
    path = tmp_path / "pairs.jsonl"
    io.write_jsonl(path, [good, good | {"chosen": "So"}], schema=PAIRS_SCHEMA)
    with pytest.raises(io.InputError, match=rf"{path}:3: a pair of condition 'c1' has the same"):
        given_pairs(with_file(out, path))


def test_a_file_without_a_pair_says_why(out, tmp_path):
    long = [{**row, "chosen": [{"role": "assistant", "content": "so " * 300}]} for row in rows(2)]
    run = with_file(out, written(tmp_path / "trl.jsonl", long))
    with pytest.raises(io.InputError, match=r"no pair to train on in 2 rows; .*too_long: 2"):
        align(run, Silent())


def test_a_file_that_is_not_there_is_refused_before_a_run_is_made(tmp_path):
    with pytest.raises(io.InputError, match=r"none\.jsonl: no such file"):
        with_file(tmp_path / "run", tmp_path / "none.jsonl")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_gone_in_the_middle_is_named(out, tmp_path):
    path = written(tmp_path / "trl.jsonl", rows(8))
    with pytest.raises(KeyboardInterrupt):
        align(with_file(out, path), Silent(stop_in="dpo preferences"))
    path.unlink()
    with pytest.raises(io.InputError, match=r"trl\.jsonl.*no such file|no such file.*trl\.jsonl"):
        with_file(out, path)


def test_another_file_is_refused_once_a_policy_is_aligned_on_this_one(out, tmp_path):
    path = written(tmp_path / "trl.jsonl", rows(8))
    align(with_file(out, path), Silent())
    moved = path.rename(tmp_path / "moved.jsonl")
    assert list(align(with_file(out, moved), Silent())) == ALONE  # the same rows elsewhere
    moved.unlink()
    assert list(align(with_file(out, moved), Silent())) == ALONE  # or nowhere
    written(moved, rows(9))
    with pytest.raises(io.InputError, match=rf"other preferences than {moved}"):
        with_file(out, moved)
    with pytest.raises(io.InputError, match=r"preferences\.path: '.*' there, '' now"):
        with_file(out, "", alone=False)


def test_a_folder_is_no_file_that_is_gone(out, tmp_path):
    align(with_file(out, written(tmp_path / "trl.jsonl", rows(8))), Silent())
    with pytest.raises(io.InputError, match=f"{tmp_path}: a folder; expected a file"):
        with_file(out, tmp_path)


def test_a_stale_reference_is_told_or_refused(out, tmp_path):
    path = written(tmp_path / "trl.jsonl", rows(8))
    with pytest.raises(KeyboardInterrupt):
        align(with_file(out, path), Notes(stop_in="dpo preferences"))
    stored = out / "policy_dpo" / "preferences" / "reference.json"
    whole = stored.read_text()
    record = json.loads(whole)
    record["fingerprints"] |= {"weights": "others"}
    stored.write_text(json.dumps(record))
    strict = with_file(out, path, reference=ReferenceConfig(strict=True))
    with pytest.raises(io.InputError, match=r"reference\.json: .* weights changed since"):
        align(strict, Silent())
    reporter = Notes()
    align(with_file(out, path), reporter)
    assert any("(weights changed since they were stored)" in n for n in reporter.notes)
    assert json.loads(stored.read_text()) == json.loads(whole)
