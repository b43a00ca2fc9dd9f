"""A GGUF file's tokenizer gives the tokens of the tokenizer that it was converted from."""

from __future__ import annotations

import functools
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ixjax.dialogue.chat_template import ChatTemplate
from ixjax.dialogue.gguf_tokenizer import SPLITS
from ixjax.dialogue.tokenizer import load_tokenizer, save_tokenizer
from ixjax.io import InputError
from tests.dialogue.chat_families import SENTENCES, build
from tests.gguf_files import tokenizer_metadata, write_tiny

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces ",
    "\n\n\tdef f(x):\n    return x**2  # fine\n",
    "I'm sure you're here; we'll DON'T I'M",
    "naïve café Ünïcödé e\u0301",
    "日本語テスト 中文 한국어 Ελληνικά Русский עברית العربية",
    "🙂👩‍👩‍👧‍👦 emoji",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "a\u00a0b\u200bc\u3000d",
    "\r\n\r\n mixed \t tabs",
    "x" * 50,
    "if (a[0] != b->c) { return *p++; } // 100%",
]
NUMBERS = ["12345 1,234.56", "½ ² ٣٤ 2024-01-01", "a1b22c333d4444", "x = 10 / 3.5e-7"]
MESSAGES = [
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi, 1 2 3"},
    {"role": "user", "content": "Why?"},
]
ALPHABET = "abcXYZ 0123456789  \n\t'\"!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`éßñ日本🙂١٢"


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=draw.randint(1, 40))) for _ in range(count)]


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def reference(path: Path) -> PreTrainedTokenizerFast:
    """Return transformers' own reading of a file."""
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that writes a file with the tokenizer of a family."""
    folder = tmp_path_factory.mktemp("gguf")

    @functools.cache
    def make(family: str, pre: str) -> Path:
        described = tokenizer_metadata(build(family), pre)
        name = f"{family}-{pre}.gguf"
        return write_tiny(folder / name, "llama", tokenizer=described)

    return make


@pytest.mark.filterwarnings("ignore:the tokenizer's chat template is not additive")
@pytest.mark.parametrize("family", ["llama3", "gemma3", "thinking"])
def test_tokens_and_template_are_those_of_the_original(made, family):
    original, found = build(family), load_tokenizer(made(family, "llama-bpe"))
    assert found.get_vocab() == original.get_vocab()
    for text in [*TEXTS, *NUMBERS, *SENTENCES, *random_texts(200)]:
        assert ids(found, text) == ids(original, text), text
        assert found.decode(ids(found, text)) == original.decode(ids(original, text))
    one, other = (
        t.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        for t in (found, original)
    )
    assert one == other
    one, other = ChatTemplate.from_tokenizer(found), ChatTemplate.from_tokenizer(original)
    assert one.end_ids == other.end_ids
    assert one.own_prefix == other.own_prefix
    assert one.special_ids == other.special_ids


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example("1 ²٣\n\n  x")
def test_any_text_has_the_tokens_of_the_original(made, text):
    assert ids(loaded(made("llama3", "llama-bpe")), text) == ids(build("llama3"), text)


@functools.cache
def loaded(path: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(path)


# transformers does not know "smollm", whose single digits `LLAMA_CPP` has.
@pytest.mark.parametrize("pre", [pre for pre in SPLITS if pre != "smollm"])
def test_pre_tokenizers_split_as_those_of_transformers(made, pre):
    path = made("qwen2", pre)
    found, expected = load_tokenizer(path), reference(path)
    for text in [*TEXTS, *NUMBERS, *SENTENCES, *random_texts(200)]:
        assert ids(found, text) == ids(expected, text), text


def test_a_bos_token_is_written_if_the_file_says_so(tmp_path):
    described = tokenizer_metadata(build("llama3"), "llama-bpe")
    begin = build("llama3").bos_token_id
    for name, expected in (("yes", [begin]), ("no", []), ("unsaid", [begin])):
        described["tokenizer.ggml.add_bos_token"] = name == "yes"
        if name == "unsaid":  # llama.cpp adds one for this pre-tokenizer, transformers does not
            del described["tokenizer.ggml.add_bos_token"]
        path = write_tiny(tmp_path / f"{name}.gguf", "llama", tokenizer=described)
        found = load_tokenizer(path)
        assert found("Hello")["input_ids"] == expected + ids(found, "Hello")
        if name != "unsaid":
            assert found("Hello")["input_ids"] == reference(path)("Hello")["input_ids"]


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of Llama 2's form: a prefix space, and bytes for unknown characters."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    trained.train_from_iterator(SENTENCES * 3, trainer)
    trained.pre_tokenizer = None
    trained.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]</s>{% endfor %}"
    )
    return fast


def sentencepiece_metadata(original: PreTrainedTokenizerFast, whole=(), **changes) -> dict:
    """Return it as llama.cpp's converter stores it, `whole` as user-defined tokens before all."""
    tokens = original.convert_ids_to_tokens(range(len(original)))
    special = [2, 3, 3, *[6] * 256]  # <unk>, <s>, </s>, bytes
    types = [*special, *[4] * len(whole), *[1] * (len(tokens) - len(special))]
    tokens[len(special) : len(special)] = whole
    scores = [0.0 if kind != 1 else -float(number) for number, kind in enumerate(types)]
    return tokenizer_metadata(original, "default", **{
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        **changes,
    })  # fmt: skip


