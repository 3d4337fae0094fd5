"""A report as Markdown: what the terminal shows without its pictures, for an issue or a page."""

from __future__ import annotations

import re

from mvw_cli.bench.report.documents import Report
from mvw_cli.bench.report.sections import sections, title
from mvw_cli.bench.report.words import NONE
from mvw_cli.render.content import Sentence, Table
from mvw_cli.text import one_line

_MARKS = {"plain": "", "verdict": "**", "warning": ""}
_SPECIAL = re.compile(r"[\\`*|~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^[#>]")
"""What would be a mark. Brackets are none by themselves, nor is a line within a word."""


def document(report: Report) -> str:
    """Write a report as Markdown with tables as GitHub has them."""
    blocks = [f"# {escape(title(report))}"]
    for section in sections(report):
        blocks.append(f"## {escape(section.title)}")
        for part in section.parts:
            blocks += _table(part) if isinstance(part, Table) else [_sentence(part)]
    return "\n\n".join(blocks)


def escape(text: str) -> str:
    """Write text so that it is shown as it is, on one line."""
    flat = _SPECIAL.sub(r"\\\g<0>", one_line(text))
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # At the start of a line these would begin a list.
    return re.sub(r"^([-+]|\d+\.)(\s|$)", r"\\\1\2", flat)


def _sentence(sentence: Sentence) -> str:
    mark = _MARKS[sentence.kind]
    start = "> " if sentence.kind == "warning" else ""
    return f"{start}{mark}{escape(sentence.text)}{mark}"


def _table(table: Table) -> list[str]:
    lines = [_row(table.columns), "|" + " --- |" * len(table.columns)]
    lines += [_row(row) for row in table.rows]
    caption = [f"### {escape(table.caption)}"] if table.caption else []
    return [*caption, "\n".join(lines)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(cell: str) -> str:
    # What is indented is a part of what stands above it.
    part = "– " if cell.startswith("  ") else ""
    figure, _, share = cell.strip().partition("  ")
    more = f" ({escape(share)})" if share else ""
    return f"{part}{escape(figure) if figure != NONE else figure}{more}"
