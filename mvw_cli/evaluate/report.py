"""The figures of an evaluation as people read them: one screen, all tables, one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from mvw_cli.evaluate.results import NEVER, ArmResult, Change, EvalReport, Interval
from mvw_cli.render import html
from mvw_cli.render.chart import Chart, Point
from mvw_cli.render.sections import Section, Sentence, Table, table_of
from mvw_cli.render.terminal import height
from mvw_cli.text import MISSING, count, escaped, number, percent, plural, readable_bytes

LINES = 40
"""That the screen takes at most, with up to some twelve arms."""
_WEMATH = {
    "SCORE": "score_{kind}",
    "IK": "insufficient_knowledge",
    "IG": "inadequate_generalization",
    "CM": "complete_mastery_{kind}",
    "RM": "rote_memorization_{kind}",
    "RM RATE": "rote_memorization_rate_{kind}",
    "OF 525": "vlmevalkit_score_{kind}",
}
_STEPS = {"S1": "one_step", "S2": "two_step", "S3": "three_step"}


def to_json(report: EvalReport) -> str:
    """Write a report as JSON."""
    return escaped(json.dumps(asdict(report), indent=2, ensure_ascii=False, allow_nan=False))


def title(report: EvalReport) -> str:
    """Name a report."""
    model = report.model.get("model") or report.model.get("adapter") or "a model not known"
    return f"mvw eval {report.data}: {model}, {plural(report.questions, 'question')}"


def summary(report: EvalReport, width: int = 100) -> list[Section]:
    """Put the figures that a reader came for on one screen: the verdict first."""
    found = [_verdict(report), _arms(report), *_wemath(report, short=True)]
    room = LINES - height(found, width)
    groups = _groups(report)
    if groups and (fitting := _cut(groups[0], room)) is not None:
        found.append(fitting)
    return found


def sections(report: EvalReport) -> list[Section]:
    """Write all figures."""
    return [_verdict(report), _arms(report), *_wemath(report), *_yes_no(report), *_groups(report)]


def page(report: EvalReport) -> str:
    """Write a report as one HTML page."""
    charts = {"arms": [_chart(report)]} if any(arm.score is not None for arm in report.arms) else {}
    return html.page(
        title(report),
        sections(report),
        charts,
        footer=f"Made by mvw {report.mvw}. The records of each arm hold every answer.",
    )


# -- the verdict --------------------------------------------------------------------------------


def verdicts(report: EvalReport) -> Iterator[str]:
    """Say what is shown of each arm, and what is not."""
    for arm in report.arms:
        if arm.change is None:
            ends = "" if arm.interval_95 is None else f" [{_ends(arm.interval_95)}]"
            yield f"{arm.name}: {_score(arm)} right{ends}."
        else:
            yield f"{arm.name}: {_change(arm.change, ' points')}: {shown(arm.change)}."


def shown(change: Change) -> str:
    """Say what an interval of the change allows."""
    if change.interval_95 is None:
        return "too few questions for an interval"
    low, high = change.interval_95
    if high < 0:
        return f"worse than {NEVER}"
    if low > 0:
        return f"better than {NEVER}"
    return f"no difference to {NEVER} shown, a loss of up to {-100 * low:.1f} not excluded"


def _warnings(report: EvalReport) -> Iterator[str]:
    if not any(arm.name == NEVER for arm in report.arms):
        yield f"There is no arm {NEVER}: nothing to hold the others against."
    for why, rows in report.left_out.items():
        yield f"{plural(rows, 'row')} {why} left out."
    counts: dict[str, Callable[[ArmResult], int]] = {
        "Failed, and not counted": lambda arm: arm.failed,
        "Not answered yet": lambda arm: arm.missing,
        "Ended at --max-new-tokens": lambda arm: arm.cut,
        "Without an answer that could be read": lambda arm: arm.unread,
        "Problems without all steps, which VLMEvalKit counts as mastered": lambda arm: (
            arm.metrics.get("wemath", {}).get("incomplete", 0)
        ),
    }
    for what, amount in counts.items():
        if told := [f"{arm.name} {amount(arm):,}" for arm in report.arms if amount(arm)]:
            yield f"{what}: {', '.join(told)}."


def _verdict(report: EvalReport) -> Section:
    told: list[Table | Sentence] = [Sentence(text, "verdict") for text in verdicts(report)]
    told += [Sentence(text, "warning") for text in _warnings(report)]
    told += [Sentence(text) for text in report.remarks]
    return Section("verdict", "Verdict", told)


# -- tables -------------------------------------------------------------------------------------


def _arms(report: EvalReport) -> Section:
    columns: dict[str, Callable[[ArmResult], str]] = {
        "ARM": lambda arm: arm.name,
        "RIGHT [95 %]": lambda arm: (
            _score(arm) + (f" [{_ends(arm.interval_95)}]" if arm.interval_95 else "")
        ),
        "CHANGE, POINTS": lambda arm: _change(arm.change) if arm.change else MISSING,
        "LOST/WON": lambda arm: f"{arm.change.lost}/{arm.change.won}" if arm.change else MISSING,
        "P": lambda arm: _p(arm.change),
        "VLMEVALKIT": lambda arm: MISSING if arm.vlmevalkit is None else percent(arm.vlmevalkit),
        "JUDGED": lambda arm: MISSING if arm.judged is None else percent(arm.judged),
        "TOKENS": lambda arm: _number(arm.generated_tokens),
        "S/ITEM": lambda arm: _number(arm.seconds),
        "KV END": lambda arm: (
            MISSING if arm.kv_bytes_end is None else readable_bytes(arm.kv_bytes_end)
        ),
    }
    if report.judge is None:
        del columns["JUDGED"]
    what = "questions, all turns of the options together" if report.circular else "questions"
    caption = f"Scored by {report.rule}; {_spread(report)} {what}"
    return Section("arms", "Arms", [table_of(columns, report.arms, caption)])


def _spread(report: EvalReport) -> str:
    counts = {arm.items for arm in report.arms}
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _wemath(report: EvalReport, *, short: bool = False) -> list[Section]:
    rows = []
    for arm in report.arms:
        for name, key in (("", "wemath"), ("VLMEvalKit's reading", "wemath_vlmevalkit")):
            found = arm.metrics.get(key)
            if found is None or (short and name):
                continue
            for kind in ("strict", "loose"):
                cells = [_wemath_cell(found, path.format(kind=kind)) for path in _WEMATH.values()]
                steps = [_wemath_cell(found, path) for path in _STEPS.values()]
                rows.append([arm.name, *([] if short else [name]), kind, *cells, *steps])
    if not rows:
        return []
    problems = {arm.metrics["wemath"]["problems"] for arm in report.arms if arm.metrics}
    caption = f"Of {' or '.join(f'{one:,}' for one in sorted(problems))} problems; the column "
    caption += "`of 525` is VLMEvalKit's formula"
    columns = ["ARM", *([] if short else ["READ BY"]), "KIND", *_WEMATH, *_STEPS]
    return [Section("wemath", "WeMath", [Table(columns, rows, caption)])]


def _wemath_cell(found: dict[str, Any], key: str) -> str:
    value = found[key]
    if value is None:
        return MISSING
    return percent(value) if isinstance(value, float) else count(value)


def _yes_no(report: EvalReport) -> list[Section]:
    having = [arm for arm in report.arms if "f1" in arm.metrics]
    if not having:
        return []
    names = list(having[0].metrics)
    rows = [[arm.name, *(percent(arm.metrics[name]) for name in names)] for arm in having]
    columns = ["ARM", *(name.replace("_", " ").upper() for name in names)]
    return [Section("yes-no", "Yes and no", [Table(columns, rows)])]


def _groups(report: EvalReport) -> list[Section]:
    found = []
    for column in dict.fromkeys(name for arm in report.arms for name in reversed(arm.groups)):
        parts = {arm.name: arm.groups.get(column, {}) for arm in report.arms}
        names = sorted({name for part in parts.values() for name in part})
        rows = [
            [
                name,
                count(max(part[name].items for part in parts.values() if name in part)),
                *(
                    percent(part[name].score) if name in part else MISSING
                    for part in parts.values()
                ),
            ]
            for name in names
        ]
        table = Table([column.upper(), "QUESTIONS", *parts], rows)
        found.append(Section(f"by-{column}", f"By {column}", [table]))
    return found


def _cut(section: Section, room: int) -> Section | None:
    """Keep as many rows of a section's table as there are lines for; None: too few."""
    table = section.parts[0]
    assert isinstance(table, Table)
    over = len(table.rows) + 5 - room
    if over <= 0:
        return section
    kept = table.rows[: max(0, len(table.rows) - over - 1)]
    if len(kept) < 2:
        return None
    more = Sentence(f"{plural(len(table.rows) - len(kept), 'more row')} in the JSON and with -v.")
    return Section(section.name, section.title, [Table(table.columns, kept, table.caption), more])