def test_sentencepiece_merges_follow_the_scores(tmp_path):
    original = sentencepiece_tokenizer()
    described = sentencepiece_metadata(original)
    found = load_tokenizer(write_tiny(tmp_path / "m.gguf", "llama", tokenizer=described))
    for text in [*TEXTS, *NUMBERS, *SENTENCES, "a</s>b", *random_texts(200)]:
        assert ids(found, text) == ids(original, text), text
        assert found.decode(ids(found, text)) == original.decode(ids(original, text))
    assert found("I feel")["input_ids"] == [1, *ids(original, "I feel")]


def test_runs_of_spaces_are_tokens_of_a_gemma(tmp_path):
    spaces = {"tokenizer.ggml.add_space_prefix": False}
    described = sentencepiece_metadata(
        sentencepiece_tokenizer(), whole=("\n\n", "  ", "   ", "    "), **spaces
    )
    path = write_tiny(tmp_path / "m.gguf", "gemma3", tokenizer=described)
    found, expected = load_tokenizer(path), reference(path)
    assert found.convert_tokens_to_ids("    ") in ids(found, TEXTS[4])
    for text in [*TEXTS, *NUMBERS, *SENTENCES, "a</s>b", *random_texts(200)]:
        assert ids(found, text) == ids(expected, text), text
        assert found.decode(ids(found, text)) == expected.decode(ids(expected, text))


def test_a_saved_tokenizer_is_a_folder_for_transformers(made, tmp_path):
    found = load_tokenizer(made("llama3", "llama-bpe"))
    save_tokenizer(found, tmp_path / "t")
    for again in (AutoTokenizer.from_pretrained(tmp_path / "t"), load_tokenizer(tmp_path / "t")):
        assert again.chat_template == found.chat_template
        for text in [*TEXTS, *NUMBERS]:
            assert again(text)["input_ids"] == found(text)["input_ids"]


def test_reading_needs_neither_torch_nor_jax(made):
    path = made("llama3", "llama-bpe")
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from ixjax.dialogue import load_tokenizer\n"
        f"assert load_tokenizer({str(path)!r}).chat_template\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# From `/tokenize` of llama.cpp's server (xllamacpp 2026.10), on the same file.
