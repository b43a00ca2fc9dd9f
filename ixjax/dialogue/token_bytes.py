"""What each token adds to the text, as bytes.

A token need not be whole characters: byte-level vocabularies cut through them, and SentencePiece
vocabularies spell what they do not know byte by byte. So text that is watched while it is
generated is watched as UTF-8 bytes, and the text of a sequence of tokens is that of their bytes
put together. What a token says is asked of the tokenizer's own decoder, not guessed from its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANCHOR = "a"  # stands before a token that is decoded, so that it is not the first of the text
BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """The bytes that each token adds to the decoded text, where it is not the first.

    Decoders of SentencePiece vocabularies show something else in two places: they drop the space
    that opens a text, and a run of byte tokens that is not valid UTF-8 is one unknown character
    for each of its bytes.

    Args:
        tokenizer: a fast tokenizer: byte-level (GPT-2, Llama 3, Qwen), SentencePiece with or
            without byte fallback (Llama 2, Mistral, Gemma), or any whose decoder treats a token
            alike behind every other.

    Returns:
        Bytes for ids 0 to `len(tokenizer) - 1`; none for special tokens, which text never shows,
        and for ids without a token.
    """
    backend = tokenizer.backend_tokenizer
    decode = " ".join if backend.decoder is None else backend.decoder.decode
    # To a byte-level decoder the name of a space is U+0120.
    spell = _byte_level() if decode([ANCHOR, "\u0120"]) == f"{ANCHOR} " else _behind_anchor(decode)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = (None if i in special else backend.id_to_token(i) for i in range(len(tokenizer)))
    return [b"" if name is None else spell(name) for name in names]


def _byte_level() -> Callable[[str], bytes]:
    """Names in GPT-2's alphabet: printable Latin-1 is itself, other bytes lie above, in order."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = frozenset(ByteLevel.alphabet())
    above = sorted(letter for letter in alphabet if ord(letter) > 0xFF)
    moved = sorted({chr(byte) for byte in range(256)} - alphabet)
    to_byte = str.maketrans(dict(zip(above, moved, strict=True)))

    def spell(name: str) -> bytes:
        if not alphabet.issuperset(name):  # an added token that is written as it is
            return name.encode()
        return name.translate(to_byte).encode("latin-1")

    return spell


def _behind_anchor(decode: Callable[[Sequence[str]], str]) -> Callable[[str], bytes]:
    """Names that a decoder makes whole characters of, or one byte (`<0xE2>`)."""
    falls_back = decode(["<0x41>"]) == "A"
    before = len(decode([ANCHOR]))

    def spell(name: str) -> bytes:
        byte = BYTE_NAME.fullmatch(name) if falls_back else None
        return bytes.fromhex(byte[1]) if byte else decode([ANCHOR, name])[before:].encode()

    return spell
