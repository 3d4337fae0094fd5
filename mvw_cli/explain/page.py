"""The page around a watched run: one file, nothing fetched, nothing moving without a reason.

What can be seen without JavaScript: everything, with the heat map of the first token that saw the
picture. The script lets other tokens and layers be chosen. All text is escaped: a model wrote it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from mvw_cli.explain.answer import answer_html, chosen_token, table_html
from mvw_cli.explain.data import Explained, document, shown_layers
from mvw_cli.explain.pictures import pictures_html
from mvw_cli.explain.words import HONEST, legend, measured, says
from mvw_cli.render.svg import safe


def page(run: Explained) -> str:
    """Write a watched run as one HTML page."""
    script, style = (_text(name) for name in ("script.js", "style.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    title = f"{run.question} · mvw infer --explain"
    chosen = chosen_token(run.record)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{safe(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{safe(run.question)}</h1>\n"
        f'<p class="soft">{safe(_subtitle(run))}</p>\n</header>\n<main>\n'
        f'<div class="both">\n{_looked(run, chosen)}{_answered(run, chosen)}</div>\n'
        f"{_notes(run)}{_figures(run)}{_settings(run)}</main>\n"
        f"<footer><p>Made by mvw {safe(str(run.environment.get('mvw', '')))}. The element with the "
        "id <code>data</code> holds all figures as JSON.</p></footer>\n"
        f'<script type="application/json" id="data">{_json(run)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>"
    )


def _looked(run: Explained, chosen: int) -> str:
    """The pictures, and what belongs to them."""
    places = run.patches is not None and any(one is not None for one in run.patches)
    hide = (
        '<label class="switch"><input type="checkbox" id="plain"> picture alone</label>'
        if places
        else ""
    )
    layers = "".join(
        f'<option value="{place + 1}">layer {layer}</option>'
        for place, layer in enumerate(shown_layers(run.record))
    )
    select = (
        '<select id="layer" class="needs-script" aria-label="Layers">'
        f'<option value="0">{safe(legend(run.record).layers)}</option>{layers}</select>'
    )
    unknown = (
        ""
        if places
        else '<p class="warning">This adapter does not tell where in the picture the vision tokens '
        "lie: the share is shown token by token, and no heat map.</p>"
    )
    return (
        '<section class="look" aria-label="What the chosen token looked at">\n'
        f'{pictures_html(run, chosen)}<p id="says" aria-live="polite">{says(run, chosen)}</p>\n'
        f"{unknown}"
        f'<div class="controls">{hide}{select}'
        '<span class="needs-script steps">'
        '<button type="button" id="back" aria-label="Token before">‹</button> '
        '<button type="button" id="next" aria-label="Next token">›</button></span></div>\n'
        "</section>\n"
    )


def _answered(run: Explained, chosen: int) -> str:
    told = legend(run.record)
    return (
        '<section class="told">\n<h2>The answer, token by token</h2>\n'
        f'<div class="scale"><span class="ramp" aria-hidden="true"></span><p>{safe(told.colour)}'
        "</p></div>\n"
        f"{answer_html(run, chosen)}"
        '<p class="soft needs-script">Choose a token by a click or a tap, with the arrow keys, or '
        "with ‹ and ›.</p>\n"
        '<noscript><p class="soft">Without JavaScript the heat map is that of the framed token. '
        "All shares are in the table below.</p></noscript>\n</section>\n"
    )


def _notes(run: Explained) -> str:
    lines = "".join(f"<li>{safe(line)}</li>" for line in (*measured(run), HONEST))
    return f"<section>\n<h2>What is measured</h2>\n<ul>{lines}</ul>\n</section>\n"


def _figures(run: Explained) -> str:
    return (
        "<section>\n<h2>All shares</h2>\n<details><summary>By token and layer</summary>\n"
        f"{table_html(run)}</details>\n</section>\n"
    )


def _settings(run: Explained) -> str:
    rows: dict[str, Any] = {"withdrawal": run.policy}
    rows |= {f"model: {key}": value for key, value in run.model.items()}
    rows |= dict(run.settings)
    rows |= {f"environment: {key}": value for key, value in run.environment.items()}
    for number, one in enumerate(run.pictures, start=1):
        rows[f"image {number}"] = (
            f"{one.name}, {one.image.width} x {one.image.height} px, sha256 {one.sha256}"
        )
    return f"<section>\n<h2>Settings and environment</h2>\n{_table(rows)}</section>\n"


def _table(rows: Mapping[str, Any]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{safe(key)}</th><td>{safe("—" if value is None else str(value))}</td>'
        "</tr>"
        for key, value in rows.items()
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Settings and environment">'
        f'<table class="facts"><tbody>{cells}</tbody></table></div>\n'
    )


def _subtitle(run: Explained) -> str:
    model = run.model
    return f"{model.get('name')} ({model.get('adapter')}), {run.policy}"


def _json(run: Explained) -> str:
    """Write the document so that nothing in it can end the element that holds it."""
    written = json.dumps(document(run), ensure_ascii=True, allow_nan=False, default=str)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(name: str) -> str:
    return files("mvw_cli.explain").joinpath(name).read_text("utf-8")
