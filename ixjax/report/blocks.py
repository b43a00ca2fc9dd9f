"""What a report is made of before it has a form: sections of blocks.

The page (HTML) and the Markdown file show the same sections; a block says what there is, and each
of the two renderers how it looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    lead: bool = False
    """Whether it says what the whole section is about."""


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Gap:
    """Something that is not there, and what would make it."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: its first columns name the row, the others hold figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    names: int = 1
    """How many columns name the row."""
    words: bool = False
    """Whether the other columns hold words, which are set to the left."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure of plotly's, and the words that stand for it where it can't be seen."""

    title: str
    figure: Mapping[str, Any]
    says: str
    """What it shows, and what to look for."""


@dataclasses.dataclass(frozen=True)
class Plots:
    """Figures side by side."""

    plots: Sequence[Plot]


@dataclasses.dataclass(frozen=True)
class Code:
    """Text that stands as it is, behind a line that opens it."""

    summary: str
    text: str
    language: str = ""


@dataclasses.dataclass(frozen=True)
class Transcript:
    """Two dialogues of one user, side by side; in Markdown alone."""

    title: str
    sides: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """(heading, turns) of each; a turn is (who speaks, what is said)."""


@dataclasses.dataclass(frozen=True)
class Widget:
    """A part of the page that its own script draws from its data; in the page alone."""

    kind: Literal["explorer", "dialogues"]
    data: Mapping[str, Any]


Block = Text | Items | Gap | Table | Plot | Plots | Code | Transcript | Widget


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    id: str
    title: str
    blocks: Sequence[Block]
