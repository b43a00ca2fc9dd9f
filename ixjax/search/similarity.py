"""Similarity of two texts: the share of character trigrams that they have in common.

Character trigrams need no tokenizer and no spaces between words, so the measure works in any
language and for any model. Near-duplicates are poor pairs for DPO: their returns differ mostly by
chance, and lowering the rejected response lowers the chosen one, too (Pal et al. 2024,
arXiv 2402.13228; Razin et al. 2024, arXiv 2410.08847).
"""

from __future__ import annotations

import unicodedata
from collections import Counter

TRIGRAM = 3


def text_similarity(first: str, second: str) -> float:
    """Return Dice's coefficient of the character trigrams of two texts, with repetitions.

    Case, punctuation, the width of spaces and Unicode composition are ignored; symbols such as
    emoji count. Replacing one word in a turn of twenty gives about 0.95.

    Returns:
        `2 |common| / (|first| + |second|)` in [0, 1]: 1 for equal texts, and for two texts without
        a letter, digit or symbol; 0 if they share no trigram.
    """
    mine, theirs = _trigrams(first), _trigrams(second)
    total = mine.total() + theirs.total()
    return 2 * (mine & theirs).total() / total if total else 1.0


def _trigrams(text: str) -> Counter[str]:
    """Return the trigrams of words with one space around each, so that short words count, too."""
    composed = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(" " if unicodedata.category(c).startswith("P") else c for c in composed)
    spaced = f" {' '.join(letters.split())} "
    return Counter(spaced[i : i + TRIGRAM] for i in range(len(spaced) - TRIGRAM + 1))
