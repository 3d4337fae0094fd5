"""A report as sections of tables and sentences: what was run, and all that was found out.

A figure stands beside the baseline's, with the ratio and its interval. Nothing is computed but sums
and shares of what the report holds; the sentences of the verdict come with it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from mvw_cli.bench.documents import (
    BASELINE,
    Answers,
    Arm,
    Cell,
    Comparison,
    Memory,
    Phases,
    ProfileReport,
    Vision,
)
from mvw_cli.bench.stats import Ratio, Summary
from mvw_cli.bench.verdict.verdict import measured
from mvw_cli.cost.bounds import ArmBound, BatchBound, Plan, PrefillBound
from mvw_cli.cost.case import StepBound
from mvw_cli.render.jinja import named_sentences
from mvw_cli.render.sections import Section, Sentence, Table, table_of
from mvw_cli.text import (
    MISSING,
    count,
    factor,
    milliseconds,
    number,
    percent,
    percents,
    plural,
    readable_bytes,
    scaled,
    seconds,
)

Parts = list[Table | Sentence]
T = TypeVar("T")
_PACKAGE = "mvw_cli.bench.report"

ARMS_PER_TABLE = 4
PHASES = {
    "read_ms": "read the image files",
    "preprocess_ms": "preprocess",
    "prefill_ms": "prefill",
    "vision_ms": "  of it the vision encoder",
    "decode_before_ms": "decode before withdrawal",
    "withdrawal_ms": "withdrawal",
    "decode_after_ms": "decode after withdrawal",
}
PARTS_OF_OTHERS = ("vision_ms",)
assert set(PHASES) == {field.name for field in fields(Phases)}


def sections(report: ProfileReport) -> list[Section]:
    """Put a report into words; what was not measured is left out."""
    found = [
        Section("environment", "Environment", _environment(report)),
        Section("phases", "Where the time goes", _phases(report)),
        Section("speed", "Speed", _speed(report)),
        Section("vision", "What is read of the image", _vision(report)),
        Section("memory", "Memory", _memory(report)),
        Section("bound", "Bound and verdict", _bound(report)),
        Section("answers", "What changed in the answers", _answers(report.answers)),
    ]
    return [section for section in found if section.parts]


def title(report: ProfileReport) -> str:
    """Name the report by its model."""
    return f"Profile of {report.model.name}"


def caption(cell: Cell) -> str:
    """Name the cell that a table is about."""
    return f"Batch {cell.batch}, {plural(cell.pairs, 'pair')}"


def ended(cell: Cell) -> list[Sentence]:
    """Tell what ended a cell early, if anything did."""
    if cell.ended is None:
        return []
    whole = plural(cell.pairs, "whole pair")
    return [Sentence(f"Batch {cell.batch} ended early, with {whole}: {cell.ended}.", "warning")]


def judged_ratio(found: Ratio | None) -> str:
    """Write a ratio of rates, and what its interval allows to say."""
    return written(found, lambda ratio: f"{measured(ratio)} {ratio.shown}")


def written(value: T | None, write: Callable[[T], str]) -> str:
    """Write a value, or the sign for what was not measured."""
    return MISSING if value is None else write(value)


def note(name: str) -> Sentence:
    """Return what is to be known to read a table."""
    return Sentence(named_sentences(_PACKAGE, "notes.txt.j2", BASELINE=BASELINE)[name])


def _environment(report: ProfileReport) -> Parts:
    facts = named_sentences(_PACKAGE, "environment.txt.j2", report=report)
    facts["command"] = shlex.join(report.command)
    return [Table(["WHAT", "VALUE"], [[name, fact] for name, fact in facts.items()])]


# -- time -------------------------------------------------------------------------------------


def _phases(report: ProfileReport) -> Parts:
    parts: Parts = []
    for cell in report.cells:
        for start in range(0, len(cell.arms), ARMS_PER_TABLE):
            arms = cell.arms[start : start + ARMS_PER_TABLE]
            rows = [
                [name, *(_phase(arm.phases, key) for arm in arms)] for key, name in PHASES.items()
            ]
            rows = [row for row in rows if set(row[1:]) != {MISSING}]
            if rows:
                parts.append(Table(["PHASE", *(arm.name for arm in arms)], rows, caption(cell)))
    return parts


def total_ms(phases: Phases) -> float:
    """Add up the medians of the phases, without those that are parts of others."""
    found = (getattr(phases, key) for key in PHASES if key not in PARTS_OF_OTHERS)
    return float(sum(summary.median for summary in found if summary is not None))


def _phase(phases: Phases, key: str) -> str:
    summary: Summary | None = getattr(phases, key)
    return written(summary, lambda one: _with_share(milliseconds, one.median, total_ms(phases)))


def _with_share(write: Callable[[Any], str], value: float, whole: float) -> str:
    """Write a value, and its share of a whole."""
    return f"{write(value)}  {percent(value / whole)}" if whole else write(value)


# What it is called, its name in `Arm.ratios`, where it lies, how it is written.
_FIGURES: list[tuple[str, str | None, Callable[[Arm], Summary | None], Callable[[float], str]]] = [
    ("time to first token", "ttft", lambda arm: arm.ttft_ms, milliseconds),
    ("time per output token", "tpot", lambda arm: arm.tpot_ms, milliseconds),
    ("  before withdrawal", None, lambda arm: arm.tpot_before_ms, milliseconds),
    ("  after withdrawal", None, lambda arm: arm.tpot_after_ms, milliseconds),
    ("tokens per second", "tokens_per_s", lambda arm: arm.tokens_per_s, number),
    ("seconds per answer", "answer", lambda arm: arm.answer_s, seconds),
    ("tokens per answer", None, lambda arm: arm.generated_tokens, count),
]


def _speed(report: ProfileReport) -> Parts:
    parts: Parts = []
    natural = report.workload.mode == "natural"
    columns = ["FIGURE", "ARM", "MEDIAN", "P90", "P99", "SPREAD", f"AGAINST {BASELINE} [95 %]"]
    for cell in report.cells:
        parts.append(Table(columns, _speed_rows(cell, natural), caption(cell)))
        parts += [Sentence(f"Unstable: {text}", "warning") for text in cell.unstable]
        parts += ended(cell)
    if any(arm.ratios for cell in report.cells for arm in cell.arms):
        parts.append(note("ratios"))
    if parts and natural:
        parts.append(note("natural"))
    return parts


def _speed_rows(cell: Cell, natural: bool) -> list[list[str]]:
    withdraws = any(arm.tpot_after_ms is not None for arm in cell.arms)
    rows = []
    for name, key, read, write in _FIGURES:
        if name.startswith("  ") and not withdraws:
            continue  # a part of the output is worth a row only where some arm has another part
        # Steps of one run differ by nature, and so do answers that end where they like.
        judged = key in ("ttft", "tokens_per_s") or (key == "answer" and not natural)
        for arm in cell.arms:
            summary = read(arm)
            if summary is None:
                continue
            spread = percent(summary.spread) if len(summary.samples) > 1 else MISSING
            spread += " unstable" if judged and summary.unstable else ""
            values = map(write, (summary.median, summary.p90, summary.p99))
            against = judged_ratio(arm.ratios.get(key) if key else None)
            rows.append([name, arm.name, *values, spread, against])
    return rows


# -- vision and memory ------------------------------------------------------------------------

_Seen = tuple[Arm, Vision, float]
"""An arm with its vision, and the vision tokens that the baseline attends to."""
_SEEN: dict[str, Callable[[_Seen], str]] = {
    "ARM": lambda one: one[0].name,
    "ATTENDED BY A TOKEN": lambda one: _with_share(_means, one[1].attended, one[2]),
    "HELD AFTER THE PREFILL": lambda one: _means(one[1].entries_held),
    "KV AFTER THE PREFILL": lambda one: _bytes(one[0].memory.kv_bytes_prefilled),
    "WITHDRAWALS": lambda one: _means(one[1].withdrawals),
    "LOOK-BACKS": lambda one: _means(one[1].look_backs),
    "OFFLOADED TO THE HOST": lambda one: _bytes(one[0].memory.host_offloaded_peak_bytes),
}


def _means(value: float) -> str:
    return count(round(value, 2))


def _bytes(amount: int | None) -> str:
    return written(amount, readable_bytes)


def _vision(report: ProfileReport) -> Parts:
    parts: Parts = []
    for cell in report.cells:
        baseline = next((arm.vision for arm in cell.arms if arm.name == BASELINE), None)
        whole = baseline.attended if baseline else 0.0
        seen = [(arm, arm.vision, whole) for arm in cell.arms if arm.vision is not None]
        # What all arms have in common is left out.
        columns = {
            name: write for name, write in _SEEN.items() if len({write(one) for one in seen}) > 1
        }
        if "ATTENDED BY A TOKEN" in columns:
            parts.append(table_of(columns, seen, caption(cell)))
    if parts:
        parts.append(note("vision"))
    return parts


_KV: dict[str, Callable[[Arm], str]] = {
    "ARM": lambda arm: arm.name,
    "WITHDRAWN AFTER": lambda arm: written(arm.withdrawn_after, lambda m: plural(m, "token")),
    "KV BEFORE": lambda arm: _bytes(arm.memory.kv_bytes_before),
    "KV AFTER": lambda arm: _bytes(arm.memory.kv_bytes_after),
    "FREED": lambda arm: _freed(arm.memory),
    "BY FORMULA": lambda arm: _by_formula(arm.memory),
    "STORAGE AT END": lambda arm: _bytes(
        arm.memory.kv_allocated_along[-1] if arm.memory.kv_allocated_along else None
    ),
}
_PEAKS: dict[str, Callable[[Arm], str]] = {
    "ARM": lambda arm: arm.name,
    "WEIGHTS": lambda arm: _bytes(arm.memory.weight_bytes),
    "ALLOCATED, PEAK": lambda arm: _bytes(arm.memory.device_allocated_peak_bytes),
    "RESERVED, PEAK": lambda arm: _bytes(arm.memory.device_reserved_peak_bytes),
    "PROCESS, PEAK": lambda arm: _bytes(arm.memory.process_peak_bytes),
}


def _memory(report: ProfileReport) -> Parts:
    parts: Parts = []
    for cell in report.cells:
        parts.append(table_of(_KV, cell.arms, f"KV cache. {caption(cell)}"))
        parts.append(table_of(_PEAKS, cell.arms, f"Peaks. {caption(cell)}"))
    if parts:
        parts.append(note("memory"))
    plan = report.plan
    if plan is not None and (plan.largest_batch_before or plan.largest_batch_after):
        rows = [
            ["with the vision tokens to the end", written(plan.largest_batch_before, count)],
            [
                f"once they are withdrawn after {plan.withdrawn_after}",
                written(plan.largest_batch_after, count),
            ],
        ]
        parts.append(Table(["CACHES THAT FIT BESIDE THE WEIGHTS", "SEQUENCES"], rows))
    return parts


def _freed(memory: Memory) -> str:
    freed = memory.kv_bytes_before - memory.kv_bytes_after
    return _with_share(readable_bytes, freed, memory.kv_bytes_before) if freed > 0 else MISSING


def _by_formula(memory: Memory) -> str:
    pairs = (
        (memory.kv_bytes_before, memory.kv_formula_bytes_before),
        (memory.kv_bytes_after, memory.kv_formula_bytes_after),
    )
    known = [found == formula for found, formula in pairs if formula is not None]
    if not known:
        return MISSING
    return "agrees" if all(known) else "differs"


# -- bounds -----------------------------------------------------------------------------------

_DECODE: dict[str, Callable[[tuple[Cell, Arm, ArmBound]], str]] = {
    "BATCH": lambda one: str(one[0].batch),
    "ARM": lambda one: one[1].name,
    "A STEP READS": lambda one: _step(one[2].before),
    "AT ITS LEAST": lambda one: _step(one[2].after),
    "AT MOST": lambda one: factor(one[2].speedup),
    "MEASURED, TOKENS PER S": lambda one: judged_ratio(one[1].ratios.get("tokens_per_s")),
}
_PREFILL: dict[str, Callable[[tuple[Cell, Arm, PrefillBound]], str]] = {
    "BATCH": lambda one: str(one[0].batch),
    "ARM": lambda one: one[1].name,
    "PREFILL COMPUTES": lambda one: (
        f"{scaled(one[2].flops, 'FLOP')}  {percent(one[2].share)} of the {BASELINE}'s"
    ),
    "TAKES AT LEAST": lambda one: written(one[2].seconds, seconds),
    "AT MOST": lambda one: factor(one[2].speedup),
    "MEASURED, FIRST TOKEN": lambda one: judged_ratio(one[1].ratios.get("ttft")),
}
_BATCHES: dict[str, Callable[[BatchBound], str]] = {
    "BATCH": lambda bound: str(bound.batch),
    "A STEP READS": lambda bound: _step(bound.before),
    "AFTER WITHDRAWAL": lambda bound: _step(bound.after),
    "TAKES AT LEAST": lambda bound: written(bound.before.seconds, seconds),
    "AFTER": lambda bound: written(bound.after.seconds, seconds),
    "STEP AT MOST": lambda bound: factor(bound.speedup),
    "ANSWER AT MOST": lambda bound: factor(bound.speedup_of_answer),
}


def verdicts(report: ProfileReport) -> list[str]:
    """List the sentences of the verdict, each once."""
    planned = report.plan.verdicts if report.plan else []
    return list(dict.fromkeys([*report.verdicts, *planned]))


def _bound(report: ProfileReport) -> Parts:
    parts: Parts = [Sentence(text, "verdict") for text in verdicts(report)]
    if report.plan is not None:
        parts += plan_tables(report.plan)
    bounds = [
        (cell, arm, arm.bound)
        for cell in report.cells
        for arm in cell.arms
        if arm.bound is not None
    ]
    decode = [one for one in bounds if one[1].ratios]
    if decode:
        parts.append(table_of(_DECODE, decode, "Decode: bound and measurement"))
    prefills = [(cell, arm, bound.prefill) for cell, arm, bound in bounds if bound.prefill]
    acting = {cell.batch for cell, _, prefill in prefills if prefill.share < 1}
    prefills = [one for one in prefills if one[0].batch in acting and one[1].ratios]
    if prefills:
        parts.append(table_of(_PREFILL, prefills, "Prefill: bound and measurement"))
    return parts


def plan_tables(plan: Plan) -> Parts:
    """Put the bounds that are known without a measurement into tables."""
    facts = named_sentences(_PACKAGE, "plan.txt.j2", plan=plan)
    parts: Parts = [Table(["WHAT", "VALUE"], [[name, fact] for name, fact in facts.items()])]
    if plan.batches:
        after = f"By the bytes and FLOPs of a step, withdrawn after {plan.withdrawn_after}"
        parts.append(table_of(_BATCHES, plan.batches, after))
    return parts


def _step(step: StepBound) -> str:
    whole = step.weight_bytes + step.kv_bytes
    share = f" ({percent(step.kv_bytes / whole)} KV)" if whole else ""
    return f"{readable_bytes(whole)}{share}"


# -- answers ----------------------------------------------------------------------------------

_COMPARED: dict[str, Callable[[Comparison], str]] = {
    "ARM": lambda arm: arm.name,
    "IDENTICAL": lambda arm: f"{arm.identical:,} of {arm.items:,}",
    "SAME ANSWER": lambda arm: written(arm.same_answer, lambda same: f"{same:,} of {arm.items:,}"),
    "FIRST DIFFERENCE": lambda arm: written(
        arm.first_difference, lambda place: f"token {count(place.median)}"
    ),
    "SAME NEXT TOKEN [95 %]": lambda arm: written(
        arm.agreement, lambda share: _with_interval(percent(share), arm.agreement_interval_95)
    ),
    "KL, NATS": lambda arm: written(arm.kl_nats, lambda nats: number(nats.median)),
    "TOKENS": lambda arm: count(arm.generated_tokens.median),
    "SECONDS": lambda arm: seconds(arm.seconds.median),
}


def _answers(found: Answers | None) -> Parts:
    if found is None:
        return []
    about = f"{plural(found.items, 'answer')} beside those of {BASELINE}; medians"
    parts: Parts = [table_of(_COMPARED, found.arms, about)]
    if any(arm.agreement is not None for arm in found.arms):
        parts.append(note("agreement"))
    if total := found.references:
        columns: dict[str, Callable[[Comparison], str]] = {
            "ARM": lambda arm: arm.name,
            "RIGHT [95 %]": lambda arm: written(
                arm.correct,
                lambda right: _with_interval(f"{right:,} of {total:,}", arm.accuracy_interval_95),
            ),
            "LOST": lambda arm: written(arm.lost, count),
            "WON": lambda arm: written(arm.won, count),
            "WORSE BY [95 %]": lambda arm: written(
                arm.drop_interval_95,
                lambda ends: _with_interval(
                    f"{100 * ((arm.lost or 0) - (arm.won or 0)) / total:.0f} %", ends
                ),
            ),
            "P": lambda arm: written(arm.p_value, number),
        }
        parts.append(table_of(columns, found.arms, f"{plural(total, 'item')} with a reference"))
        parts.append(note("references"))
    return parts + [Sentence(remark) for remark in found.remarks]


def _with_interval(text: str, ends: tuple[float, float] | None) -> str:
    return f"{text} {percents(ends)}" if ends else text
