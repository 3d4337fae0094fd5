"""The sections that explain: what can be won at most and why, and what changed in the answers.

The sentences of the verdict come with the report; here they are only set in place.
"""

from __future__ import annotations

from mvw_cli.bench.measure.stats import Summary
from mvw_cli.bench.report import seen, words
from mvw_cli.bench.report.documents import (
    BASELINE,
    Answers,
    Comparison,
    Device,
    Plan,
    Report,
    StepBound,
)
from mvw_cli.render.content import Section, Sentence, Table
from mvw_cli.text import readable_bytes


def bound(report: Report) -> Section:
    """Say what a step must move, what can be won at most, and what was."""
    parts: list[Table | Sentence] = [
        Sentence(text, "verdict") for text in verdicts(report)
    ]  # fmt: skip
    if report.plan is not None:
        parts += plan_parts(report.plan)
    rows = [
        [
            str(cell.batch),
            arm.name,
            _step(arm.bound.before),
            _step(arm.bound.after),
            words.factor(arm.bound.speedup),
            words.ratio(arm.ratios["tokens_per_s"]) if "tokens_per_s" in arm.ratios else words.NONE,
        ]
        for cell in report.cells
        for arm in cell.arms
        if arm.bound is not None and arm.ratios
    ]
    if rows:
        columns = ["BATCH", "ARM", "A STEP READS", "AT ITS LEAST", "AT MOST",
                   "MEASURED, TOKENS PER S"]  # fmt: skip
        parts.append(Table(columns, rows, "Decode: bound and measurement"))
    parts += seen.prefill_bounds(report)
    return Section("bound", "Bound and verdict", parts)


def verdicts(report: Report) -> list[str]:
    """List the sentences of the verdict, each once."""
    planned = report.plan.verdicts if report.plan else []
    return list(dict.fromkeys([*report.verdicts, *planned]))


def plan_parts(plan: Plan) -> list[Table | Sentence]:
    rows = [
        ["parameters", f"{words.millions(plan.parameters)}, {readable_bytes(plan.weight_bytes)}"],
        [
            "a sequence",
            f"{words.plural(plan.vision_tokens, 'vision token')}, "
            f"{words.plural(plan.text_tokens, 'text token')} at the middle of the output",
        ],
        [
            "prefill",
            words.scaled(plan.prefill_flops, "FLOP")
            + ("" if plan.prefill_s is None else f", at least {words.seconds(plan.prefill_s)}"),
        ],
    ]
    rows.append(["1.1 × as fast a step", _matters(plan)])
    if plan.device is not None:
        rows.insert(0, ["device", _device(plan.device)])
    columns = ["BATCH", "A STEP READS", "AFTER WITHDRAWAL", "TAKES AT LEAST", "AFTER",
               "STEP AT MOST", "ANSWER AT MOST"]  # fmt: skip
    batches = [
        [
            str(batch.batch),
            _step(batch.before),
            _step(batch.after),
            _least(batch.before),
            _least(batch.after),
            words.factor(batch.speedup),
            words.factor(batch.speedup_of_answer),
        ]
        for batch in plan.batches
    ]
    caption = f"By the bytes and FLOPs of a step, withdrawn after {plan.withdrawn_after}"
    parts: list[Table | Sentence] = [Table(["WHAT", "VALUE"], rows)]
    if batches:
        parts.append(Table(columns, batches, caption))
    return parts


def _matters(plan: Plan) -> str:
    """Say from which batch and how many vision tokens on a step can be 1.1 × as fast."""
    said = [
        "at no batch size"
        if plan.matters_from_batch is None
        else f"from batch {plan.matters_from_batch:,} on"
    ]
    said += [
        f"at batch {batch:,} "
        + ("with no number of them" if tokens is None else f"from {tokens:,} of them on")
        for batch, tokens in plan.matters_from_vision_tokens.items()
    ]
    return f"with {words.plural(plan.vision_tokens, 'vision token')} {'; '.join(said)}"


