"""How alike two texts are: the share of character trigrams that they have in common.

Trigrams of characters need no tokenizer and no spaces between words, so that the figure means the
same in any language and for any model. Two responses that are nearly one text teach DPO little:
their returns differ by chance more than by words, and what the pair takes from one it takes from
the other (Pal et al. 2024, arXiv 2402.13228; Razin et al. 2024, arXiv 2410.08847).
"""

from __future__ import annotations

import unicodedata
from collections import Counter

TRIGRAM = 3


def text_similarity(first: str, second: str) -> float:
    """Dice's coefficient of two texts' character trigrams, counted with their repetitions.

    Case, punctuation, the width of spaces and how Unicode composes a letter make no difference;
    symbols such as emoji do. One other word in a turn of twenty leaves about 0.95.

    Returns:
        `2 |common| / (|first| + |second|)` in [0, 1]: 1 for equal texts, and for two texts without
        a letter, digit or symbol; 0 where nothing is shared.
    """
    mine, theirs = _trigrams(first), _trigrams(second)
    total = mine.total() + theirs.total()
    return 2 * (mine & theirs).total() / total if total else 1.0


def _trigrams(text: str) -> Counter[str]:
    """Trigrams of the words with one space around each, so that short words have some, too."""
    composed = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(" " if unicodedata.category(c).startswith("P") else c for c in composed)
    spaced = f" {' '.join(letters.split())} "
    return Counter(spaced[i : i + TRIGRAM] for i in range(len(spaced) - TRIGRAM + 1))
