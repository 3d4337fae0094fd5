"""The generated text as HTML: tokens with their colours, marks between them, and the table."""

from __future__ import annotations

from mvw_cli.explain.data import Explained, Mark
from mvw_cli.explain.record import Record
from mvw_cli.explain.words import percent, top_mass
from mvw_cli.render.svg import safe


def chosen_token(record: Record) -> int:
    """Choose the token that is shown at first: the first one that saw the picture."""
    seeing = (number for number, step in enumerate(record.steps) if step.looks)
    return next(seeing, 0)


def answer_html(run: Explained, chosen: int) -> str:
    """Write the tokens, each with its share, and what happened between them."""
    largest = top_mass(run.record) or 1.0
    parts = []
    for number, (_, text) in enumerate(run.tokens):
        parts += [_mark(mark) for mark in run.marks if mark.step == number]
        mass = run.record.steps[number].mass
        kind = "t none" if mass is None else "t"
        style = "" if mass is None else f' style="--a:{mass / largest:.3f}"'
        told = "no vision left" if mass is None else percent(mass)
        parts.append(
            f'<span role="option" class="{kind}" id="t{number}" data-t="{number}"{style} '
            f'aria-selected="{"true" if number == chosen else "false"}" '
            f'title="token {number + 1}: {told}">{_shown(text)}</span>'
        )
    parts += [_mark(mark) for mark in run.marks if mark.step >= len(run.tokens)]
    return (
        '<div id="answer" role="listbox" tabindex="0" aria-label="Generated tokens" '
        f'aria-activedescendant="t{chosen}">{"".join(parts)}</div>\n'
    )


def table_html(run: Explained) -> str:
    """Write the share of every token at every watched layer."""
    layers = run.record.layers
    head = "".join(f'<th scope="col">layer {layer}</th>' for layer in layers)
    first = "mean" if run.record.measure == "attention" else "added"
    rows = []
    for number, (_, text) in enumerate(run.tokens):
        step = run.record.steps[number]
        cells = [step.mass, *(step.at(layer) for layer in layers)]
        shown = "".join(f"<td>{'—' if one is None else percent(one)}</td>" for one in cells)
        rows.append(f'<tr><th scope="row">{number + 1} <q>{safe(text)}</q></th>{shown}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Shares by token and layer">'
        f'<table id="shares"><thead><tr><th scope="col">token</th><th scope="col">{first}</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n"
        '<p class="soft">—: no vision left.</p>\n'
    )


def _mark(mark: Mark) -> str:
    sign = "▾" if mark.kind == "withdrawn" else "▴"
    return f'<span role="note" class="mark {mark.kind}">{sign} {safe(mark.text)}</span>'


def _shown(text: str) -> str:
    """Let what has no ink be seen, and chosen."""
    if not text:
        return '<i class="blank">·</i>'
    return safe(text).replace("\n", '<i class="blank">↵</i>\n')
