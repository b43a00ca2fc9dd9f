"""Sections as Markdown: the words and tables of the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ixjax.report.blocks import (
    Block,
    Code,
    Gap,
    Items,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    Transcript,
    Widget,
)
from ixjax.report.formats import show

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")
WIDGETS = {
    "explorer": "The HTML page has a tree explorer.",
    "dialogues": "The HTML page shows all of them, for any two methods. The first are:",
}


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the document."""
    parts = [f"# {plain(title)}"]
    for section in sections:
        parts.append(f"## {section.title}")
        shown = [_block(block) for block in section.blocks]
        parts += [text for text in shown if text]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return a text on one line, with Markdown characters escaped."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    match block:
        case Text(text=text):
            return _sentence(text)
        case Items(items=items):
            return "\n".join(f"- {_sentence(item)}" for item in items)
        case Gap(text=text):
            return f"*Missing:* {_sentence(text)}"
        case Table():
            return _table(block)
        case Code():
            return _code(block)
        case Transcript():
            return _transcript(block)
        case Widget():
            return f"*{WIDGETS[block.kind]}*"
        case Plot() | Plots():
            return ""  # tables have the same figures


def _sentence(text: str) -> str:
    """Return an escaped sentence; code in backticks is kept."""
    parts = text.split("`")
    return "".join(plain_keeping_ends(p) if i % 2 == 0 else f"`{p}`" for i, p in enumerate(parts))


def plain_keeping_ends(text: str) -> str:
    """Return `plain(text)`, with spaces at both ends kept."""
    return SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", text))


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    other = ":--" if table.words else "--:"
    lines = [
        f"**{plain(table.caption)}**",
        "",
        _row(table.columns),
        _line([":--"] * table.names + [other] * (len(table.columns) - table.names)),
        *(_row([show(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return _line([plain(cell) for cell in cells])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(code: Code) -> str:
    longest = max((len(run) for run in re.findall(r"`+", code.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{plain(code.summary)}:\n\n{fence}{code.language}\n{code.text.rstrip()}\n{fence}"


def _transcript(transcript: Transcript) -> str:
    parts = [f"### {plain(transcript.title)}"]
    for heading, turns in transcript.sides:
        said = [f"> **{plain(role)}**: {plain(text)}" for role, text in turns]
        parts.append("\n>\n".join([f"> *{plain(heading)}*", *said]))
    return "\n\n".join(parts)
