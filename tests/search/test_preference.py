"""Other trainers read from our pairs the dialogue that was played, and take their form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixjax import io
from ixjax.dialogue.chat import View
from ixjax.dialogue.types import Dialogue, Turn, UserCondition
from ixjax.io import InputError
from ixjax.search import PreferencePair, llama_factory_info
from tests.dialogue.chat_families import ToyScenario, template_of
from tests.search.doubles import MoodScenario

NEUTRAL = "(The conversation begins.)"


def pair_after(*texts: str, first: str = "user") -> PreferencePair:
    roles = ("user", "policy") if first == "user" else ("policy", "user")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
    return PreferencePair(Dialogue("d", UserCondition("c", {}), turns), "yes", "no")


def read_by_llama_factory(
    record: Mapping[str, Any], columns: Mapping[str, str]
) -> list[tuple[str, str]]:
    """(role, text) of a record as LLaMA-Factory's Alpaca converter puts a prompt together.

    The system text goes first; then each of the history's rounds, an instruction and a response;
    then instruction and input, one line each, where they are not empty.
    """
    said = [("system", record[columns["system"]])]
    for instruction, response in record[columns["history"]]:
        said += [("user", instruction), ("assistant", response)]
    query = [record[columns[name]] for name in ("prompt", "query") if record[columns[name]]]
    return [*said, ("user", "\n".join(query))]


COLUMNS = llama_factory_info("any", "any.jsonl")["any"]["columns"]

PAIRS = [
    pytest.param(pair_after("hello"), id="first-turn"),
    pytest.param(pair_after("hello", "hi", "so\nso"), id="later-turn"),
    pytest.param(pair_after(first="policy"), id="policy-opens-first-turn"),
    pytest.param(pair_after("hi", "hello", first="policy"), id="policy-opens-later-turn"),
]


def test_the_llama_factory_form_is_the_example_of_the_data_formats():
    page = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text()
    [example] = [line for line in page.splitlines() if line.startswith('{"instruction"')]
    pair = pair_after("hello", "hi", "nice")
    assert json.loads(example) == pair.to_llama_factory(MoodScenario())


def test_where_the_policy_opens_a_neutral_user_turn_goes_first():
    scenario = MoodScenario()
    first = pair_after(first="policy")
    assert first.to_trl(scenario)["prompt"][1:] == [{"role": "user", "content": NEUTRAL}]
    record = first.to_llama_factory(scenario)
    assert (record["history"], record["instruction"]) == ([], NEUTRAL)
    later = pair_after("hi", "hello", first="policy").to_llama_factory(scenario)
    assert (later["history"], later["instruction"]) == ([[NEUTRAL, "hi"]], "hello")


@given(st.lists(st.text("ab\n 我", min_size=1).filter(str.strip), max_size=7), st.booleans())
def test_both_forms_hold_the_same_conversation(texts, policy_opens):
    # The last turn is the user's.
    first = "policy" if policy_opens else "user"
    if len(texts) % 2 == (0 if first == "user" else 1):
        texts = texts[:-1] if policy_opens else [*texts, "well?"]
    pair = pair_after(*texts, first=first)
    prompt = pair.to_trl(MoodScenario())["prompt"]
    record = json.loads(json.dumps(pair.to_llama_factory(MoodScenario())))
    assert read_by_llama_factory(record, COLUMNS) == [(m["role"], m["content"]) for m in prompt]
    # LLaMA-Factory drops a prompt that does not go user, assistant, ..., user.
    assert [m["role"] for m in prompt[1:]] == [
        "user",
        *["assistant", "user"] * (len(prompt) // 2 - 1),
    ]
    spoken = [m["content"] for m in prompt[1:]]
    assert spoken[len(spoken) - len(texts) :] == texts
    assert spoken[: len(spoken) - len(texts)] == ([NEUTRAL] if policy_opens else [])


@pytest.mark.parametrize("pair", PAIRS)
def test_prompts_are_those_that_our_own_rendering_gives_strict_templates(pair):
    """Gemma 3's template takes a system message, and refuses to begin with the assistant."""
    policy_opens = not pair.history.turns or pair.history.turns[0].role == "policy"
    scenario = ToyScenario(policy_opens=policy_opens)
    view = View(scenario, "policy", template_of("gemma3"))
    assert pair.to_trl(scenario)["prompt"] == view.messages(pair.history)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("family", ["llama3", "qwen2", "gemma3"])
def test_trl_takes_its_form(pair, family):
    data_utils = pytest.importorskip("trl.data_utils")
    tokenizer = template_of(family).tokenizer
    record = json.loads(json.dumps(pair.to_trl(MoodScenario())))
    assert data_utils.is_conversational(record)
    texts = data_utils.maybe_apply_chat_template(record, tokenizer)
    whole = tokenizer.apply_chat_template(record["prompt"] + record["chosen"], tokenize=False)
    assert texts["prompt"] + texts["chosen"] == whole
    assert texts["prompt"] == tokenizer.apply_chat_template(
        record["prompt"], tokenize=False, add_generation_prompt=True
    )
    assert (texts["chosen"][:3], texts["rejected"][:2]) == ("yes", "no")


def test_datasets_loads_the_llama_factory_folder(tmp_path):
    """LLaMA-Factory reads a file with Hugging Face's `datasets`; columns keep their types."""
    datasets = pytest.importorskip("datasets")
    pairs = [parameters.values[0] for parameters in PAIRS]
    records = [pair.to_llama_factory(MoodScenario()) for pair in pairs]
    io.write_jsonl(tmp_path / "pairs.jsonl", records, schema=None)
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    assert list(loaded) == records
    assert set(COLUMNS.values()) == set(loaded.column_names)


def test_a_history_that_the_policy_ended_is_refused():
    with pytest.raises(InputError, match=r"ends with the policy's turn; expected the user's"):
        pair_after("hello", "hi")
