"""Texts of people, models and files as a terminal may have them."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Text without what a terminal would obey: escape sequences and other control characters."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
