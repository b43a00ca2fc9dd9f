"""Our tokenizer: any text survives it, and transformers reads the folder it is saved in."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ixjax.dialogue.chat_template import ChatTemplate
from ixjax.dialogue.tokenizer import (
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    TokenizerConfig,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from ixjax.io import InputError
from tests.dialogue.chat_families import SENTENCES, build

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi"},
]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_text_survives_the_byte_level(text):
    tokenizer = build("own")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_template_marks_every_turn_and_begins_once():
    text = build("own").apply_chat_template(MESSAGES, tokenize=False)
    assert text == "<|begin|><|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>Hi<|end|>"
    cued = build("own").apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert cued == text + "<|assistant|>"


def test_special_tokens_are_one_id_each():
    tokenizer = build("own")
    ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in SPECIAL_TOKENS]
    assert ids == [[i] for i in range(len(SPECIAL_TOKENS))]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
    assert tokenizer.pad_token == "<|pad|>"


def test_words_of_a_small_vocabulary_become_one_token_each():
    words = ["rest", "listen", "advice", "calm", "worried"]
    texts = [" ".join(words[i:] + words[:i]) for i in range(5)] * 5
    tokenizer = train_tokenizer(texts, vocab_size=600)
    assert len(tokenizer("rest advice calm worried", add_special_tokens=False)["input_ids"]) == 4


def test_training_twice_gives_the_same_ids():
    one, two = (train_tokenizer(SENTENCES, vocab_size=400) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()


def test_markup_in_the_corpus_trains_no_merge_over_it():
    tokenizer = train_tokenizer(["a<|end|>b"] * 50, vocab_size=400)
    assert tokenizer("<|end|>", add_special_tokens=False)["input_ids"] == [5]


def test_transformers_loads_the_saved_folder_with_its_template(tmp_path):
    folder = tmp_path / "deep" / "tokenizer"
    save_tokenizer(build("own"), folder)
    save_tokenizer(build("own"), folder)  # a resumed run writes it again
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]
    for loaded in (AutoTokenizer.from_pretrained(str(folder)), load_tokenizer(folder)):
        assert loaded.get_vocab() == build("own").get_vocab()
        assert loaded.all_special_tokens == build("own").all_special_tokens
        assert loaded.apply_chat_template(MESSAGES, tokenize=False) == build(
            "own"
        ).apply_chat_template(MESSAGES, tokenize=False)


@pytest.mark.parametrize("vocab_size", [0, SMALLEST_VOCABULARY - 1])
def test_vocabulary_must_hold_all_bytes(vocab_size):
    message = f"tokenizer.vocab_size is {vocab_size}; expected 263 or more"
    with pytest.raises(InputError, match=message):
        train_tokenizer(SENTENCES, vocab_size=vocab_size)
    with pytest.raises(InputError, match=message):
        TokenizerConfig(vocab_size=vocab_size)
    assert TokenizerConfig(path="somewhere", vocab_size=vocab_size).path == "somewhere"


def test_missing_folder_is_named_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.path is '.*nowhere', no such folder"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0", "model": 3}'])
def test_unreadable_folder_is_named_with_the_files_it_needs(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    missing = r".*tokenizer\.json and tokenizer_config\.json are missing" if content is None else ""
    with pytest.raises(
        InputError, match=rf"^model is .* no readable tokenizer {missing}.* tokenizer_config\.json"
    ):
        load_tokenizer(tmp_path, setting="model")


def test_slow_tokenizer_is_refused(tmp_path):
    # ByT5's is written in Python and needs no vocabulary file.
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(InputError, match=r"a slow tokenizer; expected a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_folder_without_chat_template_is_refused(tmp_path):
    save_tokenizer(build("own"), tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.path: .* has no chat template"):
        load_tokenizer(tmp_path / "t")


def test_a_template_that_is_no_jinja_is_refused_by_file_and_line(tmp_path):
    save_tokenizer(build("own"), tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text("\n{% for m in messages %}{{ oops ")
    with pytest.raises(InputError, match=r"chat_template\.jinja:2: not a Jinja template \(unexp"):
        load_tokenizer(tmp_path / "t")


def test_a_template_that_refuses_a_dialogue_is_named_by_its_folder(tmp_path):
    save_tokenizer(build("own"), tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match=rf"^{tmp_path}/t: the tokenizer's chat template refuses"):
        ChatTemplate.from_tokenizer(load_tokenizer(tmp_path / "t"))


def test_code_in_a_folder_is_not_run(tmp_path):
    shutil.copytree(_saved(tmp_path), tmp_path / "evil")
    config = json.loads((tmp_path / "evil" / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    (tmp_path / "evil" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="no readable tokenizer"):
        load_tokenizer(tmp_path / "evil")
    assert not (tmp_path / "ran").exists()


def _saved(tmp_path):
    save_tokenizer(build("own"), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"
