"""Sections as Markdown, for an issue or a page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.text import MISSING, one_line

# What would be a mark. Brackets are none by themselves, nor is a line within a word.
_SPECIAL = re.compile(r"[\\`*|~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^[#>]")


def document(heading: str, sections: Sequence[Section]) -> str:
    """Write sections as Markdown, with tables as GitHub has them."""
    blocks = [f"# {escape(heading)}"]
    for section in sections:
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
    text = escape(sentence.text)
    return {"plain": text, "verdict": f"**{text}**", "warning": f"> {text}"}[sentence.kind]


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
    return f"{part}{escape(figure) if figure != MISSING else figure}{more}"
