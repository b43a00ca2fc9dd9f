"""Texts of people, models and files, safe for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Return a text without control characters, such as those of escape sequences."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
