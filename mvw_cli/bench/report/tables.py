"""A report as sections of tables and sentences: what was run, and all that was found out.

A figure stands beside the baseline's, with the ratio and its interval. Nothing is computed but sums
and shares of what the report holds; the sentences of the verdict come with it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
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
from mvw_cli.bench.stats import Ratio
from mvw_cli.bench.verdict.verdict import formula_differs, measured
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
        rows = [
            [
                name,
                arm.name,
                milliseconds(spent.median),
                percent(spent.median / total_ms(arm.phases)),
            ]
            for phase, name in PHASES.items()
            for arm in cell.arms
            if (spent := getattr(arm.phases, phase)) is not None
        ]
        if rows:
            columns = ["PHASE", "ARM", "MEDIAN", "OF THE ANSWER"]
            parts.append(Table(columns, rows, caption(cell)))
    return parts


def total_ms(phases: Phases) -> float:
    """Add up the medians of the phases, without those that are parts of others."""
    found = (getattr(phases, key) for key in PHASES if key not in PARTS_OF_OTHERS)
    return float(sum(summary.median for summary in found if summary is not None))


def _with_share(write: Callable[[Any], str], value: float, whole: float) -> str:
    """Write a value, and its share of a whole."""
    return f"{write(value)}  {percent(value / whole)}" if whole else write(value)


_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "ttft_ms": ("time to first token", milliseconds),
    "tpot_ms": ("time per output token", milliseconds),
    "tpot_before_ms": ("  before withdrawal", milliseconds),
    "tpot_after_ms": ("  after withdrawal", milliseconds),
    "tokens_per_s": ("tokens per second", number),
    "answer_s": ("seconds per answer", seconds),
    "generated_tokens": ("tokens per answer", count),
}
"""By their place in `Arm`: what a figure is called, and how it is written."""
_RATIOS = {
    "ttft_ms": "ttft",
    "tpot_ms": "tpot",
    "tokens_per_s": "tokens_per_s",
    "answer_s": "answer",
}
"""Where in `Arm.ratios` a figure stands."""


def _speed(report: ProfileReport) -> Parts:
    parts: Parts = []
    columns = ["FIGURE", "ARM", "MEDIAN", "P90", "P99", "SPREAD", f"AGAINST {BASELINE} [95 %]"]
    for cell in report.cells:
        rows = [
            [
                name,
                arm.name,
                *map(write, (summary.median, summary.p90, summary.p99)),
                percent(summary.spread) if len(summary.samples) > 1 else MISSING,
                judged_ratio(arm.ratios.get(_RATIOS.get(figure, ""))),
            ]
            for figure, (name, write) in _FIGURES.items()
            for arm in cell.arms
            if (summary := getattr(arm, figure)) is not None
        ]
        parts.append(Table(columns, rows, caption(cell)))
        parts += [Sentence(f"Unstable: {text}", "warning") for text in cell.unstable]
        parts += ended(cell)
    if any(arm.ratios for cell in report.cells for arm in cell.arms):
        parts.append(note("ratios"))
    if parts and report.workload.mode == "natural":
        parts.append(note("natural"))
    return parts


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
        if seen:
            parts.append(table_of(_SEEN, seen, caption(cell)))
    return [*parts, note("vision")] if parts else []


_MEMORY: dict[str, Callable[[Arm], str]] = {
    "ARM": lambda arm: arm.name,
    "WITHDRAWN AFTER": lambda arm: written(arm.withdrawn_after, lambda m: plural(m, "token")),
    "KV BEFORE": lambda arm: _bytes(arm.memory.kv_bytes_before),
    "KV AFTER": lambda arm: _bytes(arm.memory.kv_bytes_after),
    "FREED": lambda arm: _freed(arm.memory),
    "BLOCKS FREED": lambda arm: written(arm.memory.kv_blocks_freed, str),
    "BY FORMULA": lambda arm: _by_formula(arm.memory),
    "ALLOCATED, PEAK": lambda arm: _bytes(arm.memory.device_allocated_peak_bytes),
    "RESERVED, PEAK": lambda arm: _bytes(arm.memory.device_reserved_peak_bytes),
    "PROCESS, PEAK": lambda arm: _bytes(arm.memory.process_peak_bytes),
}


def _memory(report: ProfileReport) -> Parts:
    paged = any(
        arm.memory.kv_blocks_freed is not None for cell in report.cells for arm in cell.arms
    )
    columns = {name: write for name, write in _MEMORY.items() if paged or name != "BLOCKS FREED"}
    tables = [table_of(columns, cell.arms, caption(cell)) for cell in report.cells]
    return [*tables, note("paged" if paged else "memory")] if tables else []


def _freed(memory: Memory) -> str:
    freed = memory.kv_bytes_before - memory.kv_bytes_after
    return _with_share(readable_bytes, freed, memory.kv_bytes_before) if freed > 0 else MISSING


def _by_formula(memory: Memory) -> str:
    if memory.kv_formula_bytes_before is None and memory.kv_formula_bytes_after is None:
        return MISSING
    return "differs" if any(formula_differs(memory)) else "agrees"


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
        if arm.bound is not None and arm.ratios
    ]
    if bounds:
        parts.append(table_of(_DECODE, bounds, "Decode: bound and measurement"))
    prefills = [
        (cell, arm, bound.prefill)
        for cell, arm, bound in bounds
        if bound.prefill is not None and bound.prefill.share < 1
    ]
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