def _chart(report: EvalReport) -> Chart:
    scored = [(place, arm) for place, arm in enumerate(report.arms) if arm.score is not None]
    points = [
        Point(
            arm.name,
            place,
            arm.kv_bytes_end / 2**20 if arm.kv_bytes_end is not None else 0.0,
            100 * arm.score,
            y_interval=arm.interval_95 and (100 * arm.interval_95[0], 100 * arm.interval_95[1]),
        )
        for place, arm in scored
        if arm.score is not None
    ]
    return Chart(
        "right-answers",
        "Right answers",
        "KV cache at the end of an answer, MiB",
        "right, %",
        "%",
        "Each arm's right answers with their 95 % intervals, against the cache that is left.",
        points=points,
    )


# -- cells --------------------------------------------------------------------------------------


def _score(arm: ArmResult) -> str:
    return MISSING if arm.score is None else percent(arm.score)


def _ends(interval: Interval) -> str:
    return ", ".join(f"{100 * end:.1f}" for end in interval)


def _change(change: Change, unit: str = "") -> str:
    told = f"{100 * change.change:+.1f}{unit}"
    if change.interval_95 is None:
        return told
    low, high = (f"{100 * end:+.1f}" for end in change.interval_95)
    return f"{told} [{low}, {high}]"


def _p(change: Change | None) -> str:
    if change is None or change.p_value is None:
        return MISSING
    return "< 0.001" if change.p_value < 0.001 else f"{change.p_value:.3f}"


def _number(value: float | None) -> str:
    return MISSING if value is None else number(value)