def _device(device: Device) -> str:
    source = device.reference
    if not source.startswith(device.source):
        source = f"{device.source}: {source}"
    launch = "" if device.launch_s is None else f", launch {words.seconds(device.launch_s)}"
    return (
        f"{device.name}: {words.scaled(device.bandwidth_bytes_per_s, 'B/s')}, "
        f"{words.scaled(device.flops_per_s, 'FLOP/s')}{launch} ({source})"
    )


def _step(step: StepBound) -> str:
    whole = step.weight_bytes + step.kv_bytes
    share = f" ({words.percent(step.kv_bytes / whole)} KV)" if whole else ""
    return f"{readable_bytes(whole)}{share}"


def _least(step: StepBound) -> str:
    return words.NONE if step.seconds is None else words.seconds(step.seconds)


def answers(report: Report) -> Section:
    """Say what withdrawal changes in what the model says."""
    found = report.answers
    if found is None:
        return Section("answers", "What changed in the answers")
    columns = ["ARM", "IDENTICAL", "SAME ANSWER", "FIRST DIFFERENCE", "SAME NEXT TOKEN [95 %]",
               "KL, NATS", "TOKENS", "SECONDS"]  # fmt: skip
    caption = f"{words.plural(found.items, 'answer')} beside those of {BASELINE}; medians"
    parts: list[Table | Sentence] = [
        Table(columns, [_compared(arm) for arm in found.arms], caption)
    ]
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
        caption = f"{words.plural(found.references, 'item')} with a reference"
        parts.append(Table(columns, rows, caption))
        parts.append(
            Sentence(
                "Intervals of right answers are Wilson's. Lost are items that "
                f"{BASELINE} has right and the arm wrong, won the reverse; worse by is the "
                "difference of the right answers with Tango's interval, p McNemar's exact test."
            )
        )
    parts += [Sentence(remark) for remark in found.remarks]
    parts += _suggestion(found)
    return Section("answers", "What changed in the answers", parts)


def _compared(arm: Comparison) -> list[str]:
    return [
        arm.name,
        f"{arm.identical:,} of {arm.items:,}",
        words.NONE if arm.same_answer is None else f"{arm.same_answer:,} of {arm.items:,}",
        words.NONE if arm.first_difference is None
        else f"token {words.count(arm.first_difference.median)}",
        _share(arm.agreement, arm.agreement_interval_95),
        _median(arm.kl_nats),
        words.count(arm.generated_tokens.median),
        words.seconds(arm.seconds.median),
    ]  # fmt: skip


def _share(share: float | None, interval: tuple[float, float] | None) -> str:
    if share is None:
        return words.NONE
    return words.percent(share) + ("" if interval is None else f" {words.percents(interval)}")


def _median(summary: Summary | None) -> str:
    return words.NONE if summary is None else words.number(summary.median)


def _accuracy(arm: Comparison, references: int) -> list[str]:
    if arm.correct is None:
        return [arm.name, *[words.NONE] * 5]
    right = f"{arm.correct:,} of {references:,}"
    if arm.accuracy_interval_95 is not None:
        right += f" {words.percents(arm.accuracy_interval_95)}"
    return [
        arm.name,
        right,
        words.NONE if arm.lost is None else f"{arm.lost:,}",
        words.NONE if arm.won is None else f"{arm.won:,}",
        _drop(arm, references),
        words.NONE if arm.p_value is None else words.number(arm.p_value),
    ]


def _drop(arm: Comparison, references: int) -> str:
    if arm.drop_interval_95 is None or arm.lost is None or arm.won is None:
        return words.NONE
    share = (arm.lost - arm.won) / references
    return f"{100 * share:.0f} % {words.percents(arm.drop_interval_95)}"


def _suggestion(found: Answers) -> list[Table | Sentence]:
    if found.suggestion_reason is None:
        return []
    head = "" if found.suggestion is None else f"Suggested: m = {found.suggestion}. "
    tail = "" if found.tolerance is None else f" (Tolerance: {words.percent(found.tolerance)}.)"
    return [Sentence(f"{head}{found.suggestion_reason}{tail}", "verdict")]
