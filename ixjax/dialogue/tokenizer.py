"""Tokenizers: train one on the corpus, or load one that has a chat template.

A loaded one comes from a Hugging Face folder or a GGUF file (`ixjax.dialogue.gguf_tokenizer`).

A trained tokenizer is a byte-level BPE with one token for each turn boundary and one that announces
the closing outcome line. It is saved as a plain Hugging Face folder with its template, which
`transformers.AutoTokenizer` reads. This module downloads nothing and runs no code from a folder.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ixjax.dialogue.gguf_tokenizer import read_tokenizer
from ixjax.gguf_file import is_gguf
from ixjax.io import NO_EFFECT, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD, OUTCOME = "<|begin|>", "<|end|>", "<|pad|>", "<|outcome|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (PAD, BEGIN, *ROLES, END, OUTCOME)

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte, so that no character is unknown


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer both speakers use."""

    path: str = dataclasses.field(default="", metadata=NO_EFFECT)
    """Hugging Face tokenizer folder, or *.gguf file, with a chat template; empty: train one."""

    vocab_size: int = 4096
    """Largest vocabulary of a trained tokenizer; a small corpus fills less of it."""

    def __post_init__(self):
        if not self.path:
            _check_vocab_size(self.vocab_size)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`, with our turn tokens and chat template.

    Args:
        texts: words of the corpus; markup in them is ordinary text.
        vocab_size: upper bound, at least `SMALLEST_VOCABULARY`.

    Returns:
        A fast tokenizer that encodes any text and decodes it back to the same text.

    Raises:
        InputError: `vocab_size` is too small for all bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    _check_vocab_size(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        # Sorted: the alphabet is a set, and token ids must not depend on its order.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[*ROLES, OUTCOME],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: str | Path) -> None:
    """Write a Hugging Face tokenizer folder atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        written = Path(temporary) / path.name
        tokenizer.save_pretrained(written)
        if path.exists():
            # A folder can't be replaced in one step; a stop in between leaves no folder.
            shutil.rmtree(path)
        os.replace(written, path)


def load_tokenizer(path: str | Path, *, setting: str = "tokenizer.path") -> PreTrainedTokenizerFast:
    """Load the tokenizer of a Hugging Face folder or a GGUF file.

    Args:
        path: a local folder with `tokenizer.json` and a chat template, or a *.gguf file.
        setting: name of the setting that holds the path, for errors.

    Raises:
        InputError: the path is missing or unreadable, or has no fast tokenizer or no chat
            template; the message names the remedy.
    """
    path = Path(path)
    tokenizer = read_tokenizer(path) if is_gguf(path) else _read_folder(path, setting)
    if not tokenizer.chat_template:
        remedy = (
            "set --tokenizer.path to a folder that has one"
            if is_gguf(path)
            else "put a chat_template.jinja into the folder"
        )
        raise InputError(
            f"{setting}: {str(path)!r} has no chat template; take the instruction-tuned version of "
            f"this model, or {remedy}"
        )
    _check_template(tokenizer, path)
    return tokenizer


def _read_folder(path: Path, setting: str) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    if not path.is_dir():
        raise InputError(
            f"{setting} is {str(path)!r}, no such folder; expected a downloaded Hugging Face model "
            "or tokenizer folder, a *.gguf file, or an empty setting to train a tokenizer on the "
            "corpus"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # each reader fails on a broken folder with another type
        missing = [name for name in TOKENIZER_FILES if not (path / name).is_file()]
        found = (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
            if missing
            else f"{type(error).__name__}: {_first_line(error)}"
        )
        raise InputError(
            f"{setting} is {str(path)!r}, no readable tokenizer ({found}); expected the files "
            f"{' and '.join(TOKENIZER_FILES)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{setting} is {str(path)!r}, a slow tokenizer; expected a tokenizer.json: load the "
            "folder in transformers with use_fast=True and save it"
        )
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Refuse a chat template that is not Jinja; `read_markup` finds other errors."""
    from jinja2 import TemplateSyntaxError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    except TemplateSyntaxError as error:
        own_file = path / "chat_template.jinja"
        place = f"{own_file}:{error.lineno}" if own_file.exists() else f"{path}: chat_template"
        raise InputError(f"{place}: not a Jinja template ({error.message})") from None
    except Exception:  # a template may demand more than one message
        return


def _check_vocab_size(vocab_size: int) -> None:
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"tokenizer.vocab_size is {vocab_size}; expected {SMALLEST_VOCABULARY} or more "
            f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens)"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
