"""`mvw calibrate vtw`: the layer from which on the prompt's vision is no longer needed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mvw_cli.cli.calibrate.options import calibrating
from mvw_cli.cli.options import ARGUMENTS, Remembering

if TYPE_CHECKING:
    from mvw_cli.calibrate.report import Report
    from mvw_cli.cli.calibrate.samples import Work
    from mvw_cli.render.chart import Chart
    from mvw_cli.render.sections import Section

_FEW = 1e-9
"""Nats; where a curve is lower, its picture ends here."""


@click.command(cls=Remembering, short_help="Find the layer for policy vtw.")
@click.option(
    "--eta",
    metavar="NATS",
    type=click.FloatRange(min=0, min_open=True),
    default=0.003,
    show_default=True,
    help="Largest mean KL divergence that is accepted.",
)
@click.option(
    "--from",
    "first",
    metavar="K",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="First layer that may be chosen; the reference starts at 5.",
)
@click.option(
    "--tokens",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Compare the first N tokens of the answer; the published search compares 1.",
)
@calibrating(limit=20)
@click.pass_context
def vtw(context: click.Context, /, eta: float, first: int, tokens: int, **options: Any) -> int:
    """Find the decoder layer before which vision may leave the prompt (VTW, arXiv 2405.05803).

    For each layer K, the distribution of the first answer token with the vision gone before layer K
    is compared with the full model's: KL(p_K || p), mean over the samples. K is the first layer at
    which it is at most eta. All layers are tried in one pass. Without --images and --questions, the
    embedded model's own scenes are asked.

    A reasoning model's first token is often a fixed tag, which needs no image: compare more with
    --tokens. What is found is kept for each sample, so that the same command goes on after Ctrl-C.

    \b
    Examples:
      mvw calibrate vtw --tokens 64
      mvw calibrate vtw --images photos "What is shown?" --model llava-hf/llava-1.5-7b-hf
      mvw calibrate vtw --questions dev.jsonl --profile qwen2.5-vl-7b --eta 0.001 -o fast.yaml
    """
    from mvw_cli.cli.calibrate.output import deliver_outcome
    from mvw_cli.cli.calibrate.samples import searched
    from mvw_cli.cli.calibrate.task import Task
    from mvw_cli.errors import ExitCode

    task = Task(method="vtw", words=tuple(context.meta[ARGUMENTS]), **options)
    report = searched(task, {"tokens": tokens}, lambda work: _search(work, eta, first, tokens))
    if report is None:
        return ExitCode.INTERRUPTED
    layer = (report.outcome.withdrawal or {}).get("layer")
    description = f"vtw at layer {layer}, by mvw calibrate on {len(report.samples)} samples"
    return deliver_outcome(task, report, description, sections(report), [picture(report)])


def _search(work: Work, eta: float, first: int, tokens: int) -> Report:
    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.calibrate.report import Outcome
    from mvw_cli.calibrate.vtw import layer_divergences
    from mvw_cli.calibrate.vtw_curve import curve, search
    from mvw_cli.cli.calibrate.samples import Tick, measured, report_of
    from mvw_cli.engine.types import Request
    from mvw_cli.errors import UsageProblem

    layers = int(work.session.loaded.model.config.get_text_config().num_hidden_layers)
    if first >= layers:
        raise UsageProblem(
            f"--from {first}: there is no such layer to try",
            cause=f"the model has {layers} decoder layers, 0 to {layers - 1}",
            hint=f"mvw calibrate vtw --from {max(1, layers // 2)}",
        )

    def measure(request: Request, item: ItemSpec, tick: Tick) -> dict[str, Any]:
        found = layer_divergences(work.session, request, tokens=tokens, tick=tick)
        size = int(request.inputs["input_ids"].shape[1])
        vision = request.layout.vision_tokens
        return {"prompt_tokens": size, "vision_tokens": vision, **asdict(found)}

    samples = measured(work, "KL of every layer", measure)
    points = curve([sample["kl_nats"] for sample in samples], seed=work.task.seed)
    found = search(points, eta, first)
    remarks = list(found.remarks)
    if tokens == 1:
        remarks.append(
            "The published search looks at the first token alone, and says nothing of the rest of "
            "an answer: --tokens 64 looks further."
        )
    slow = next((sample["remark"] for sample in samples if sample["remark"]), None)
    if slow is not None:
        remarks.append(f"The layers were tried one by one, each with a prefill of its own: {slow}.")
    outcome = Outcome(
        curve=[asdict(point) for point in points],
        withdrawal=None if found.layer is None else {"policy": "vtw", "layer": found.layer},
        reason=found.reason,
        remarks=remarks,
    )
    return report_of(work, {"eta": eta, "from": first, "tokens": tokens}, samples, outcome)


def sections(report: Report) -> list[Section]:
    """Put a report into words."""
    from mvw_cli.render.sections import Section, Sentence, Table
    from mvw_cli.text import number, plural

    outcome = report.outcome
    chosen = (outcome.withdrawal or {}).get("layer")
    rows = []
    for point in outcome.curve:
        ends = point["interval_95"]
        interval = "-" if ends is None else f"[{number(ends[0])}, {number(ends[1])}]"
        mark = "chosen" if point["layer"] == chosen else "no vision at all"
        shown = mark if point["layer"] in (chosen, 0) else ""
        rows.append([str(point["layer"]), number(point["kl_nats"]), interval, shown])
    tokens = max(sample["tokens"] for sample in report.samples)
    of = "the first token" if tokens == 1 else f"the first {tokens} tokens"
    return [
        Section(
            "curve",
            "Vision gone before layer K",
            [
                Table(["K", "mean KL, nats", "95 % interval", ""], rows),
                Sentence(f"Of {of}, over {plural(len(report.samples), 'sample')}."),
            ],
        ),
        Section("outcome", "Outcome", [Sentence(outcome.reason, "verdict")]),
    ]


def picture(report: Report) -> Chart:
    """Draw KL against layer, with eta."""
    from mvw_cli.render.chart import Chart, Line

    eta = report.settings["eta"]
    points = report.outcome.curve
    floor = max(_FEW, min([eta, *(one["kl_nats"] for one in points if one["kl_nats"] > 0)]) / 10)
    tokens = report.settings["tokens"]
    compared = "the first token moves" if tokens == 1 else f"the first {tokens} tokens move"
    line = Line(
        "mean over the samples",
        1,
        [float(point["layer"]) for point in points],
        [max(floor, point["kl_nats"]) for point in points],
    )
    return Chart(
        "kl-by-layer",
        f"How far {compared} if vision leaves before layer K",
        "layer K",
        "KL divergence",
        "nats",
        f"KL of the answer's distribution from the full model's, by layer; eta is {eta:g}. "
        "Layer 0 is without any vision.",
        [line],
        reference=(f"eta = {eta:g}", eta),
        logarithmic=True,
    )
