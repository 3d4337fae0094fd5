"""A report as one page: inline pictures and styles, no script, nothing fetched.

It says what the other formats say, with the verdicts and the speed-ups first. Text from a report
is escaped; a policy in the page forbids every request besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from mvw_cli.bench.report import measured, words
from mvw_cli.bench.report.documents import BASELINE, Arm, Cell, Report
from mvw_cli.bench.report.pictures import pictures
from mvw_cli.bench.report.reasons import verdicts
from mvw_cli.bench.report.sections import sections, title
from mvw_cli.render import svg
from mvw_cli.render.content import Section, Sentence, Table
from mvw_cli.render.picture import Line, Picture
from mvw_cli.render.svg import safe

WIDE, NARROW = (860, 330), (350, 270)
"""CSS pixels of a picture; a phone gets its own, with text as large."""
PLACES = {
    "time-per-token": "speed",
    "vision": "vision",
    "kv-cache": "memory",
    "device-memory": "memory",
    "process-memory": "memory",
    "attention": "answers",
    "quality-speed": "answers",
}
"""Pictures by the start of their name, and the section that they stand in."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: Report) -> str:
    """Write a report as one HTML page."""
    parts = sections(report)
    shown = pictures(report)
    if any(_place(picture) == "answers" for picture in shown) and report.answers is None:
        parts.append(Section("answers", "Attention"))
    links = "".join(f'<li><a href="#{part.name}">{safe(part.title)}</a></li>' for part in parts)
    body = "".join(_section(part, report, shown) for part in parts)
    style = files("mvw_cli.bench.report").joinpath("style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{safe(title(report))}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{safe(title(report))}</h1>\n"
        f'<p class="soft">{safe(_subtitle(report))}</p>\n{_head(report)}</header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        f"<footer><p>Made by mvw {safe(report.environment.mvw)}; started {safe(report.started)}. "
        "All samples are in the report's JSON file.</p></footer>\n</body>\n</html>"
    )


def _subtitle(report: Report) -> str:
    model, env = report.model, report.environment
    weights = "random weights, " if model.random_weights else ""
    return f"{weights}{model.dtype} on {env.device_name}, attention {model.attention}"


def _head(report: Report) -> str:
    """Put first what a reader came for: verdicts, then each speed-up with its interval."""
    sentences = "".join(f"<li>{_prose(text)}</li>" for text in verdicts(report))
    said = f'<ul class="verdict">{sentences}</ul>\n' if sentences else ""
    cards = [_card(cell, arm) for cell in report.cells for arm in cell.arms if arm.ratios]
    return said + (f'<div class="cards">{"".join(cards)}</div>\n' if cards else "")


def _card(cell: Cell, arm: Arm) -> str:
    name = f"Batch {cell.batch}, {arm.name}"
    ratio = arm.ratios.get("tokens_per_s")
    lines = []
    if ratio is not None:
        shown = f'<span class="{_kind(ratio.shown)}">{ratio.shown}</span>'
        low_high = words.factor(ratio.median, ratio.interval_95).partition("× ")[2]
        # A number that shows no difference is not set off as if it did.
        weight = ' class="none"' if ratio.shown == "no difference shown" else ""
        lines.append(f"<b{weight}>{words.factor(ratio.median)}</b>")
        lines.append(f"<p>tokens per second against {BASELINE} {low_high}: {shown}</p>")
    if arm.bound is not None:
        lines.append(f'<p class="soft">at most {words.factor(arm.bound.speedup)} by the bound</p>')
    lines += _first_token(arm)
    before, after = arm.memory.kv_bytes_before, arm.memory.kv_bytes_after
    if before > after:
        share = words.percent((before - after) / before)
        lines.append(f'<p class="soft">frees {share} of the KV cache</p>')
    return f'<div class="card"><h3>{safe(name)}</h3>{"".join(lines)}</div>'


def _first_token(arm: Arm) -> list[str]:
    """Say what an arm that acts in the prefill wins there."""
    bound, ratio = arm.bound.prefill if arm.bound else None, arm.ratios.get("ttft")
    if bound is None or ratio is None or bound.share >= 1:
        return []
    shown = f'<span class="{_kind(ratio.shown)}">{ratio.shown}</span>'
    return [
        f"<p>first token {words.factor(ratio.median, ratio.interval_95)}, "
        f"at most {words.factor(bound.speedup)} by the bound: {shown}</p>"
    ]


def _section(section: Section, report: Report, shown: Sequence[Picture]) -> str:
    drawn = [_bars(cell) for cell in report.cells if section.name == "phases"]
    # Verdicts stand at the head of the page.
    said = set(verdicts(report)) if section.name == "bound" else set()
    drawn += [
        _part(part, section)
        for part in section.parts
        if not (isinstance(part, Sentence) and part.text in said)
    ]
    drawn += [_figure(picture) for picture in shown if _place(picture) == section.name]
    heading = f'<h2 id="{section.name}">{safe(section.title)}</h2>'
    return f"<section>{heading}\n{''.join(drawn)}</section>\n"


