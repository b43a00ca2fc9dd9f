"""Stored reference log-probabilities are used where they belong, and say why where they do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ixjax import io
from ixjax.dialogue.chat_template import ChatTemplate
from ixjax.dialogue.tokenizer import train_tokenizer
from ixjax.training.reference import ReferenceIdentity, load_reference, save_reference
from tests.training.doubles import random_pairs, tiny_model

OURS = ReferenceIdentity("w", "t", "k")
EVERYTHING = {"weights": "x", "tokens": "x", "tokenizer": "x"}


def test_stored_reference_is_read_back_to_the_bit(tmp_path):
    reference = np.random.default_rng(0).normal(-30, 9, (7, 2)).astype(np.float32)
    path = tmp_path / "reference.json"
    assert load_reference(path, OURS, strict=True) == (None, "none are stored")
    save_reference(path, reference, OURS)
    found, reason = load_reference(path, OURS, strict=True)
    assert reason == "stored"
    assert found is not None
    np.testing.assert_array_equal(found, reference)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": "x"}, "weights changed"),
        ({"tokens": "x"}, "tokens changed"),
        ({"tokenizer": "x"}, "tokenizer changed"),
        ({"weights": "x", "tokens": "x"}, "weights and tokens changed"),
        (EVERYTHING, "weights, tokens and tokenizer changed"),
    ],
)
def test_a_stale_reference_says_what_has_changed(changes, reason, tmp_path):
    path = tmp_path / "reference.json"
    save_reference(path, np.zeros((2, 2), np.float32), OURS)
    now = dataclasses.replace(OURS, **changes)
    assert load_reference(path, now) == (None, f"{reason} since they were stored")
    with pytest.raises(io.InputError, match=rf"{path}: .* {reason} since .*reference\.strict"):
        load_reference(path, now, strict=True)


@pytest.mark.parametrize(
    "content",
    [
        '{"logprobs": [[1, 2]', "[]", '{"logprobs": [[1, 2]]}', '{"fingerprint": "a"}',
        '{"logprobs": [1], "fingerprints": {"weights": "w", "tokens": "t", "tokenizer": "k"}}',
    ],
)  # fmt: skip
def test_a_damaged_reference_is_not_used(content, tmp_path):
    path = tmp_path / "reference.json"
    path.write_text(content)
    found, reason = load_reference(path, OURS)
    assert (found, reason) == (None, "the stored ones are damaged or of an older version")
    with pytest.raises(io.InputError, match=r"damaged.*[Rr]emove the file"):
        load_reference(path, OURS, strict=True)


def test_weights_tokens_and_tokenizer_are_told_apart():
    model, pairs = tiny_model(), random_pairs(4)
    tokenizer = train_tokenizer(["a b c"], vocab_size=300)
    key = ChatTemplate.from_tokenizer(tokenizer).fingerprint
    ours = ReferenceIdentity.of(model, pairs, tokenizer=key)
    assert ours == ReferenceIdentity.of(tiny_model(), random_pairs(4), tokenizer=key)

    def changed(model=model, pairs=pairs, key=key):
        now = ReferenceIdentity.of(model, pairs, tokenizer=key)
        return now.differences(dataclasses.asdict(ours))

    assert changed(model=tiny_model(seed=1)) == ["weights"]
    assert changed(pairs=[pairs[1], pairs[0], *pairs[2:]]) == ["tokens"]
    tokenizer.chat_template = tokenizer.chat_template.replace("bos_token", "bos_token + ' '")
    assert changed(key=ChatTemplate.from_tokenizer(tokenizer).fingerprint) == ["tokenizer"]
    other = train_tokenizer(["x y z"], vocab_size=300)
    assert changed(key=ChatTemplate.from_tokenizer(other).fingerprint) == ["tokenizer"]
