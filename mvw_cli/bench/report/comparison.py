"""Two reports side by side, as sections of tables and sentences."""

from __future__ import annotations

from mvw_cli.bench.documents import BASELINE
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


def sections(side: SideBySide) -> list[Section]:
    """Put a comparison into words."""
    files = Table(["", "REPORT"], [["A", side.a], ["B", side.b]])
    found = [Section("reports", "Reports", [files, *(Sentence(r) for r in side.remarks)])]
    for batch in dict.fromkeys(f.batch for f in side.figures if f.kind == "speed"):
        chosen = [f for f in side.figures if f.kind == "speed" and f.batch == batch]
        head = ["FIGURE", "ARM", "A", "B", "B AGAINST A [95 %]"]
        rows = [[*_values(figure), _against(figure.against)] for figure in chosen]
        found.append(Section(f"speed-{batch}", f"Speed, batch {batch}", [Table(head, rows)]))
    speeds = [section for section in found if section.name.startswith("speed")]
    if speeds:
        speeds[-1].parts.append(
            Sentence(
                "Ratios are rates, so above 1 B is faster, with 95 % bootstrap intervals of "
                "samples that are not paired. The two were not run in turn: no interval tells how "
                "the machine may have changed in between."
            )
        )
    for batch in dict.fromkeys(f.batch for f in side.figures if f.kind == "memory"):
        chosen = [f for f in side.figures if f.kind == "memory" and f.batch == batch]
        rows = [[*_values(figure), _change(figure)] for figure in chosen]
        table = Table(["FIGURE", "ARM", "A", "B", "B LESS A"], rows)
        found.append(Section(f"memory-{batch}", f"Memory, batch {batch}", [table]))
    rows = [_values(figure) for figure in side.figures if figure.kind == "answers"]
    if rows:
        table = Table(["FIGURE", "ARM", "A", "B"], rows)
        found.append(Section("answers", "Answers", [table]))
    return found


def _values(figure: Figure) -> list[str]:
    return [
        NAMES[figure.name],
        figure.arm,
        *(MISSING if v is None else _value(figure.name, v) for v in (figure.a, figure.b)),
    ]


def _value(name: str, value: float) -> str:
    if name.endswith("_ms"):
        return milliseconds(value)
    if name.endswith("_bytes") or name.startswith("kv_bytes"):
        return readable_bytes(value)
    if name == "answer_s":
        return seconds(value)
    return number(value) if name == "tokens_per_s" else percent(value)


def _against(found: Unpaired | None) -> str:
    if found is None:
        return MISSING
    if found.interval_95 is None:
        fewest = plural(min(found.samples), "run")
        return f"{factor(found.ratio)}, too few for an interval ({fewest})"
    return f"{factor(found.ratio, found.interval_95)} {found.shown}"


def _change(figure: Figure) -> str:
    if figure.a is None or figure.b is None:
        return MISSING
    if figure.a == figure.b:
        return "the same"
    difference = figure.b - figure.a
    sign = "+" if difference > 0 else "-"
    return f"{sign}{readable_bytes(abs(difference))}"
