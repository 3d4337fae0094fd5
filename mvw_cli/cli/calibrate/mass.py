"""`mvw calibrate mass`: the attention mass under which the vision counts as unused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mvw_cli.cli.calibrate.options import calibrating
from mvw_cli.cli.options import ARGUMENTS, Listed, Remembering

if TYPE_CHECKING:
    from mvw_cli.calibrate.report import Report
    from mvw_cli.cli.calibrate.samples import Work
    from mvw_cli.render.chart import Chart
    from mvw_cli.render.sections import Section


@click.command(cls=Remembering, short_help="Find the threshold for policy mass.")
@click.option(
    "--thresholds",
    metavar="X,…",
    type=Listed(click.FloatRange(0, 1, min_open=True), "thresholds"),
    help="Thresholds to try.  [default: 12 quantiles of the masses seen]",
)
@click.option(
    "--tolerance",
    metavar="PART",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="The part of next tokens, and of answers, that may come out otherwise.",
)
@click.option(
    "--patience",
    metavar="N",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Tokens in a row for which the average must be under the threshold.",
)
@click.option(
    "--smoothing",
    metavar="PART",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.3,
    show_default=True,
    help="Weight of the newest token in the average.",
)
@calibrating(limit=20)
@click.pass_context
def mass(
    context: click.Context,
    /,
    thresholds: tuple[float, ...] | None,
    tolerance: float,
    patience: int,
    smoothing: float,
    **options: Any,
) -> int:
    """Find the highest threshold of the vision attention mass that keeps the answers.

    Each item is answered once without withdrawal, and the mass after each token is kept: where any
    threshold would withdraw follows from it. The next tokens along that answer are then compared
    with those after such a withdrawal. Thresholds that keep the tolerance there are tried for real,
    the highest first, until one keeps the answers, too.

    What is found is kept for each item, so that the same command goes on after Ctrl-C.

    \b
    Examples:
      mvw calibrate mass
      mvw calibrate mass --questions dev.jsonl --profile qwen3-vl-8b-thinking --patience 8
    """
    from mvw_cli.cli.calibrate.output import deliver_outcome
    from mvw_cli.cli.calibrate.samples import searched
    from mvw_cli.cli.calibrate.task import Task
    from mvw_cli.errors import ExitCode

    task = Task(method="mass", words=tuple(context.meta[ARGUMENTS]), **options)
    lasting = {"patience": patience, "smoothing": smoothing}
    report = searched(
        task, lasting, lambda work: _search(work, thresholds, tolerance, patience, smoothing)
    )
    if report is None:
        return ExitCode.INTERRUPTED
    threshold = (report.outcome.withdrawal or {}).get("threshold")
    description = f"mass under {threshold}, by mvw calibrate on {len(report.samples)} items"
    return deliver_outcome(task, report, description, sections(report), pictures(report))


def _search(
    work: Work,
    thresholds: tuple[float, ...] | None,
    tolerance: float,
    patience: int,
    smoothing: float,
) -> Report:
    from dataclasses import asdict

    from mvw_cli.calibrate import mass as method
    from mvw_cli.calibrate.report import Outcome
    from mvw_cli.cli.calibrate.mass_samples import answered, recorded, traced
    from mvw_cli.cli.calibrate.samples import report_of
    from mvw_cli.policies.mass import Mass

    like = Mass(threshold=1.0, patience=patience, smoothing=smoothing)
    samples = recorded(work, like)
    tried = sorted(thresholds or method.candidates([one["mass"] for one in samples]))
    traces = traced(work, samples, like, tried)
    points = method.curve(traces, like, tried, tolerance)
    blind = method.blind_agreement(traces)
    reason, remarks, chosen = method.refusal(points, blind, tolerance), [], None
    if reason is None:
        for point in method.qualifying(points):
            loss, told = answered(work, samples, traces, like, point.threshold)
            if loss <= tolerance:
                chosen = point
                reason = (
                    f"With a threshold of {point.threshold:g}, "
                    f"{100 * point.agreement:.1f} % of the next tokens stay the likeliest, and "
                    f"{told}; vision goes after {point.tokens_with_vision:.0f} of "
                    f"{point.tokens:.0f} tokens, in {100 * point.withdrawn:.0f} % of the answers."
                )
                break
            remarks.append(f"A threshold of {point.threshold:g} is too high: {told}.")
        else:
            reason = "No threshold that keeps the next tokens keeps the answers."
    if blind is None:
        remarks.append("There was no control without an image to show that the image is needed.")
    withdrawal = None
    if chosen is not None:
        withdrawal = {
            "policy": "mass",
            "threshold": chosen.threshold,
            "patience": patience,
            "smoothing": smoothing,
        }
    settings = {
        "thresholds": tried,
        "tolerance": tolerance,
        "patience": patience,
        "smoothing": smoothing,
        "blind_agreement": blind,
    }
    for sample in samples:
        del sample["token_ids"]
        sample["mass"] = [None if one is None else round(one, 5) for one in sample["mass"]]
    outcome = Outcome([asdict(point) for point in points], withdrawal, reason or "", remarks)
    return report_of(work, settings, samples, outcome)


def sections(report: Report) -> list[Section]:
    """Put a report into words."""
    from mvw_cli.render.sections import Section, Sentence, Table
    from mvw_cli.text import number, percent, percents, plural

    rows = []
    for point in report.outcome.curve:
        ends = point["agreement_interval_95"]
        rows.append(
            [
                f"{point['threshold']:g}",
                percent(point["withdrawn"]),
                f"{point['tokens_with_vision']:.1f} of {point['tokens']:.1f}",
                percent(point["agreement"]),
                "-" if ends is None else percents(ends),
                number(point["kl_nats_mean"]),
                "within" if point["within"] else "",
            ]
        )
    columns = ["threshold", "withdrawn", "tokens with vision", "agreement", "95 %", "KL, nats", ""]
    said = [Sentence(f"Over {plural(len(report.samples), 'item')}.")]
    blind = report.settings["blind_agreement"]
    if blind is not None:
        said.append(Sentence(f"Without any image the agreement is {percent(blind)}."))
    return [
        Section("curve", "Withdrawn at a mass under the threshold", [Table(columns, rows), *said]),
        Section("outcome", "Outcome", [Sentence(report.outcome.reason, "verdict")]),
    ]


def pictures(report: Report) -> list[Chart]:
    """Draw agreement against the threshold, and the mass along the answers."""
    from statistics import fmean

    from mvw_cli.render.chart import Chart, Line

    points = report.outcome.curve
    xs = [point["threshold"] for point in points]
    blind = report.settings["blind_agreement"]
    shares = [100 * point["tokens_with_vision"] / point["tokens"] for point in points]
    agreement = Chart(
        "agreement-by-threshold",
        "What a threshold of the mass leaves, and what it lets go",
        "threshold",
        "part of the tokens",
        "%",
        "The part of the next tokens that stay the likeliest, and the part of the tokens that are "
        "generated with vision.",
        [
            Line("next tokens that agree", 1, xs, [100 * one["agreement"] for one in points]),
            Line("generated with vision", 2, xs, shares),
        ],
        reference=None if blind is None else ("agreement without an image", 100 * blind),
    )
    columns: list[list[float]] = []
    for sample in report.samples:
        for place, value in enumerate(sample["mass"]):
            if place == len(columns):
                columns.append([])
            columns[place].extend([] if value is None else [value])
    told = [(float(place), fmean(one)) for place, one in enumerate(columns, start=1) if one]
    chosen = (report.outcome.withdrawal or {}).get("threshold")
    along = Chart(
        "mass-along-answer",
        "Vision attention mass along the answers",
        "generated tokens",
        "mass",
        "%",
        "What the policy sees after each token: mean over the answers that are so long.",
        [Line("mean over the answers", 1, [x for x, _ in told], [100 * y for _, y in told])],
        reference=None if chosen is None else (f"threshold {chosen:g}", 100 * chosen),
    )
    return [agreement, along]
