"""Reports as Markdown: whole, escaped, with tables as GitHub has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import sample_report

from mvw_cli.bench.documents import ProfileReport
from mvw_cli.bench.report.tables import sections, title
from mvw_cli.render import markdown
from mvw_cli.render.sections import Table


@pytest.mark.parametrize("made", [sample_report.report, sample_report.planned])
def test_markdown_holds_every_section_and_row(made: Callable[[], ProfileReport]) -> None:
    report = made()
    text = markdown.document(title(report), sections(report))
    assert text.startswith(f"# Profile of {report.model.name}\n")
    lines = text.splitlines()
    tables = [part for s in sections(report) for part in s.parts if isinstance(part, Table)]
    for section in sections(report):
        assert f"## {section.title}" in lines
    for table in tables:
        assert f"| {' | '.join(table.columns)} |" in lines
    rows = sum(len(table.rows) for table in tables)
    assert sum(line.startswith("|") for line in lines) == rows + 2 * len(tables)


def test_markdown_tables_have_as_many_cells_in_each_row() -> None:
    full = sample_report.report()
    evil = replace(full.cells[0].arms[1], name="a|b `c` *d* [e](f) <g> $h$ \n i \x1b")
    report = replace(full, cells=[replace(full.cells[0], arms=[full.cells[0].arms[0], evil])])
    text = markdown.document("evil", sections(report))
    for block in text.split("\n\n"):
        if block.startswith("|"):
            counts = {line.replace("\\|", "").count("|") for line in block.splitlines()}
            assert len(counts) == 1, block
    assert "| a\\|b \\`c\\` \\*d\\* [e\\](f) &lt;g&gt; \\$h\\$ i ␛ |" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Linux-6.1-x86_64", "Linux-6.1-x86_64"),
        ("1.20 × [1.10, 1.31] faster (a)", "1.20 × [1.10, 1.31] faster (a)"),
        ("_a_ [b]: c", "\\_a\\_ [b\\]: c"),
        ("# a", "\\# a"),
        ("- a", "\\- a"),
        ("1. a", "\\1. a"),
        ("![x](http://y)", "![x\\](http://y)"),
        ("<script>&", "&lt;script&gt;&amp;"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert markdown.escape(text) == escaped
