"""`mvw calibrate mvw`: the smallest m, or the earliest tag, whose answers stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mvw_cli.cli.calibrate.options import calibrating
from mvw_cli.cli.options import ARGUMENTS, Listed, Remembering

if TYPE_CHECKING:
    from mvw_cli.calibrate.report import Report
    from mvw_cli.cli.calibrate.samples import Work
    from mvw_cli.render.chart import Chart, Line
    from mvw_cli.render.sections import Section

_ROW = ("given", "divergence")
"""Of a sample: every token of every answer. The report has their sums, the log has them whole."""
_FEW = 1e-9
"""Nats; where a curve is lower, its picture ends here."""


@click.command(cls=Remembering, short_help="Find m, or a tag, for policy mvw.")
@click.option(
    "-m",
    "--m",
    "moments",
    metavar="N,…",
    type=Listed(click.IntRange(min=1), "moments"),
    default="1,2,4,8,16,32,64,128",
    show_default=True,
    help="Moments to try.",
)
@click.option(
    "--tags",
    metavar="TAG,…",
    type=Listed(click.STRING, "tags"),
    help="Tags to try as well, as </CAPTION>.",
)
@click.option(
    "--tolerance",
    metavar="PART",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="The part of the answers that may get worse.",
)
@calibrating(limit=20)
@click.pass_context
def mvw(
    context: click.Context,
    /,
    moments: tuple[int, ...],
    tags: tuple[str, ...] | None,
    tolerance: float,
    **options: Any,
) -> int:
    """Find the smallest m, or the earliest tag, whose answers stay within the tolerance.

    Every item is answered without withdrawal, without its image, and under each m and tag. The rule
    is that of `mvw profile --suggest`: an m counts if it and every later one loses no more than the
    tolerance, of the right answers or, without references, of the answers that come out the same.
    Agreement and KL along the answers without withdrawal are told beside it.

    What is found is kept for each item, so that the same command goes on after Ctrl-C.

    \b
    Examples:
      mvw calibrate mvw --tags "</CAPTION>"
      mvw calibrate mvw --questions dev.jsonl --limit 200 --profile llava-cot --m 16,32,64,128
    """
    from mvw_cli.cli.calibrate.output import deliver_outcome
    from mvw_cli.cli.calibrate.samples import searched
    from mvw_cli.cli.calibrate.task import Task
    from mvw_cli.errors import ExitCode

    task = Task(method="mvw", words=tuple(context.meta[ARGUMENTS]), **options)
    arms = {"m": sorted(moments), "tags": list(tags or ())}
    report = searched(task, arms, lambda work: _search(work, arms, tolerance))
    if report is None:
        return ExitCode.INTERRUPTED
    found = report.outcome.withdrawal or {}
    word = f"m = {found['m']}" if "m" in found else f"until {found.get('until')}"
    description = f"{word}, by mvw calibrate on {len(report.samples)} items"
    return deliver_outcome(task, report, description, sections(report), pictures(report))


def _search(work: Work, arms: dict[str, Any], tolerance: float) -> Report:
    from dataclasses import replace

    from mvw_cli.bench.measure.arms import choose_arms
    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.bench.quality.answers import Comparing, Stopped, answer_item
    from mvw_cli.calibrate.moments import choose, row_from_dict, row_in_short, row_to_dict
    from mvw_cli.cli.calibrate.samples import Stopped as UserStopped
    from mvw_cli.cli.calibrate.samples import Tick, measured, report_of
    from mvw_cli.engine.types import Request
    from mvw_cli.policies.none import NoWithdrawal
    from mvw_cli.profiles.withdrawal import withdrawal_policy

    named = choose_arms(work.task.profile, work.task.flags, moments=arms["m"], until=arms["tags"])
    policies = {arm.name: withdrawal_policy(arm.profile) for arm in named}
    comparing = Comparing(
        work.session,
        policies,
        replace(work.session.settings, ignore_eos=False),
        progress=lambda number, doing: work.view.progress(f"Item {number}: {doing}"),
        stopping=lambda: work.shutdown.requested,
    )
    items = work.begun.items.items

    def measure(request: Request, item: ItemSpec, tick: Tick) -> dict[str, Any]:
        asked = replace(request, policy=NoWithdrawal(), settings=comparing.settings)
        if not request.layout.vision_tokens:
            raise ValueError("it holds no vision tokens")
        try:
            row = answer_item(comparing, items.index(item), asked, item)
        except Stopped:
            raise UserStopped from None
        return {"reference": item.reference, **row_to_dict(row)}

    samples = measured(work, "Comparing the answers", measure)
    rows = [row_from_dict(sample, sample["reference"]) for sample in samples]
    outcome = choose(rows, [arm.name for arm in named[1:]], tolerance)
    outcome.remarks.extend(comparing.remarks)
    told = [
        {
            **{name: value for name, value in sample.items() if name not in _ROW},
            "arms": row_in_short(row),
        }
        for sample, row in zip(samples, rows, strict=True)
    ]
    return report_of(work, {**arms, "tolerance": tolerance}, told, outcome)


def sections(report: Report) -> list[Section]:
    """Put a report into words."""
    from mvw_cli.render.sections import Section, Sentence, Table
    from mvw_cli.text import count, number, percent, percents, plural

    rows = []
    for point in report.outcome.curve:
        ends = point["loss_interval_95"]
        rows.append(
            [
                point["arm"],
                number(point["tokens_with_vision"]),
                "-" if point["loss"] is None else f"{percent(max(0.0, point['loss']))}",
                "-" if ends is None else percents(ends),
                "-" if point["correct"] is None else count(point["correct"]),
                "-" if point["agreement"] is None else percent(point["agreement"]),
                "-" if point["kl_nats_mean"] is None else number(point["kl_nats_mean"]),
                "within" if point["within"] else "",
            ]
        )
    columns = ["", "tokens with vision", "loss", "95 %", "right", "agreement", "KL, nats", ""]
    return [
        Section(
            "curve",
            "Withdrawn after m tokens, or at a tag",
            [Table(columns, rows), Sentence(f"Over {plural(len(report.samples), 'item')}.")],
        ),
        Section("outcome", "Outcome", [Sentence(report.outcome.reason, "verdict")]),
    ]


def pictures(report: Report) -> list[Chart]:
    """Draw agreement and loss, and KL, against the tokens that are generated with vision."""
    from mvw_cli.bench.documents import BASELINE, NO_IMAGE
    from mvw_cli.render.chart import Chart

    arms = [one for one in report.outcome.curve if one["arm"] not in (BASELINE, NO_IMAGE)]
    control = next((one for one in report.outcome.curve if one["arm"] == NO_IMAGE), None)
    floor = max(_FEW, min((one["kl_nats_mean"] for one in arms if one["kl_nats_mean"]), default=1))
    label = "tokens generated with vision, mean"
    return [
        Chart(
            "answers-by-m",
            "What withdrawal after m tokens leaves of the answers",
            label,
            "part of the answers or tokens",
            "%",
            "The part of the next tokens that stay the likeliest, and the part of the answers that "
            "are not lost.",
            [
                *_lines(arms, "next tokens that agree", 1, lambda one: 100 * one["agreement"]),
                *_lines(arms, "answers kept", 2, lambda one: 100 * min(1.0, 1 - one["loss"])),
            ],
        ),
        Chart(
            "kl-by-m",
            "How far the next token's distribution moves",
            label,
            "KL divergence",
            "nats",
            "KL divergence of the next token's distribution, mean over the answers.",
            _lines(arms, "m", 1, lambda one: max(floor, one["kl_nats_mean"])),
            reference=None
            if control is None
            else ("no image", max(floor, control["kl_nats_mean"])),
            logarithmic=True,
        ),
    ]


def _lines(arms: list[dict[str, Any]], name: str, colour: int, read: Any) -> list[Line]:
    """Make a line of the m, and a dot of each tag."""
    from mvw_cli.bench.verdict.suggest import TAG_ARM
    from mvw_cli.render.chart import Line

    counted = [one for one in arms if not one["arm"].startswith(TAG_ARM)]
    counted.sort(key=lambda one: one["tokens_with_vision"])
    xs = [one["tokens_with_vision"] for one in counted]
    lines = [Line(name, colour, xs, [read(one) for one in counted])] if counted else []
    tags = [one for one in arms if one["arm"].startswith(TAG_ARM)]
    for place, one in enumerate(tags, start=3):
        shown = one["arm"] if name == "m" else f"{name}, {one['arm']}"
        lines.append(Line(shown, place, [one["tokens_with_vision"]], [read(one)]))
    return lines
