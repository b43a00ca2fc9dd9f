"""transformers loads an exported folder, applies its chat template and generates from it."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from ixjax.models import ModelConfig, Transformer, save_hf
from tests.dialogue.chat_families import EVERY, SENTENCES, build, template_ids, template_of
from tests.models.families import torch, transformers
from tests.models.tiny import random_model

MESSAGES = [
    {"role": "user", "content": SENTENCES[0]},
    {"role": "assistant", "content": SENTENCES[1]},
    {"role": "user", "content": SENTENCES[2]},
]
STEPS = 24


def make_model(vocab_size: int) -> Transformer:
    return random_model(
        ModelConfig(
            vocab_size=vocab_size,
            hidden_size=24,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=6,
            intermediate_size=36,
            tie_embeddings=False,
        )
    )


def answer(folder: Path, prompt: list[int]) -> list[int]:
    """Generate after a prompt with transformers, from the files of the folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([prompt])
    found = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=STEPS
    )
    return found[0, len(prompt) :].tolist()


def say_instead(model: Transformer, token: int, other: int) -> None:
    """Swap the head's outputs of two tokens."""
    head = model.head[...]
    pair = jnp.array([token, other])
    model.head[...] = head.at[:, pair].set(head[:, pair[::-1]])


@pytest.mark.parametrize("name", EVERY)
def test_the_tokenizer_and_its_template_are_exported(tmp_path, name):
    tokenizer = build(name)
    save_hf(make_model(len(tokenizer)), tmp_path, tokenizer)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for cue in (True, False):
        assert template_ids(exported, MESSAGES, cue=cue) == template_ids(
            tokenizer, MESSAGES, cue=cue
        )
        text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=cue)
        assert text == exported.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=cue
        )
    named = [f"{name}_token_id" for name in ("bos", "eos", "pad")]
    expected = {name: getattr(tokenizer, name) for name in named}
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in named} == expected
    assert json.loads((tmp_path / "generation_config.json").read_text()) == expected


# Gemma's templates close a turn with another token than the tokenizer's eos.
@pytest.mark.parametrize(
    ("name", "by_eos"),
    [("own", True), ("llama3", True), ("qwen2", True), ("gemma2", False), ("gemma3", False)],
)
def test_transformers_stops_at_the_exported_end_of_a_turn(tmp_path, name, by_eos):
    tokenizer, template = build(name), template_of(name)
    end = template.end_ids[0]
    assert (end == tokenizer.eos_token_id) == by_eos
    model = make_model(len(tokenizer))
    prompt = template_ids(tokenizer, MESSAGES, cue=True)
    save_hf(model, tmp_path, end_ids=(end,))  # older files of the folder must not count
    save_hf(model, tmp_path)
    unended = answer(tmp_path, prompt)
    assert len(unended) == STEPS
    at = next(i for i in range(4, STEPS) if unended[i] not in unended[:i])
    say_instead(model, unended[at], end)
    save_hf(model, tmp_path, tokenizer, end_ids=() if by_eos else template.end_ids)
    assert answer(tmp_path, prompt) == [*unended[:at], end]


def test_without_a_tokenizer_no_token_is_special(tmp_path):
    save_hf(make_model(40), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None] * 3
