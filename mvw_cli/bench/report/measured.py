"""The sections of what was measured: phases, speed, memory.

A figure stands beside the baseline's, with the ratio and its interval. Nothing is computed but
sums and shares of what the report holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from mvw_cli.bench.measure.stats import Summary
from mvw_cli.bench.report import words
from mvw_cli.bench.report.documents import BASELINE, Arm, Cell, Memory, Mode, Phases, Report
from mvw_cli.render.content import Section, Sentence, Table
from mvw_cli.text import readable_bytes

ABREAST = 4
"""Arms beside one another in a table."""
PHASES = {
    "read_ms": "read the image files",
    "preprocess_ms": "preprocess",
    "prefill_ms": "prefill",
    "vision_ms": "  of it the vision encoder",
    "decode_before_ms": "decode before withdrawal",
    "withdrawal_ms": "withdrawal",
    "decode_after_ms": "decode after withdrawal",
    "detokenise_ms": "  of the steps detokenising",
}
WITHIN = ("vision_ms", "detokenise_ms")
"""Parts of other phases."""
assert set(PHASES) == {field.name for field in fields(Phases)}

Figure = tuple[str, str | None, Callable[[Arm], Summary | None], Callable[[float], str]]
FIGURES: list[Figure] = [
    ("time to first token", "ttft", lambda arm: arm.ttft_ms, words.milliseconds),
    ("time per output token", "tpot", lambda arm: arm.tpot_ms, words.milliseconds),
    ("  before withdrawal", None, lambda arm: arm.tpot_before_ms, words.milliseconds),
    ("  after withdrawal", None, lambda arm: arm.tpot_after_ms, words.milliseconds),
    ("tokens per second", "tokens_per_s", lambda arm: arm.tokens_per_s, words.number),
    ("seconds per answer", "answer", lambda arm: arm.answer_s, words.seconds),
    ("tokens per answer", None, lambda arm: arm.generated_tokens, words.count),
    ("joules per token", None, lambda arm: arm.joules_per_token, words.number),
]
"""What it is called, its name in `Arm.ratios`, where it lies, how it is written."""

PEAK_COLUMNS = [
    "ARM",
    "WEIGHTS",
    "ALLOCATED, PEAK",
    "RESERVED, PEAK",
    "PROCESS, PEAK",
    "ON DEVICE, AT END",
]
KV_COLUMNS = [
    "ARM",
    "WITHDRAWN AFTER",
    "KV BEFORE",
    "KV AFTER",
    "FREED",
    "BY FORMULA",
    "STORAGE AT END",
]


def phases(report: Report) -> Section:
    """Say where the time of one run goes."""
    parts: list[Table | Sentence] = []
    for cell in report.cells:
        for start in range(0, len(cell.arms), ABREAST):
            arms = cell.arms[start : start + ABREAST]
            rows = [
                [name, *(_phase(arm.phases, key) for arm in arms)] for key, name in PHASES.items()
            ]
            rows = [row for row in rows if set(row[1:]) != {words.NONE}]
            if rows:
                parts.append(Table(["PHASE", *(arm.name for arm in arms)], rows, caption(cell)))
    return Section("phases", "Where the time goes", parts)


def whole_ms(phases: Phases) -> float:
    """Add up the medians of the phases, without those that are parts of others."""
    found = (getattr(phases, key) for key in PHASES if key not in WITHIN)
    return float(sum(summary.median for summary in found if summary is not None))


def _phase(phases: Phases, key: str) -> str:
    summary: Summary | None = getattr(phases, key)
    if summary is None:
        return words.NONE
    whole = whole_ms(phases)
    share = f"  {words.percent(summary.median / whole)}" if whole else ""
    return f"{words.milliseconds(summary.median)}{share}"


def speed(report: Report) -> Section:
    """Set each figure beside the baseline's."""
    parts: list[Table | Sentence] = []
    mode = report.workload.mode
    for cell in report.cells:
        rows = [row for figure in FIGURES for row in _figure(cell, figure, mode)]
        columns = ["FIGURE", "ARM", "MEDIAN", "P90", "P99", "SPREAD", f"AGAINST {BASELINE} [95 %]"]
        parts.append(Table(columns, rows, caption(cell)))
        parts += [Sentence(_unstable(text), "warning") for text in cell.unstable]
    if any(arm.ratios for cell in report.cells for arm in cell.arms):
        parts.append(
            Sentence(
                f"Ratios are rates against {BASELINE}, so above 1 is better: the median of pairs "
                "that were run in turn, with its 95 % bootstrap interval. Where that covers 1, no "
                "difference is shown."
            )
        )
    if parts and mode == "natural":
        parts.append(
            Sentence(
                "Answers end where the model ends them, so their lengths differ: tokens per "
                "second and seconds per answer need not agree."
            )
        )
    return Section("speed", "Speed", parts)