def _place(picture: Picture) -> str:
    return next(place for start, place in PLACES.items() if picture.name.startswith(start))


def _part(part: Table | Sentence, section: Section) -> str:
    if isinstance(part, Table):
        return _table(part, section.title)
    kind = "" if part.kind == "plain" else f' class="{part.kind}"'
    return f"<p{kind}>{_prose(part.text)}</p>\n"


def _prose(text: str) -> str:
    """Keep a number and its sign on one line."""
    return safe(text).replace(" ×", "\u00a0×").replace(" %", "\u00a0%")


def _table(table: Table, heading: str) -> str:
    caption = f"<caption>{safe(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col">{safe(column)}</th>' for column in table.columns)
    rows, above = [], None
    for first, *rest in table.rows:
        kind = "more" if first == above else "first"
        sub = ' class="sub"' if first.startswith("  ") else ""
        cells = "".join(_cell(cell) for cell in rest)
        rows.append(
            f'<tr class="{kind}"><th scope="row"{sub}>{safe(first.strip())}</th>{cells}</tr>'
        )
        above = first
    facts = ' class="facts"' if table.columns == ["WHAT", "VALUE"] else ""
    label = safe(f"{heading}: {table.caption or table.columns[0].lower()}")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table{facts}>{caption}<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _cell(cell: str) -> str:
    for ending in ("no difference shown", "faster", "slower", "unstable", "differs"):
        if cell.endswith(ending):
            start = safe(cell.removesuffix(ending))
            return f'<td>{start}<span class="{_kind(ending)}">{ending}</span></td>'
    figure, _, share = cell.partition("  ")
    return f"<td>{safe(figure)}{f' <small>{safe(share)}</small>' if share else ''}</td>"


def _kind(shown: str) -> str:
    return "none" if shown == "no difference shown" else shown


def _figure(picture: Picture) -> str:
    drawn = "".join(
        svg.svg(picture, *size).replace("<svg ", f'<svg class="{name}" ', 1)
        for name, size in (("wide", WIDE), ("narrow", NARROW))
    )
    legend = "".join(_entry(line, place) for place, line in enumerate(picture.lines))
    if picture.behind and any(line.behind for line in picture.lines):
        faint = _stroke('class="line behind c0"')
        legend += f"<li>{faint}{safe(picture.behind)}</li>"
    keys = f'<ul class="legend">{legend}</ul>' if legend and not picture.as_grid else ""
    return (
        f"<figure><h3>{safe(picture.title)}</h3>{drawn}{keys}"
        f"<figcaption>{safe(picture.says)}</figcaption></figure>\n"
    )


def _entry(line: Line, place: int) -> str:
    dashes = svg.dash(place)
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    mark = "" if line.withdrawn_after is None else f" (▾ withdrawn after {line.withdrawn_after})"
    stroke = _stroke(f'class="line {svg.colour(line.colour)}"{style}')
    return f"<li>{stroke}{safe(line.name + mark)}</li>"


def _stroke(attributes: str) -> str:
    return f'<svg viewBox="0 0 30 10" aria-hidden="true"><path {attributes} d="M1 5H29"/></svg>'


def _bars(cell: Cell) -> str:
    """Draw the phases of each arm as one bar, to one scale; the table below has the figures."""
    shown = [key for key in measured.PHASES if key not in measured.WITHIN]
    shown = [key for key in shown if any(getattr(arm.phases, key) for arm in cell.arms)]
    longest = max((measured.whole_ms(arm.phases) for arm in cell.arms), default=0.0)
    if not shown or longest <= 0:
        return ""
    rows = []
    for arm in cell.arms:
        parts = []
        for place, key in enumerate(shown):
            summary = getattr(arm.phases, key)
            if summary is not None:
                width = 100 * summary.median / longest
                said = f"{measured.PHASES[key]}: {words.milliseconds(summary.median)}"
                parts.append(
                    f'<span class="b{place % svg.COLOURS}" style="width:{width:.3f}%" '
                    f'title="{safe(said)}"></span>'
                )
        whole = words.milliseconds(measured.whole_ms(arm.phases))
        rows.append(f'<span>{safe(arm.name)}</span><div class="bar">{"".join(parts)}</div>'
                    f"<span>{whole}</span>")  # fmt: skip
    keys = "".join(
        f'<li><i class="b{place % svg.COLOURS}"></i>{measured.PHASES[key]}</li>'
        for place, key in enumerate(shown)
    )
    heading = f"<h3>{safe(measured.caption(cell))}</h3>"
    return (
        f'<figure>{heading}<div class="bars">{"".join(rows)}</div>'
        f'<ul class="legend">{keys}</ul></figure>\n'
    )
