"""Two reports side by side, as sections of tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvw_cli.bench.documents import BASELINE
from mvw_cli.bench.report.summary import LINES, fitting
from mvw_cli.bench.report.tables import written
from mvw_cli.bench.verdict.compare import Figure, SideBySide, Unpaired
from mvw_cli.render.sections import Section, Sentence, Table
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

NAMES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "tokens_per_s": "tokens per second",
    "answer_s": "seconds per answer",
    "weight_bytes": "weights",
    "kv_bytes_prefilled": "KV after the prefill",
    "kv_bytes_before": "KV before withdrawal",
    "kv_bytes_after": "KV after withdrawal",
    "device_allocated_peak_bytes": "allocated, peak",
    "device_reserved_peak_bytes": "reserved, peak",
    "process_peak_bytes": "process, peak",
    "identical_share": f"identical to {BASELINE}",
    "agreement": "same next token",
    "accuracy": "right answers",
}
_UNPAIRED = (
    "Ratios are rates, so above 1 B is faster, with 95 % bootstrap intervals of samples that are "
    "not paired. The two were not run in turn: no interval tells how the machine may have changed "
    "in between."
)


def summary(side: SideBySide, width: int = 100) -> list[Section]:
    """Put the figures that a reader came for into one table, with a row for each arm."""
    found = {(one.batch, one.arm, one.name): one for one in side.figures}
    arms = list(dict.fromkeys((one.batch, one.arm) for one in side.figures if one.kind == "speed"))
    rows = []
    for batch, arm in arms:
        speed, kv = found[batch, arm, "tokens_per_s"], found.get((batch, arm, "kv_bytes_after"))
        rows.append(
            [
                str(batch),
                arm,
                _value(speed, speed.a),
                _value(speed, speed.b),
                _briefly(speed.against),
                MISSING if kv is None else f"{_value(kv, kv.a)} → {_value(kv, kv.b)}",
            ]
        )
    columns = ["BATCH", "ARM", "TOKENS/S, A", "B", "B AGAINST A [95 %]", "KV, A → B"]
    parts: list[Table | Sentence] = [Table(columns, rows), Sentence(_UNPAIRED)]
    remarks = fitting(side.remarks, LINES - len(rows) - 12, width)
    parts += [Sentence(remark) for remark in remarks]
    if len(remarks) < len(side.remarks):
        parts.append(
            Sentence(f"{plural(len(side.remarks) - len(remarks), 'more remark')} with -v.")
        )
    parts.append(Sentence("All figures: -v, --html FILE, or --json."))
    return [Section("speed", "Arms", parts)]


def sections(side: SideBySide) -> list[Section]:
    """Put a comparison into words."""
    files = Table(["", "REPORT"], [["A", side.a], ["B", side.b]])
    found = [Section("reports", "Reports", [files, *(Sentence(r) for r in side.remarks)])]
    for batch, figures in _by_batch(side, "speed"):
        columns = ["FIGURE", "ARM", "A", "B", "B AGAINST A [95 %]"]
        rows = [[*_values(figure), _against(figure.against)] for figure in figures]
        found.append(Section(f"speed-{batch}", f"Speed, batch {batch}", [Table(columns, rows)]))
    if len(found) > 1:
        found[-1].parts.append(Sentence(_UNPAIRED))
    for batch, figures in _by_batch(side, "memory"):
        rows = [[*_values(figure), _change(figure)] for figure in figures]
        table = Table(["FIGURE", "ARM", "A", "B", "B LESS A"], rows)
        found.append(Section(f"memory-{batch}", f"Memory, batch {batch}", [table]))
    rows = [_values(figure) for figure in side.figures if figure.kind == "answers"]
    if rows:
        table = Table(["FIGURE", "ARM", "A", "B"], rows)
        found.append(Section("answers", "Answers", [table]))
    return found


def _by_batch(side: SideBySide, kind: str) -> Sequence[tuple[int | None, list[Figure]]]:
    figures = [figure for figure in side.figures if figure.kind == kind]
    batches = dict.fromkeys(figure.batch for figure in figures)
    return [(batch, [one for one in figures if one.batch == batch]) for batch in batches]


def _values(figure: Figure) -> list[str]:
    return [NAMES[figure.name], figure.arm, _value(figure, figure.a), _value(figure, figure.b)]


def _value(figure: Figure, value: float | None) -> str:
    write: Callable[[float], str] = percent
    if figure.name.endswith("_ms"):
        write = milliseconds
    elif figure.kind == "memory":
        write = readable_bytes
    elif figure.name == "answer_s":
        write = seconds
    elif figure.name == "tokens_per_s":
        write = number
    return written(value, write)


def _against(found: Unpaired | None) -> str:
    if found is None:
        return MISSING
    if found.interval_95 is None:
        fewest = plural(min(found.samples), "run")
        return f"{factor(found.ratio)}, too few for an interval ({fewest})"
    return f"{factor(found.ratio, found.interval_95)} {found.shown}"


def _briefly(found: Unpaired | None) -> str:
    if found is None or found.interval_95 is None:
        return MISSING if found is None else f"{factor(found.ratio)}, too few runs"
    told = factor(found.ratio, found.interval_95)
    return told if found.shown == "no difference shown" else f"{told} {found.shown}"


def _change(figure: Figure) -> str:
    if figure.a is None or figure.b is None:
        return MISSING
    if figure.a == figure.b:
        return "the same"
    difference = figure.b - figure.a
    sign = "+" if difference > 0 else "-"
    return f"{sign}{readable_bytes(abs(difference))}"