def _unstable(text: str) -> str:
    told = "unstable" in text.lower() or "ended early" in text
    return text if told else f"Unstable: {text}"


def _figure(cell: Cell, figure: Figure, mode: Mode) -> list[list[str]]:
    name, key, read, write = figure
    # Steps of one run differ by nature, and so do answers that end where they like.
    judged = key in ("ttft", "tokens_per_s") or (key == "answer" and mode == "fixed")
    rows = []
    for arm in cell.arms:
        summary = read(arm)
        if summary is None:
            continue
        ratio = arm.ratios.get(key) if key else None
        rows.append(
            [
                name,
                arm.name,
                *(write(value) for value in (summary.median, summary.p90, summary.p99)),
                words.spread(summary, judged=judged),
                words.ratio(ratio) if ratio else words.NONE,
            ]
        )
    # A part of the output is worth a row only where some arm has another part.
    return [] if key is None and name.startswith("  ") and not _withdraws(cell) else rows


def _withdraws(cell: Cell) -> bool:
    return any(arm.tpot_after_ms is not None for arm in cell.arms)


def memory(report: Report) -> Section:
    """Say what is held, exactly where it can be, and what withdrawal gives back."""
    parts: list[Table | Sentence] = []
    for cell in report.cells:
        rows = [[arm.name, _moment(arm), *_kv(arm.memory)] for arm in cell.arms]
        parts.append(Table(KV_COLUMNS, rows, f"KV cache. {caption(cell)}"))
        for arm in cell.arms:
            if _formula(arm.memory) == "differs":
                parts.append(Sentence(_disagreement(arm), "warning"))
        peaks = [[arm.name, *_peaks(arm.memory)] for arm in cell.arms]
        parts.append(Table(PEAK_COLUMNS, peaks, f"Peaks. {caption(cell)}"))
    if parts:
        parts.append(
            Sentence(
                "KV bytes are counted from the storages. A peak is reached at the prefill, before "
                "anything is withdrawn while decoding: what that frees shows along the output."
            )
        )
    plan = report.plan
    if plan is not None and (plan.largest_batch_before or plan.largest_batch_after):
        rows = [
            ["with the vision tokens to the end", _batch(plan.largest_batch_before)],
            [f"once they are withdrawn after {plan.withdrawn_after}",
             _batch(plan.largest_batch_after)],
        ]  # fmt: skip
        parts.append(Table(["CACHES THAT FIT BESIDE THE WEIGHTS", "SEQUENCES"], rows))
    return Section("memory", "Memory", parts)


def _batch(size: int | None) -> str:
    return words.NONE if size is None else f"{size:,}"


def _moment(arm: Arm) -> str:
    return words.NONE if arm.withdrawn_after is None else words.plural(arm.withdrawn_after, "token")


def _kv(memory: Memory) -> list[str]:
    freed = memory.kv_bytes_before - memory.kv_bytes_after
    end = memory.timeline[-1].kv_allocated_bytes if memory.timeline else None
    return [
        readable_bytes(memory.kv_bytes_before),
        readable_bytes(memory.kv_bytes_after),
        f"{readable_bytes(freed)}  {words.percent(freed / memory.kv_bytes_before)}"
        if freed > 0
        else words.NONE,
        _formula(memory),
        _bytes(end),
    ]


def _formula(memory: Memory) -> str:
    pairs = (
        (memory.kv_bytes_before, memory.kv_formula_bytes_before),
        (memory.kv_bytes_after, memory.kv_formula_bytes_after),
    )
    known = [(found, formula) for found, formula in pairs if formula is not None]
    if not known:
        return words.NONE
    return "agrees" if all(found == formula for found, formula in known) else "differs"


def _disagreement(arm: Arm) -> str:
    held = arm.memory
    formula = (held.kv_formula_bytes_before, held.kv_formula_bytes_after)
    before, after = (words.NONE if amount is None else f"{amount:,}" for amount in formula)
    return (
        f"{arm.name}: the cache took {held.kv_bytes_before:,} bytes before and "
        f"{held.kv_bytes_after:,} after; by the model's configuration it takes {before} and "
        f"{after}. The bound rests on the configuration, so it does not hold either."
    )


def _peaks(memory: Memory) -> list[str]:
    return [
        readable_bytes(memory.weight_bytes),
        _bytes(memory.device_allocated_peak_bytes),
        _bytes(memory.device_reserved_peak_bytes),
        _bytes(memory.process_peak_bytes),
        _bytes(memory.device_process_bytes),
    ]


def _bytes(amount: int | None) -> str:
    return words.NONE if amount is None else readable_bytes(amount)


def caption(cell: Cell) -> str:
    """Say which cell a table is about."""
    own = "a process of its own" if cell.process == "own" else "a process shared with other cells"
    return f"Batch {cell.batch}, {words.plural(cell.pairs, 'pair')}, {own}"