LLAMA_CPP = {
    "12345 1,234.56": [33, 34, 35, 36, 37, 216, 33, 28, 34, 35, 36, 30, 37, 38],
    "½ ² ٣٤ 2024-01": [16738, 216, 19133, 216, 164, 113, 164, 114, 216, 34, 32, 34, 36, 29, 32, 33],
    "a1b22c333d4444": [81, 33, 82, 34, 34, 83, 35, 35, 35, 84, 36, 36, 36, 36],
    "x = 10 / 3.5e-7": [104, 446, 216, 33, 32, 2272, 216, 35, 30, 37, 85, 29, 39],
    "  two  spaces \n\n\tx": [216, 827, 216, 5600, 38028, 197, 104],
    "I'm sure you're here; WE'LL": [57, 5248, 2090, 346, 2316, 1535, 43, 26587, 23, 16421],
    "日本語 🙂 e\u0301": [23274, 115, 40993, 179, 120, 248, 47526, 297, 151, 219],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
}


def test_smollm2_gives_the_tokens_of_llama_cpp(smollm2):
    found = load_tokenizer(smollm2)
    assert {text: ids(found, text) for text in LLAMA_CPP} == LLAMA_CPP


@pytest.mark.slow
def test_smollm2_gives_the_tokens_and_the_dialogue_of_transformers(smollm2):
    found, expected = load_tokenizer(smollm2), reference(smollm2)
    texts = [*TEXTS, *SENTENCES, *random_texts(500)]
    # transformers gives the space before a digit to the digit's piece, where it is merged.
    odd = re.compile(r"\s\s\d|\s[^\x00-\x7f]")
    texts = [text for text in texts if not odd.search(text)]
    assert len(texts) > 250
    for text in texts:
        assert ids(found, text) == ids(expected, text), text
    for cue in (True, False):
        one, other = (
            t.apply_chat_template(MESSAGES, add_generation_prompt=cue)["input_ids"]
            for t in (found, expected)
        )
        assert one == other
    template = ChatTemplate.from_tokenizer(found)
    assert template.end_ids == (2,)
    assert found.convert_ids_to_tokens(2) == "<|im_end|>"


REFUSED = [
    ({"tokens": None}, "tokens is nothing; expected a non-empty array, each element a text"),
    ({"model": "rwkv"}, "model is 'rwkv'; expected one of the supported: gpt2, llama"),
    ({"pre": "viking"}, "pre is 'viking'; expected one of the supported: gpt-2, smollm"),
    ({"pre": None}, "pre is nothing; expected a text"),
    ({"merges": None}, "merges is nothing; expected a non-empty array"),
    ({"merges": ["a b c"]}, r"merges is \['a b c'\]; expected pairs that .* not 'a b c'"),
    ({"merges": ["a bzz"]}, r"merges is \['a bzz'\]; expected pairs that .* not 'a bzz'"),
    ({"token_type": [1]}, r"token_type is \[1\]; expected 392 types, one for each"),
    ({"bos_token_id": 392}, "bos_token_id is 392; expected a token from 0 to 391"),
    ({"model": "llama"}, "scores is nothing; expected a non-empty array, each element a number"),
    ({"tokens": ["a", "a"], "token_type": [1, 1]}, r"tokens is \['a', 'a'\]; expected 2 different"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_tokenizer_that_we_do_not_build_is_refused_by_key(tmp_path, changes, message):
    described = tokenizer_metadata(
        build("llama3"), "llama-bpe", **{f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    )
    path = write_tiny(tmp_path / "m.gguf", "llama", tokenizer=described)
    with pytest.raises(InputError, match=rf"m\.gguf: tokenizer\.ggml\.{message}"):
        load_tokenizer(path)


def test_a_file_without_chat_template_is_refused(tmp_path):
    described = tokenizer_metadata(build("llama3"), "llama-bpe")
    del described["tokenizer.chat_template"]
    path = write_tiny(tmp_path / "m.gguf", "llama", tokenizer=described)
    with pytest.raises(
        InputError, match=r"model\.path: .* has no chat template; .* set --tokenizer.path"
    ):
        load_tokenizer(path, setting="model.path")
