"""The content of a report: sections of blocks, which `page` and `markdown` render."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    lead: bool = False
    """Whether it sums up the section."""


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Gap:
    """Something that is missing, and the command that makes it."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first columns name the row; the others hold figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    names: int = 1
    """How many columns name the row."""
    words: bool = False
    """Whether the other columns hold words, which are aligned left."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plotly figure and its caption."""

    title: str
    figure: Mapping[str, Any]
    says: str
    """The caption; also the description for screen readers."""


@dataclasses.dataclass(frozen=True)
class Plots:
    """Plots side by side."""

    plots: Sequence[Plot]


@dataclasses.dataclass(frozen=True)
class Code:
    """Preformatted text, folded under a summary line."""

    summary: str
    text: str
    language: str = ""


@dataclasses.dataclass(frozen=True)
class Transcript:
    """Two dialogues with one user; shown in Markdown only."""

    title: str
    sides: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """(heading, turns) of each; a turn is (role, text)."""


@dataclasses.dataclass(frozen=True)
class Widget:
    """A part of the page that a script draws from data; shown in the page only."""

    kind: Literal["explorer", "dialogues"]
    data: Mapping[str, Any]


Block = Text | Items | Gap | Table | Plot | Plots | Code | Transcript | Widget


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    id: str
    title: str
    blocks: Sequence[Block]
