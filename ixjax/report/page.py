"""Sections as one self-contained HTML file.

Scripts, styles and plotly.js are inline. The content security policy allows only these scripts, by
hash, and no requests: a script in an utterance cannot run even if escaping failed (jinja2 escapes
HTML, `as_data` escapes the scripts' data).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from ixjax.report.blocks import Block, Plot, Plots, Section, Widget
from ixjax.report.formats import show

ASSETS = files("ixjax.report") / "assets"
STYLES = ("base.css", "report.css")
SCRIPTS = ("elements.js", "plots.js", "tree.js", "explorer.js", "dialogues.js")


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the page."""
    from plotly.offline import get_plotlyjs  # takes a second to import

    data = {f"plot-{i}": plot.figure for i, plot in enumerate(_plots(sections))}
    data |= {
        block.kind: block.data
        for section in sections
        for block in section.blocks
        if isinstance(block, Widget)
    }
    numbers = {id(plot): i for i, plot in enumerate(_plots(sections))}
    return render(
        "report.html",
        styles=STYLES,
        scripts=[get_plotlyjs(), *(asset(name) for name in SCRIPTS)],
        data=data,
        title=title,
        sections=sections,
        plot_id=lambda plot: f"plot-{numbers[id(plot)]}",
        kind=_kind,
        show=show,
    )


def render(
    template: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: Mapping[str, Any],
    **context: Any,
) -> str:
    """Return a page from a template in assets/, with styles, scripts and data inline.

    Args:
        template: file name.
        styles: file names of style sheets.
        scripts: source texts.
        data: JSON values for the scripts, by element id.
        context: further variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return environment.get_template(template).render(
        style=Markup("\n".join(asset(name) for name in styles)),
        scripts=[Markup(script) for script in scripts],
        data={name: Markup(as_data(value)) for name, value in data.items()},
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {hashes}",
        **context,
    )


def asset(name: str) -> str:
    """Return the text of a file in assets/."""
    return (ASSETS / name).read_text(encoding="utf-8")


def as_data(value: Any) -> str:
    """Return JSON that is safe inside a script element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _plots(sections: Sequence[Section]) -> Iterator[Plot]:
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Plots):
                yield from block.plots
            elif isinstance(block, Plot):
                yield block


def _kind(block: Block) -> str:
    """Return the template's name of a block's type."""
    return type(block).__name__.lower()
