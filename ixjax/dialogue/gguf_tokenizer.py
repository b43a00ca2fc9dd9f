"""The tokenizer and chat template of a GGUF file, as a Hugging Face tokenizer.

The file stores a vocabulary, merges or scores, and names of llama.cpp's tokenizers: byte-level BPE
with a pre-tokenizer (`tokenizer.ggml.pre`), or SentencePiece. transformers builds the same without
some pre-tokenizers (SmolLM's single digits), and needs torch to read the file.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ixjax.gguf_file import GgufFile, open_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

MODEL = "tokenizer.ggml.model"
PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
TYPES = "tokenizer.ggml.token_type"
SCORES = "tokenizer.ggml.scores"
MERGES = "tokenizer.ggml.merges"
ADD_BOS = "tokenizer.ggml.add_bos_token"
ADD_EOS = "tokenizer.ggml.add_eos_token"
ADD_SPACE = "tokenizer.ggml.add_space_prefix"
CHAT_TEMPLATE = "tokenizer.chat_template"
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # values of MODEL
SPECIAL = {  # transformers' name -> key
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # values of TYPES
SPACE = "▁"  # SentencePiece's

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class _Split:
    """How a byte-level tokenizer cuts text before it merges."""

    pattern: str = ""
    """Pattern of a piece; empty: GPT-2's."""
    digits: bool = False
    """Whether each digit is a piece."""
    whole: bool = False
    """Whether a piece that is in the vocabulary is not merged."""
    begins: bool = False
    """Whether texts begin with the bos token if the file doesn't say."""


_LLAMA3 = _Split(_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST, whole=True, begins=True)
_QWEN2 = _Split(_CONTRACTIONS + _WORDS + r"|\p{N}" + _REST)
SPLITS: Mapping[str, _Split] = {
    "gpt-2": _Split(),
    "smollm": _Split(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _Split(_CASED, whole=True, begins=True),
}


def read_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file, with its chat template if it has one.

    Raises:
        InputError: the file can't be read, or its tokenizer is not supported.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    file = open_gguf(path)
    tokens, types = file.array(TOKENS, str), _types(file)
    model = file.get(MODEL, str)
    if model not in (BYTE_LEVEL, SENTENCEPIECE):
        raise file.error(MODEL, f"one of the supported: {BYTE_LEVEL}, {SENTENCEPIECE}")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise file.error(TOKENS, f"{len(tokens)} different ones, not {len(vocabulary)}")
    names = {
        name: tokens[_token_id(file, key)] for name, key in SPECIAL.items() if key in file.metadata
    }
    byte_level = model == BYTE_LEVEL
    built = _byte_level(file, vocabulary) if byte_level else _sentencepiece(file, vocabulary, names)
    whole = [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    built.add_tokens(whole)
    begins = _split(file).begins if byte_level else True
    _add_ends(built, names, file.get(ADD_BOS, bool, begins), file.get(ADD_EOS, bool, False))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=built, clean_up_tokenization_spaces=False, **names
    )
    if CHAT_TEMPLATE in file.metadata:
        fast.chat_template = file.get(CHAT_TEMPLATE, str)
    return fast


def _token_id(file: GgufFile, key: str) -> int:
    number, size = file.get(key, int), len(file.array(TOKENS, str))
    if not 0 <= number < size:
        raise file.error(key, f"a token from 0 to {size - 1}")
    return number


def _types(file: GgufFile) -> list[int]:
    size = len(file.array(TOKENS, str))
    types = file.array(TYPES, int) if TYPES in file.metadata else [NORMAL] * size
    if len(types) != size:
        raise file.error(TYPES, f"{size} types, one for each of {TOKENS}")
    return types


def _split(file: GgufFile) -> _Split:
    """Return the pre-tokenizer of a byte-level tokenizer."""
    name = file.get(PRE, str)
    if name not in SPLITS:
        raise file.error(
            PRE,
            f"one of the supported: {', '.join(SPLITS)}. Give the original model's folder in "
            "--tokenizer.path",
        )
    return SPLITS[name]


def _byte_level(file: GgufFile, vocabulary: dict[str, int]) -> Tokenizer:
    """Return a byte-level BPE."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    split = _split(file)
    merges = [merge.split(" ") for merge in file.array(MERGES, str)]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            expected = f"pairs that make a token, all of {TOKENS}, not {' '.join(merge)!r}"
            raise file.error(MERGES, expected)
    pairs = [(left, right) for left, right in merges]
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split.whole))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern))
    built.pre_tokenizer = pre_tokenizers.Sequence(steps)
    built.decoder = decoders.ByteLevel()
    return built


def _sentencepiece(
    file: GgufFile, vocabulary: dict[str, int], names: Mapping[str, str]
) -> Tokenizer:
    """Return a SentencePiece BPE: merges in the order of scores, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores, types = file.array(SCORES, float), _types(file)
    if len(scores) != len(vocabulary):
        raise file.error(SCORES, f"{len(vocabulary)} scores, one for each of {TOKENS}")
    built = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores, types),
            unk_token=names.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = file.get(ADD_SPACE, bool, True)
    spaces = normalizers.Replace(" ", SPACE)
    built.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(" ", 1, 0))
    built.decoder = decoders.Sequence(steps)
    return built


def _merges(
    vocabulary: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Return every pair of normal tokens that is a normal token, the best score first."""
    normal = {token: number for token, number in vocabulary.items() if types[number] == NORMAL}
    ranked = []
    for token, number in normal.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                ranked.append((-scores[number], normal[left], normal[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _add_ends(built: Tokenizer, names: Mapping[str, str], begins: bool, ends: bool) -> None:
    """Have the tokenizer write a bos token before a text, and an eos token after it."""
    from tokenizers import processors

    bos = [names["bos_token"]] if begins and "bos_token" in names else []
    eos = [names["eos_token"]] if ends and "eos_token" in names else []
    if not bos and not eos:
        return
    single, other = [*bos, "$A", *eos], [*bos, "$B", *eos]
    pair = [*single, *(f"{part}:1" for part in other)]
    tokens = [(token, built.token_to_id(token)) for token in itertools.chain(bos, eos)]
    built.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=tokens
    )
