"""A report as sections of tables and sentences: what was run, and all that was found out.

A figure stands beside the baseline's, with the ratio and its interval. Nothing is computed but sums
and shares of what the report holds; the sentences of the verdict come with it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

from mvw_cli.bench.documents import (
    BASELINE,
    Answers,
    Arm,
    Cell,
    Comparison,
    Memory,
    Mode,
    Phases,
    ProfileReport,
    Vision,
)
from mvw_cli.bench.stats import Ratio, Summary
from mvw_cli.cost.bounds import Plan
from mvw_cli.cost.case import Device, StepBound
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.text import (
    MISSING,
    count,
    factor,
    millions,
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

ARMS_PER_TABLE = 4
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
PARTS_OF_OTHERS = ("vision_ms", "detokenise_ms")
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
    own = "a process of its own" if cell.process == "own" else "a process shared with other cells"
    return f"Batch {cell.batch}, {plural(cell.pairs, 'pair')}, {own}"


def judged_ratio(found: Ratio | None) -> str:
    """Write a ratio of rates, and what its interval allows to say."""
    return MISSING if found is None else f"{factor(found.median, found.interval_95)} {found.shown}"


def written(value: T | None, write: Callable[[T], str]) -> str:
    """Write a value, or the sign for what was not measured."""
    return MISSING if value is None else write(value)


# -- what was run -----------------------------------------------------------------------------


def _environment(report: ProfileReport) -> Parts:
    model, work, env = report.model, report.workload, report.environment
    weights = "random weights" if model.random_weights else f"revision {model.revision or 'local'}"
    length = (
        f"{work.new_tokens:,} tokens each, whatever the model writes"
        if work.mode == "fixed"
        else f"natural, at most {work.new_tokens:,} tokens each"
    )
    software = {
        "mvw": env.mvw,
        "Python": env.python,
        "torch": env.torch,
        "transformers": env.transformers,
        "flash-attn": env.flash_attn,
    }
    rows = [
        ["model", f"{model.name} ({weights}), adapter {model.adapter}"],
        ["held as", f"{model.dtype} on {model.device}, attention {model.attention}"],
        ["device", f"{env.device_name}, {plural(env.threads, 'CPU thread')}"],
        ["software", ", ".join(f"{name} {version}" for name, version in software.items()
                               if version)],
        ["platform", env.platform],
        [
            "input",
            f"{plural(work.items, 'item')} ({work.source}); the first: image of "
            f"{work.image_width_px} x {work.image_height_px} px, "
            f"{plural(work.vision_tokens, 'vision token')}, "
            f"prompt of {plural(work.prompt_tokens, 'token')}",
        ],
        ["output", length],
    ]  # fmt: skip
    if report.cells:
        measured = (
            f"at least {plural(work.runs, 'pair')} and {number(work.min_time_s)} s, "
            f"after {plural(work.warm_up, 'warm-up run')}; seed {work.seed}"
        )
        rows.append(["measured", measured])
    rows.append(["started", f"{report.started}, took {seconds(report.seconds)}"])
    rows.append(["command", shlex.join(report.command)])
    parts: Parts = [Table(["WHAT", "VALUE"], rows)]
    cost = report.profiler_cost
    if cost is not None:
        told = factor(cost.median, cost.interval_95)
        parts.append(
            Sentence(
                f"Decode with the profiler's marks takes {told} the time of decode without them."
            )
        )
    return parts


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
    if summary is None:
        return MISSING
    total = total_ms(phases)
    share = f"  {percent(summary.median / total)}" if total else ""
    return f"{milliseconds(summary.median)}{share}"


# What it is called, its name in `Arm.ratios`, where it lies, how it is written.
_FIGURES: list[tuple[str, str | None, Callable[[Arm], Summary | None], Callable[[float], str]]] = [
    ("time to first token", "ttft", lambda arm: arm.ttft_ms, milliseconds),
    ("time per output token", "tpot", lambda arm: arm.tpot_ms, milliseconds),
    ("  before withdrawal", None, lambda arm: arm.tpot_before_ms, milliseconds),
    ("  after withdrawal", None, lambda arm: arm.tpot_after_ms, milliseconds),
    ("tokens per second", "tokens_per_s", lambda arm: arm.tokens_per_s, number),
    ("seconds per answer", "answer", lambda arm: arm.answer_s, seconds),
    ("tokens per answer", None, lambda arm: arm.generated_tokens, count),
    ("joules per token", None, lambda arm: arm.joules_per_token, number),
]


def _speed(report: ProfileReport) -> Parts:
    parts: Parts = []
    mode = report.workload.mode
    for cell in report.cells:
        columns = ["FIGURE", "ARM", "MEDIAN", "P90", "P99", "SPREAD", f"AGAINST {BASELINE} [95 %]"]
        parts.append(Table(columns, _speed_rows(cell, mode), caption(cell)))
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
    return parts


def _unstable(text: str) -> str:
    told = "unstable" in text.lower() or "ended early" in text
    return text if told else f"Unstable: {text}"


def _speed_rows(cell: Cell, mode: Mode) -> list[list[str]]:
    withdraws = any(arm.tpot_after_ms is not None for arm in cell.arms)
    rows = []
    for name, key, read, write in _FIGURES:
        if name.startswith("  ") and not withdraws:
            continue  # a part of the output is worth a row only where some arm has another part
        # Steps of one run differ by nature, and so do answers that end where they like.
        judged = key in ("ttft", "tokens_per_s") or (key == "answer" and mode == "fixed")
        for arm in cell.arms:
            summary = read(arm)
            if summary is not None:
                values = (summary.median, summary.p90, summary.p99)
                against = judged_ratio(arm.ratios.get(key) if key else None)
                spread = _spread(summary, judged=judged)
                rows.append([name, arm.name, *map(write, values), spread, against])
    return rows


def _spread(summary: Summary, *, judged: bool) -> str:
    if len(summary.samples) < 2:
        return MISSING
    return f"{percent(summary.spread)}{' unstable' if judged and summary.unstable else ''}"


# -- vision and memory ------------------------------------------------------------------------

# Left out where all arms have the same.
_VISION_COLUMNS: list[tuple[str, Callable[[Arm, Vision], str]]] = [
    ("HELD AFTER THE PREFILL", lambda arm, seen: count(round(seen.entries_held, 2))),
    (
        "KV AFTER THE PREFILL",
        lambda arm, seen: written(arm.memory.kv_bytes_prefilled, readable_bytes),
    ),
    ("WITHDRAWALS", lambda arm, seen: count(round(seen.withdrawals, 2))),
    ("LOOK-BACKS", lambda arm, seen: count(round(seen.look_backs, 2))),
    (
        "OFFLOADED TO THE HOST",
        lambda arm, seen: readable_bytes(arm.memory.host_offloaded_peak_bytes),
    ),
]


def _vision(report: ProfileReport) -> Parts:
    parts: Parts = []
    for cell in report.cells:
        whole = next((arm.vision for arm in cell.arms if arm.name == BASELINE), None)
        seen = [(arm, arm.vision) for arm in cell.arms if arm.vision is not None]
        rows = [[arm.name, _attended(one, whole)] for arm, one in seen]
        if len({row[1] for row in rows}) < 2:
            continue
        columns = ["ARM", "ATTENDED BY A TOKEN"]
        for name, read in _VISION_COLUMNS:
            cells = [read(arm, one) for arm, one in seen]
            if len(set(cells)) > 1:
                columns.append(name)
                rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
        parts.append(Table(columns, rows, caption(cell)))
    if parts:
        parts.append(
            Sentence(
                "Attended are the vision tokens that the query of a generated token sees, mean "
                "over its answer and over the layers that hold vision where nothing is withdrawn. "
                "Held are entries of the KV cache, all layers together; withdrawals are counted "
                "while decoding, by answer."
            )
        )
    return parts


def _attended(seen: Vision, baseline: Vision | None) -> str:
    told = count(round(seen.attended, 2))
    if baseline is None or not baseline.attended:
        return told
    return f"{told}  {percent(seen.attended / baseline.attended)}"


_KV_COLUMNS = ["ARM", "WITHDRAWN AFTER", "KV BEFORE", "KV AFTER", "FREED", "BY FORMULA",
               "STORAGE AT END"]  # fmt: skip
_PEAK_COLUMNS = ["ARM", "WEIGHTS", "ALLOCATED, PEAK", "RESERVED, PEAK", "PROCESS, PEAK",
                 "ON DEVICE, AT END"]  # fmt: skip


def _memory(report: ProfileReport) -> Parts:
    parts: Parts = []
    for cell in report.cells:
        rows = [_kv_row(arm) for arm in cell.arms]
        parts.append(Table(_KV_COLUMNS, rows, f"KV cache. {caption(cell)}"))
        parts += [
            Sentence(_disagreement(arm), "warning")
            for arm in cell.arms
            if _by_formula(arm.memory) == "differs"
        ]
        peaks = [_peak_row(arm) for arm in cell.arms]
        parts.append(Table(_PEAK_COLUMNS, peaks, f"Peaks. {caption(cell)}"))
    if parts:
        parts.append(
            Sentence(
                "KV bytes are counted from the storages. A peak is reached at the prefill, before "
                "anything is withdrawn while decoding: what that frees shows along the output."
            )
        )
    plan = report.plan
    if plan is not None and (plan.largest_batch_before or plan.largest_batch_after):
        fitting = {
            "with the vision tokens to the end": plan.largest_batch_before,
            f"once they are withdrawn after {plan.withdrawn_after}": plan.largest_batch_after,
        }
        rows = [[name, written(size, count)] for name, size in fitting.items()]
        parts.append(Table(["CACHES THAT FIT BESIDE THE WEIGHTS", "SEQUENCES"], rows))
    return parts


def _kv_row(arm: Arm) -> list[str]:
    memory = arm.memory
    freed = memory.kv_bytes_before - memory.kv_bytes_after
    share = f"{readable_bytes(freed)}  {percent(freed / memory.kv_bytes_before)}" if freed else ""
    end = memory.timeline[-1].kv_allocated_bytes if memory.timeline else None
    return [
        arm.name,
        written(arm.withdrawn_after, lambda tokens: plural(tokens, "token")),
        readable_bytes(memory.kv_bytes_before),
        readable_bytes(memory.kv_bytes_after),
        share if freed > 0 else MISSING,
        _by_formula(memory),
        written(end, readable_bytes),
    ]


def _by_formula(memory: Memory) -> str:
    pairs = (
        (memory.kv_bytes_before, memory.kv_formula_bytes_before),
        (memory.kv_bytes_after, memory.kv_formula_bytes_after),
    )
    known = [(found, formula) for found, formula in pairs if formula is not None]
    if not known:
        return MISSING
    return "agrees" if all(found == formula for found, formula in known) else "differs"


def _disagreement(arm: Arm) -> str:
    held = arm.memory
    before, after = (
        written(amount, lambda exact: f"{exact:,}")
        for amount in (held.kv_formula_bytes_before, held.kv_formula_bytes_after)
    )
    return (
        f"{arm.name}: the cache took {held.kv_bytes_before:,} bytes before and "
        f"{held.kv_bytes_after:,} after; by the model's configuration it takes {before} and "
        f"{after}. The bound rests on the configuration, so it does not hold either."
    )


def _peak_row(arm: Arm) -> list[str]:
    memory = arm.memory
    amounts = (
        memory.weight_bytes,
        memory.device_allocated_peak_bytes,
        memory.device_reserved_peak_bytes,
        memory.process_peak_bytes,
        memory.device_process_bytes,
    )
    return [arm.name, *(written(amount, readable_bytes) for amount in amounts)]


# -- bounds -----------------------------------------------------------------------------------


def verdicts(report: ProfileReport) -> list[str]:
    """List the sentences of the verdict, each once."""
    planned = report.plan.verdicts if report.plan else []
    return list(dict.fromkeys([*report.verdicts, *planned]))


def _bound(report: ProfileReport) -> Parts:
    parts: Parts = [Sentence(text, "verdict") for text in verdicts(report)]
    if report.plan is not None:
        parts += plan_tables(report.plan)
    arms = [(cell, arm) for cell in report.cells for arm in cell.arms]
    rows = [
        [
            str(cell.batch),
            arm.name,
            _step(arm.bound.before),
            _step(arm.bound.after),
            factor(arm.bound.speedup),
            judged_ratio(arm.ratios.get("tokens_per_s")),
        ]
        for cell, arm in arms
        if arm.bound is not None and arm.ratios
    ]
    if rows:
        columns = ["BATCH", "ARM", "A STEP READS", "AT ITS LEAST", "AT MOST",
                   "MEASURED, TOKENS PER S"]  # fmt: skip
        parts.append(Table(columns, rows, "Decode: bound and measurement"))
    return [*parts, *_prefill_bounds(report)]


def _prefill_bounds(report: ProfileReport) -> Parts:
    """Set the time to the first token beside its bound, where arms act in the prefill."""
    rows = []
    for cell in report.cells:
        bounds = [(arm, arm.bound.prefill) for arm in cell.arms if arm.bound and arm.bound.prefill]
        if all(prefill.share >= 1 for _, prefill in bounds):
            continue
        rows += [
            [
                str(cell.batch),
                arm.name,
                f"{scaled(prefill.flops, 'FLOP')}  {percent(prefill.share)} of the {BASELINE}'s",
                written(prefill.seconds, seconds),
                factor(prefill.speedup),
                judged_ratio(arm.ratios.get("ttft")),
            ]
            for arm, prefill in bounds
            if arm.ratios
        ]
    columns = ["BATCH", "ARM", "PREFILL COMPUTES", "TAKES AT LEAST", "AT MOST",
               "MEASURED, FIRST TOKEN"]  # fmt: skip
    return [Table(columns, rows, "Prefill: bound and measurement")] if rows else []


def plan_tables(plan: Plan) -> Parts:
    """Put the bounds that are known without a measurement into tables."""
    vision, text = (
        plural(plan.vision_tokens, "vision token"),
        plural(plan.text_tokens, "text token"),
    )
    least = "" if plan.prefill_s is None else f", at least {seconds(plan.prefill_s)}"
    rows = [
        ["parameters", f"{millions(plan.parameters)}, {readable_bytes(plan.weight_bytes)}"],
        ["a sequence", f"{vision}, {text} at the middle of the output"],
        ["prefill", scaled(plan.prefill_flops, "FLOP") + least],
        ["1.1 × as fast a step", _matters(plan)],
    ]
    if plan.device is not None:
        rows.insert(0, ["device", _device(plan.device)])
    parts: Parts = [Table(["WHAT", "VALUE"], rows)]
    if plan.batches:
        columns = ["BATCH", "A STEP READS", "AFTER WITHDRAWAL", "TAKES AT LEAST", "AFTER",
                   "STEP AT MOST", "ANSWER AT MOST"]  # fmt: skip
        batches = [
            [
                str(batch.batch),
                _step(batch.before),
                _step(batch.after),
                written(batch.before.seconds, seconds),
                written(batch.after.seconds, seconds),
                factor(batch.speedup),
                factor(batch.speedup_of_answer),
            ]
            for batch in plan.batches
        ]
        after = f"By the bytes and FLOPs of a step, withdrawn after {plan.withdrawn_after}"
        parts.append(Table(columns, batches, after))
    return parts


def _matters(plan: Plan) -> str:
    """Write from which batch and how many vision tokens on a step can be 1.1 × as fast."""
    first = plan.matters_from_batch
    told = ["at no batch size" if first is None else f"from batch {first:,} on"]
    for batch, tokens in plan.matters_from_vision_tokens.items():
        enough = "with no number of them" if tokens is None else f"from {tokens:,} of them on"
        told.append(f"at batch {batch:,} {enough}")
    return f"with {plural(plan.vision_tokens, 'vision token')} {'; '.join(told)}"


def _device(device: Device) -> str:
    source = device.reference
    if not source.startswith(device.source):
        source = f"{device.source}: {source}"
    launch = "" if device.launch_s is None else f", launch {seconds(device.launch_s)}"
    return (
        f"{device.name}: {scaled(device.bandwidth_bytes_per_s, 'B/s')}, "
        f"{scaled(device.flops_per_s, 'FLOP/s')}{launch} ({source})"
    )


def _step(step: StepBound) -> str:
    whole = step.weight_bytes + step.kv_bytes
    share = f" ({percent(step.kv_bytes / whole)} KV)" if whole else ""
    return f"{readable_bytes(whole)}{share}"


# -- answers ----------------------------------------------------------------------------------


def _answers(found: Answers | None) -> Parts:
    if found is None:
        return []
    columns = ["ARM", "IDENTICAL", "SAME ANSWER", "FIRST DIFFERENCE", "SAME NEXT TOKEN [95 %]",
               "KL, NATS", "TOKENS", "SECONDS"]  # fmt: skip
    about = f"{plural(found.items, 'answer')} beside those of {BASELINE}; medians"
    parts: Parts = [Table(columns, [_compared(arm) for arm in found.arms], about)]
    if any(arm.agreement is not None for arm in found.arms):
        parts.append(
            Sentence(
                "Same next token and KL divergence are taken along the output of "
                f"{BASELINE}, token by token."
            )
        )
    if found.references:
        columns = ["ARM", "RIGHT [95 %]", "LOST", "WON", "WORSE BY [95 %]", "P"]
        rows = [_accuracy(arm, found.references) for arm in found.arms]
        parts.append(Table(columns, rows, f"{plural(found.references, 'item')} with a reference"))
        parts.append(
            Sentence(
                "Intervals of right answers are Wilson's. Lost are items that "
                f"{BASELINE} has right and the arm wrong, won the reverse; worse by is the "
                "difference of the right answers with Tango's interval, p McNemar's exact test."
            )
        )
    parts += [Sentence(remark) for remark in found.remarks]
    return [*parts, *suggestion(found)]


def _compared(arm: Comparison) -> list[str]:
    agreement = MISSING
    if arm.agreement is not None:
        ends = arm.agreement_interval_95
        agreement = percent(arm.agreement) + (f" {percents(ends)}" if ends else "")
    return [
        arm.name,
        f"{arm.identical:,} of {arm.items:,}",
        written(arm.same_answer, lambda same: f"{same:,} of {arm.items:,}"),
        written(arm.first_difference, lambda place: f"token {count(place.median)}"),
        agreement,
        written(arm.kl_nats, lambda nats: number(nats.median)),
        count(arm.generated_tokens.median),
        seconds(arm.seconds.median),
    ]


def _accuracy(arm: Comparison, references: int) -> list[str]:
    if arm.correct is None:
        return [arm.name, *[MISSING] * 5]
    ends, drop = arm.accuracy_interval_95, MISSING
    if arm.drop_interval_95 is not None and arm.lost is not None and arm.won is not None:
        share = (arm.lost - arm.won) / references
        drop = f"{100 * share:.0f} % {percents(arm.drop_interval_95)}"
    return [
        arm.name,
        f"{arm.correct:,} of {references:,}" + (f" {percents(ends)}" if ends else ""),
        written(arm.lost, count),
        written(arm.won, count),
        drop,
        written(arm.p_value, number),
    ]


def suggestion(found: Answers | None) -> list[Sentence]:
    """Return the sentence on the m that keeps the answers, if one was asked for."""
    if found is None or found.suggestion_reason is None:
        return []
    head = "" if found.suggestion is None else f"Suggested: m = {found.suggestion}. "
    tail = "" if found.tolerance is None else f" (Tolerance: {percent(found.tolerance)}.)"
    return [Sentence(f"{head}{found.suggestion_reason}{tail}", "verdict")]
