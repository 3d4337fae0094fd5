"""A picture as an SVG file of its own: title, curves, what they are called, and the page's colours.

No library is needed for it. The same picture gives the same file.
"""

from __future__ import annotations

from importlib.resources import files

from mvw_cli.render.picture import Picture
from mvw_cli.render.svg import colour, dash, safe, svg

WIDTH, HEIGHT = 760, 380
_TITLE, _ROW = 30, 20
_STYLED = (":root", "@media (prefers", "svg text", "svg rect", ".grid", ".line", ".mark",
           "path.", "circle.")  # fmt: skip


def svg_file(picture: Picture, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Draw a picture as a whole SVG document; sizes in CSS pixels are those of the axes' box."""
    named = [*enumerate(picture.lines)] if len(picture.lines) > 1 else []
    total = _TITLE + height + _ROW * len(named)
    inner = svg(picture, width, height).replace(
        "<svg ", f'<svg y="{_TITLE}" width="{width}" height="{height}" ', 1
    )
    rows = []
    for row, (place, line) in enumerate(named):
        y = _TITLE + height + _ROW * row + 6
        dashes = f' stroke-dasharray="{dash(place)}"' if dash(place) else ""
        rows.append(
            f'<path class="line {colour(line.colour)}"{dashes} d="M52 {y}h28"/>'
            if len(line.xs) > 1
            else f'<circle class="dot {colour(line.colour)}" cx="66" cy="{y}" r="3"/>'
        )
        rows.append(f'<text x="88" y="{y + 4}">{safe(line.name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" '
        f'width="{width}" height="{total}"><style>{_style()}</style>'
        f'<rect class="page" width="{width}" height="{total}"/>'
        f'<text class="title" x="4" y="19">{safe(picture.title)}</text>'
        f"{inner}{''.join(rows)}</svg>\n"
    )


def _style() -> str:
    sheet = files("mvw_cli.bench.report").joinpath("style.css").read_text("utf-8")
    chosen = [line for line in sheet.splitlines() if line.startswith(_STYLED)]
    return "".join(
        [*chosen, "svg rect.page{fill:var(--bg)}svg text.title{font-weight:600;fill:var(--ink)}"]
    )
