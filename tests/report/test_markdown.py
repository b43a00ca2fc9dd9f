"""Texts of people and models stay texts, in Markdown (read by markdown-it) and in the page."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ixjax.report import write_report
from ixjax.report.blocks import Code, Section, Table
from ixjax.report.markdown import markdown, plain
from ixjax.report.page import as_data
from tests.report.runs import hostile, write_run


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


def test_hostile_texts_add_no_element_to_either_file(tmp_path):
    tame = write_report([str(write_run(tmp_path / "run"))])
    before = [Elements(tame[0].read_text()).found, tags(MarkdownIt().render(tame[1].read_text()))]
    root = write_run(tmp_path / "b" / "run", say=hostile)
    page, text = write_report([str(root)])
    assert Elements(page.read_text()).found == before[0]
    assert tags(MarkdownIt().render(text.read_text())) == before[1]
