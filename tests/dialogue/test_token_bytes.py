"""The joined bytes of tokens equal the text of each family's decoder."""

from __future__ import annotations

import copy
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from ixjax.dialogue.token_bytes import token_bytes
from tests.dialogue import chat_families

BYTE_LEVEL = ("own", "llama3", "qwen2", "thinking")
# The second shows the space that opens a text.
BYTE_FALLBACK = ("llama2", "gemma")
WHOLE_CHARACTERS = ("t5", "wordpiece", "no decoder")

WORDS = ["▁the", "▁", "▁▁▁", "ing", "é", "▁日本", "😀", "\n", ":", "▁User", "a▁b", "Ġ", "##s"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Added and not special: "café" is all letters of GPT-2's alphabet, "日 本" is not.
ADDED = ["<think>", "café", "日 本", "\n\n"]


@functools.cache
def build(name: str) -> PreTrainedTokenizerFast:
    if name in BYTE_LEVEL:
        tokenizer = copy.deepcopy(chat_families.build(name))
    elif name == "llama2":
        tokenizer = LlamaTokenizer(vocab=numbered("<unk>", "<s>", "</s>", *BYTES, *WORDS))
    elif name == "gemma":
        special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
        tokenizer = GemmaTokenizer(vocab=numbered(*special, *BYTES, *WORDS))
    elif name == "t5":
        names = ["<pad>", "</s>", "<unk>", *WORDS, "<extra_id_0>"]
        tokenizer = T5Tokenizer(vocab=[(name, -1.0) for name in names], extra_ids=1)
    else:
        backend = Tokenizer(models.WordLevel(numbered("[UNK]", *WORDS), unk_token="[UNK]"))
        if name == "wordpiece":
            backend.decoder = decoders.WordPiece(cleanup=False)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ADDED])
    return tokenizer


def numbered(*names: str) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


@functools.cache
def pieces_of(name: str) -> list[bytes]:
    return token_bytes(build(name))


def said(name: str, ids: list[int]) -> str:
    return b"".join(pieces_of(name)[token] for token in ids).decode(errors="replace")


def decoded(name: str, ids: list[int]) -> str:
    return build(name).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(data=st.data())
def test_byte_level_tokens_in_any_order_make_the_decoded_text(name, data):
    ids = data.draw(st.lists(st.integers(0, len(build(name)) - 1), max_size=20))
    assert said(name, ids) == decoded(name, ids)


@pytest.mark.parametrize("name", BYTE_FALLBACK)
@given(data=st.data())
def test_words_and_spelt_characters_make_the_decoded_text(name, data):
    to_id = build(name).convert_tokens_to_ids
    words = [token for token in range(len(build(name))) if token not in to_id(BYTES)]
    spelt = st.characters(exclude_categories=["Cs"]).map(str.encode)
    part = st.sampled_from(words).map(lambda token: [token]) | spelt.map(
        lambda character: to_id([BYTES[byte] for byte in character])
    )
    ids = [token for ids in data.draw(st.lists(part, max_size=12)) for token in ids]
    # Llama 2's decoder takes one space off the front of a text, Gemma's none.
    shown = said(name, ids).removeprefix(" ") if name == "llama2" else said(name, ids)
    assert shown == decoded(name, ids)


@pytest.mark.parametrize("name", WHOLE_CHARACTERS)
@given(data=st.data())
def test_any_other_decoder_is_asked_what_a_token_adds_behind_others(name, data):
    ids = data.draw(st.lists(st.integers(0, len(build(name)) - 1), max_size=12))
    first = build(name).convert_tokens_to_ids("ing")
    assert "ing" + said(name, ids) == decoded(name, [first, *ids])


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *BYTE_FALLBACK, *WHOLE_CHARACTERS])
def test_special_tokens_say_nothing_and_every_other_something(name):
    added = build(name).added_tokens_decoder
    special = sorted(token for token, content in added.items() if content.special)
    assert special
    assert len(pieces_of(name)) == len(build(name))
    assert [token for token, said in enumerate(pieces_of(name)) if not said] == special


@pytest.mark.parametrize("name", ["llama2", "gemma"])
def test_half_a_character_is_its_bytes(name):
    first, second = (pieces_of(name)[build(name).convert_tokens_to_ids(b)] for b in BYTES[195:197])
    assert (first, second) == (b"\xc3", b"\xc4")
