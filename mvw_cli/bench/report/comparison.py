"""Two reports side by side, as sections of tables and sentences."""

from __future__ import annotations

from collections.abc import Callable

from mvw_cli.bench.documents import BASELINE
from mvw_cli.bench.report.summary import LINES, fitting
from mvw_cli.bench.report.tables import note, written
from mvw_cli.bench.verdict.compare import Figure, SideBySide, Unpaired
from mvw_cli.render.sections import Section, Sentence, Table, table_of
from mvw_cli.text import factor, milliseconds, number, percent, plural, readable_bytes, seconds

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
_COLUMNS: dict[str, Callable[[Figure], str]] = {
    "FIGURE": lambda figure: NAMES[figure.name][0],
    "BATCH": lambda figure: written(figure.batch, str),
    "ARM": lambda figure: figure.arm,
    "A": lambda figure: _value(figure, figure.a),
    "B": lambda figure: _value(figure, figure.b),
    "B AGAINST A [95 %]": lambda figure: written(figure.against, _judged),
}


def summary(side: SideBySide, width: int = 100) -> list[Section]:
    """Put the speeds that a reader came for into one table, with a row for each arm."""
    speeds = [one for one in side.figures if one.name == "tokens_per_s"]
    remarks = fitting(side.remarks, LINES - len(speeds) - 11, width)
    sentences = [*map(Sentence, remarks), Sentence("All figures: -v, --html FILE, or --json.")]
    return [Section("speed", "Arms", [table_of(_COLUMNS, speeds), note("unpaired"), *sentences])]


def sections(side: SideBySide) -> list[Section]:
    """Put a comparison into words."""
    files = Table(["", "REPORT"], [["A", side.a], ["B", side.b]])
    return [
        Section("reports", "Reports", [files, *map(Sentence, side.remarks)]),
        Section("figures", "Figures", [table_of(_COLUMNS, side.figures), note("unpaired")]),
    ]


def _value(figure: Figure, value: float | None) -> str:
    return written(value, NAMES[figure.name][1])


def _judged(found: Unpaired) -> str:
    if found.interval_95 is None:
        return f"{factor(found.ratio)} (only {plural(min(found.samples), 'run')}) {found.shown}"
    return f"{factor(found.ratio, found.interval_95)} {found.shown}"
