"""The bytes that each token adds to the decoded text.

A token may hold parts of characters: byte-level vocabularies split characters, and SentencePiece
vocabularies spell unknown ones byte by byte. Stop texts are therefore matched on UTF-8 bytes, and
the text of a sequence of tokens is the concatenation of their bytes. The tokenizer's own decoder
gives the bytes; the name of a token alone does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANCHOR = "a"  # decoded before each token, so that the token is not the first of the text
BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """Return the bytes that each token adds to the decoded text after the first token.

    Decoders of SentencePiece vocabularies differ from these bytes in two places: they drop the
    space that opens a text, and they decode each byte of invalid UTF-8 as an unknown character.

    Args:
        tokenizer: a fast tokenizer: byte-level (GPT-2, Llama 3, Qwen), SentencePiece with or
            without byte fallback (Llama 2, Mistral, Gemma), or any whose decoder gives a token
            the same text after every other token.

    Returns:
        Bytes for ids 0 to `len(tokenizer) - 1`; empty for special tokens, which text never shows,
        and for ids without a token.
    """
    backend = tokenizer.backend_tokenizer
    decode = " ".join if backend.decoder is None else backend.decoder.decode
    # To a byte-level decoder the name of a space is U+0120.
    spell = _byte_level() if decode([ANCHOR, "\u0120"]) == f"{ANCHOR} " else _after_anchor(decode)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = (None if i in special else backend.id_to_token(i) for i in range(len(tokenizer)))
    return [b"" if name is None else spell(name) for name in names]


def _byte_level() -> Callable[[str], bytes]:
    """Return a speller of GPT-2's alphabet: bytes without a printable letter are moved above it."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = frozenset(ByteLevel.alphabet())
    above = sorted(letter for letter in alphabet if ord(letter) > 0xFF)
    moved = sorted({chr(byte) for byte in range(256)} - alphabet)
    to_byte = str.maketrans(dict(zip(above, moved, strict=True)))

    def spell(name: str) -> bytes:
        if not alphabet.issuperset(name):  # an added token, whose name is its text
            return name.encode()
        return name.translate(to_byte).encode("latin-1")

    return spell


def _after_anchor(decode: Callable[[Sequence[str]], str]) -> Callable[[str], bytes]:
    """Return a speller of names that decode to whole characters, or to one byte (`<0xE2>`)."""
    falls_back = decode(["<0x41>"]) == "A"
    before = len(decode([ANCHOR]))

    def spell(name: str) -> bytes:
        byte = BYTE_NAME.fullmatch(name) if falls_back else None
        return bytes.fromhex(byte[1]) if byte else decode([ANCHOR, name])[before:].encode()

    return spell
