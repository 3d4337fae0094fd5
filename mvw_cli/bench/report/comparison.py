"""Two reports side by side, as sections of tables and sentences."""

from __future__ import annotations

from collections.abc import Callable

from mvw_cli.bench.documents import BASELINE
from mvw_cli.bench.report.summary import LINES, fitting
from mvw_cli.bench.report.tables import note, written
from mvw_cli.bench.verdict.compare import Figure, SideBySide, Unpaired
from mvw_cli.render.sections import Section, Sentence, Table, table_of
from mvw_cli.text import (
    MISSING,
    factor,
    milliseconds,
    number,
    percent,
    plural,
    readable_bytes,
    seconds,
)

NAMES: dict[str, tuple[str, Callable[[float], str]]] = {
    "ttft_ms": ("time to first token", milliseconds),
    "tpot_ms": ("time per output token", milliseconds),
    "tokens_per_s": ("tokens per second", number),
    "answer_s": ("seconds per answer", seconds),
    "weight_bytes": ("weights", readable_bytes),
    "kv_bytes_prefilled": ("KV after the prefill", readable_bytes),
    "kv_bytes_before": ("KV before withdrawal", readable_bytes),
    "kv_bytes_after": ("KV after withdrawal", readable_bytes),
    "device_allocated_peak_bytes": ("allocated, peak", readable_bytes),
    "device_reserved_peak_bytes": ("reserved, peak", readable_bytes),
    "process_peak_bytes": ("process, peak", readable_bytes),
    "identical_share": (f"identical to {BASELINE}", percent),
    "agreement": ("same next token", percent),
    "accuracy": ("right answers", percent),
}
"""What a figure is called, and how it is written."""
_VALUES: dict[str, Callable[[Figure], str]] = {
    "FIGURE": lambda figure: NAMES[figure.name][0],
    "ARM": lambda figure: figure.arm,
    "A": lambda figure: _value(figure, figure.a),
    "B": lambda figure: _value(figure, figure.b),
}
_AGAINST: dict[str, dict[str, Callable[[Figure], str]]] = {
    "speed": {"B AGAINST A [95 %]": lambda figure: written(figure.against, _judged)},
    "memory": {"B LESS A": lambda figure: _change(figure)},
    "answers": {},
}


def summary(side: SideBySide, width: int = 100) -> list[Section]:
    """Put the figures that a reader came for into one table, with a row for each arm."""
    kv = {(one.batch, one.arm): one for one in side.figures if one.name == "kv_bytes_after"}
    columns: dict[str, Callable[[Figure], str]] = {
        "BATCH": lambda speed: str(speed.batch),
        "ARM": lambda speed: speed.arm,
        "TOKENS/S, A": lambda speed: _value(speed, speed.a),
        "B": lambda speed: _value(speed, speed.b),
        "B AGAINST A [95 %]": lambda speed: written(speed.against, _judged).removesuffix(
            " no difference shown"
        ),
        "KV, A → B": lambda speed: written(
            kv.get((speed.batch, speed.arm)),
            lambda found: f"{_value(found, found.a)} → {_value(found, found.b)}",
        ),
    }
    speeds = [one for one in side.figures if one.name == "tokens_per_s"]
    parts: list[Table | Sentence] = [table_of(columns, speeds), note("unpaired")]
    remarks = fitting(side.remarks, LINES - len(speeds) - 12, width)
    parts += [Sentence(remark) for remark in remarks]
    if len(remarks) < len(side.remarks):
        left = plural(len(side.remarks) - len(remarks), "more remark")
        parts.append(Sentence(f"{left} with -v."))
    parts.append(Sentence("All figures: -v, --html FILE, or --json."))
    return [Section("speed", "Arms", parts)]


def sections(side: SideBySide) -> list[Section]:
    """Put a comparison into words."""
    files = Table(["", "REPORT"], [["A", side.a], ["B", side.b]])
    found = [Section("reports", "Reports", [files, *(Sentence(r) for r in side.remarks)])]
    for kind, against in _AGAINST.items():
        figures = [figure for figure in side.figures if figure.kind == kind]
        for batch in dict.fromkeys(figure.batch for figure in figures):
            rows = [one for one in figures if one.batch == batch]
            name = kind if batch is None else f"{kind}-{batch}"
            title = kind.title() if batch is None else f"{kind.title()}, batch {batch}"
            found.append(Section(name, title, [table_of({**_VALUES, **against}, rows)]))
        if kind == "speed" and figures:
            found[-1].parts.append(note("unpaired"))
    return found


def _value(figure: Figure, value: float | None) -> str:
    return written(value, NAMES[figure.name][1])


def _judged(found: Unpaired) -> str:
    if found.interval_95 is None:
        told = f"{factor(found.ratio)} (only {plural(min(found.samples), 'run')})"
    else:
        told = factor(found.ratio, found.interval_95)
    return f"{told} {found.shown}"


def _change(figure: Figure) -> str:
    if figure.a is None or figure.b is None:
        return MISSING
    if figure.a == figure.b:
        return "the same"
    sign = "+" if figure.b > figure.a else "-"
    return f"{sign}{readable_bytes(abs(figure.b - figure.a))}"
