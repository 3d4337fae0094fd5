"""A report as CSV: one row per figure, as it was measured, for a spreadsheet or a script.

Values are whole and in the unit that their row names; samples are in the JSON file alone.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import fields
from io import StringIO

from mvw_cli.bench.measure.stats import Ratio, Summary
from mvw_cli.bench.report.documents import Arm, Comparison, Memory, Phases, PrefillBound, Report

COLUMNS = (
    "section",
    "batch",
    "arm",
    "figure",
    "unit",
    "value",
    "p90",
    "p99",
    "spread",
    "samples",
    "ratio_to_baseline",
    "ratio_low_95",
    "ratio_high_95",
    "shown",
)
"""`value` is the median of samples; `ratio_to_baseline` is a rate, above 1 is better."""

Row = dict[str, object]
_SPEED = {
    "ttft_ms": "ttft",
    "tpot_ms": "tpot",
    "tpot_before_ms": "",
    "tpot_after_ms": "",
    "tokens_per_s": "tokens_per_s",
    "answer_s": "answer",
    "generated_tokens": "",
    "joules_per_token": "",
}
"""Fields of an arm, and the name of their ratio."""
_FORMULAS = "=+-@\t\r"
"""What a spreadsheet would take for a formula, at the start of a cell."""


def document(report: Report) -> str:
    """Write a report as CSV, a head and lines that end with a line feed."""
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in _rows(report):
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return text.getvalue().removesuffix("\n")


def _harmless(value: object) -> object:
    if isinstance(value, str) and value.startswith(tuple(_FORMULAS)):
        return f"'{value}"
    return value


def _rows(report: Report) -> Iterator[Row]:
    for cell in report.cells:
        for arm in cell.arms:
            for row in _arm(arm):
                yield {"batch": cell.batch, "arm": arm.name, **row}
    if report.answers is not None:
        for comparison in report.answers.arms:
            for row in _answers(comparison, report.answers.references):
                yield {"section": "answers", "arm": comparison.name, **row}


def _arm(arm: Arm) -> Iterator[Row]:
    for name, key in _SPEED.items():
        summary = getattr(arm, name)
        if summary is not None:
            yield {"section": "speed", **_summary(name, summary), **_ratio(arm.ratios.get(key))}
    for field in fields(Phases):
        summary = getattr(arm.phases, field.name)
        if summary is not None:
            yield {"section": "phases", **_summary(field.name, summary)}
    for field in fields(Memory):
        value = getattr(arm.memory, field.name)
        if isinstance(value, int):
            yield {"section": "memory", "figure": field.name, "unit": "bytes", "value": value}
    if arm.withdrawn_after is not None:
        yield _value("memory", "withdrawn_after", "tokens", arm.withdrawn_after)
    if arm.vision is not None:
        yield _value("vision", "attended", "tokens", arm.vision.attended)
        yield _value("vision", "entries_held", "entries", arm.vision.entries_held)
        yield _value("vision", "withdrawals", "per answer", arm.vision.withdrawals)
        yield _value("vision", "look_backs", "per answer", arm.vision.look_backs)
    if arm.bound is not None:
        yield from _prefill(arm.bound.prefill)
        yield _value("bound", "speedup", "times", arm.bound.speedup)
        for name in ("before", "after"):
            step = getattr(arm.bound, name)
            for part in ("weight_bytes", "kv_bytes", "flops", "seconds"):
                if getattr(step, part) is not None:
                    unit = {"flops": "FLOP", "seconds": "s"}.get(part, "bytes")
                    yield _value("bound", f"step_{name}_{part}", unit, getattr(step, part))


def _prefill(bound: PrefillBound | None) -> Iterator[Row]:
    if bound is not None:
        yield _value("bound", "prefill_flops", "FLOP", bound.flops)
        yield _value("bound", "prefill_share", "share", bound.share)
        if bound.seconds is not None:
            yield _value("bound", "prefill_seconds", "s", bound.seconds)
        yield _value("bound", "prefill_speedup", "times", bound.speedup)


def _answers(arm: Comparison, references: int) -> Iterator[Row]:
    yield {**_value("answers", "identical", "answers", arm.identical), "samples": arm.items}
    for name in ("first_difference", "kl_nats", "generated_tokens", "seconds"):
        summary = getattr(arm, name)
        if summary is not None:
            yield _summary(name, summary)
    if arm.agreement is not None:
        yield _value("answers", "agreement", "share", arm.agreement)
    if arm.correct is not None:
        yield {**_value("answers", "correct", "answers", arm.correct), "samples": references}
    if arm.p_value is not None:
        yield _value("answers", "p_value", "probability", arm.p_value)


_UNITS = {
    "_ms": "ms",
    "tokens_per_s": "tokens/s",
    "answer_s": "s",
    "seconds": "s",
    "generated_tokens": "tokens",
    "first_difference": "tokens",
    "joules_per_token": "J",
    "kl_nats": "nats",
}


def _value(section: str, figure: str, unit: str, value: float) -> Row:
    return {"section": section, "figure": figure, "unit": unit, "value": value}


def _summary(figure: str, summary: Summary) -> Row:
    return {
        "figure": figure,
        "unit": next(unit for end, unit in _UNITS.items() if figure.endswith(end)),
        "value": summary.median,
        "p90": summary.p90,
        "p99": summary.p99,
        "spread": summary.spread,
        "samples": len(summary.samples),
    }


def _ratio(ratio: Ratio | None) -> Row:
    if ratio is None:
        return {}
    low, high = ratio.interval_95
    return {
        "ratio_to_baseline": ratio.median,
        "ratio_low_95": low,
        "ratio_high_95": high,
        "shown": ratio.shown,
    }
