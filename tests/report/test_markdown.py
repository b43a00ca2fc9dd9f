"""Texts of people and models stay texts, in Markdown (read by markdown-it) and in the page."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ixjax.report import Limits, write_report
from ixjax.report.blocks import Code, Plot, Plots, Section, Table
from ixjax.report.files import open_runs
from ixjax.report.markdown import markdown, plain
from ixjax.report.page import as_data
from ixjax.report.report import make_sections
from tests.report.runs import hostile, hostile_name, write_run


def tags(text: str) -> list[str]:
    return re.findall(r"<(/?[a-z0-9]+)", text)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
@example("&lt;b&gt; &amp; &#60;")
def test_a_text_in_a_sentence_is_read_as_it_was_written(text):
    rendered = MarkdownIt().render(f"says: {plain(text)}")
    assert tags(rendered) == ["p", "/p"]
    shown = html.unescape(re.sub("</?p>", "", rendered))
    assert " ".join(shown.split()) == " ".join(f"says: {text}".split())


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=2, max_size=4))
def test_a_table_has_as_many_cells_as_it_was_given(cells):
    block = Table("A table", ["c"] * len(cells), [cells])
    rendered = MarkdownIt().enable("table").render(markdown("t", [Section("s", "S", [block])]))
    assert tags(rendered).count("td") == len(cells)


def test_a_fence_holds_what_has_fences():
    text = "a\n```\n<b>\n````\n"
    rendered = MarkdownIt().render(markdown("t", [Section("s", "S", [Code("c", text)])]))
    (inside,) = re.findall("<pre><code>(.*?)</code></pre>", rendered, re.DOTALL)
    assert html.unescape(inside) == text


@given(st.recursive(st.none() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_data_in_a_script_reads_back_and_cannot_end_it(value):
    text = as_data(value)
    assert json.loads(text) == value
    assert "<" not in text


class Elements(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_hostile_texts_and_names_add_no_element_to_either_file(tmp_path):
    found = []
    for folder, say, name in (
        ("run", str, "{} other".format),
        (hostile_name("run"), hostile, hostile_name),
    ):
        root = write_run(tmp_path / folder, say=say, name=name)
        page, text = write_report([str(root)])
        written = [Elements(page.read_text()).found, tags(MarkdownIt().render(text.read_text()))]
        # A label of a figure has the run's name in it as an attribute.
        found.append([[tag for tag, _ in written[0]], written[1]])
    assert found[0] == found[1]


def test_every_name_in_a_figure_is_escaped(tmp_path):
    roots = [
        str(write_run(tmp_path / end / hostile_name("run"), name=hostile_name)) for end in "ab"
    ]
    for several in (roots[:1], roots):
        blocks = [b for s in make_sections(open_runs(several), Limits()) for b in s.blocks]
        plots = [p for b in blocks for p in (b.plots if isinstance(b, Plots) else [b])]
        figures = json.dumps([plot.figure for plot in plots if isinstance(plot, Plot)])
        assert "&lt;img" in figures
        assert "<img" not in figures
