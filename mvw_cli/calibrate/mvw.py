"""The search for policy `mvw`: the smallest m, or the earliest tag, that keeps the answers.

The rule is that of `mvw profile --suggest`. Between an m and a tag that both keep the answers, the
one with fewer tokens generated with vision is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers, Comparison
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.quality import answers as answering
from mvw_cli.bench.quality.comparisons import Given, Row, answers_match, compared
from mvw_cli.bench.quality.divergence import Divergence
from mvw_cli.bench.verdict.suggest import TAG_ARM, loss_of, suggest, suggest_tag
from mvw_cli.calibrate.search import CalibrationReport, Interrupted, Outcome, Search, SearchRun
from mvw_cli.engine.types import Request
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.render.chart import Chart, Line
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.text import count, number, percent, percents, plural

_ROW = ("given", "divergence")
"""Of a sample: every token of every answer. The report has their sums, the store has them whole."""
_FLOOR = 1e-9
"""Nats; where a curve is lower, its picture ends here."""


@dataclass
class MvwSearch(Search):
    """The options of `mvw calibrate mvw`."""

    method: ClassVar[str] = "mvw"
    doing: ClassVar[str] = "Comparing the answers, sample"

    moments: tuple[int, ...]
    tags: tuple[str, ...]
    tolerance: float
    """Share of the items, from 0 to 1."""
    _comparing: answering.Comparing | None = None

    def arms(self) -> dict[str, WithdrawalPolicy]:
        """Name the policies that are compared, the baseline first."""
        moments = {f"m={m}": Mvw(m=m) for m in sorted(self.moments)}
        tags = {f"{TAG_ARM}{tag}": Mvw(until=tag) for tag in self.tags}
        return {BASELINE: NoWithdrawal(), **moments, **tags}

    def settings(self) -> dict[str, Any]:
        return {**self.sample_settings(), "tolerance": self.tolerance}

    def sample_settings(self) -> dict[str, Any]:
        return {"m": sorted(self.moments), "tags": list(self.tags)}

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        if self._comparing is None:
            self._comparing = answering.Comparing(
                run.session,
                self.arms(),
                replace(run.session.settings, ignore_eos=False),
                progress=lambda place, arm: run.progress(f"Item {place}: {arm}", 0, 0),
                stopping=lambda: run.stopping(),
            )
        asked = replace(request, policy=NoWithdrawal(), settings=self._comparing.settings)
        try:
            row = answering.answer_item(self._comparing, run.items.index(item), asked, item)
        except answering.Stopped:
            raise Interrupted from None
        return {"reference": item.reference, **row_to_dict(row)}

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        rows = [row_from_dict(sample, sample["reference"]) for sample in samples]
        outcome = choose(rows, [*self.arms()][1:], self.tolerance)
        if self._comparing is not None:
            outcome.remarks.extend(self._comparing.remarks)
        return outcome

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        row = row_from_dict(sample, sample["reference"])
        rest = {name: value for name, value in sample.items() if name not in _ROW}
        return {**rest, "arms": row_in_short(row)}

    def describe(self, withdrawal: Mapping[str, Any]) -> str:
        m = withdrawal.get("m")
        return f"until {withdrawal['until']}" if m is None else f"m = {m}"

    def tables(self, report: CalibrationReport, *, whole: bool) -> list[Section]:
        columns = ["", "tokens with vision", "loss", "95 %", "right", "agreement", "KL, nats", ""]
        rows = [
            [
                point["arm"],
                number(point["tokens_with_vision"]),
                _or_dash(point["loss"], lambda loss: percent(max(0.0, loss))),
                _or_dash(point["loss_interval_95"], percents),
                _or_dash(point["correct"], count),
                _or_dash(point["agreement"], percent),
                _or_dash(point["kl_nats_mean"], number),
                "within" if point["within"] else "",
            ]
            for point in report.outcome.curve
        ]
        said = Sentence(f"Over {plural(len(report.samples), 'item')}.")
        title = "Withdrawn after m tokens, or at a tag"
        return [Section("curve", title, [Table(columns, rows), said])]

    def charts(self, report: CalibrationReport) -> list[Chart]:
        """Draw agreement and loss, and KL, against the tokens that are generated with vision."""
        arms = [one for one in report.outcome.curve if one["arm"] not in (BASELINE, NO_IMAGE)]
        lowest = min((one["kl_nats_mean"] for one in arms if one["kl_nats_mean"]), default=1)
        floor = max(_FLOOR, lowest)
        blind = [one["kl_nats_mean"] for one in report.outcome.curve if one["arm"] == NO_IMAGE]
        control = ("no image", max(floor, blind[0])) if blind else None
        label = "tokens generated with vision, mean"
        return [
            Chart(
                "answers-by-m",
                "What withdrawal after m tokens leaves of the answers",
                label,
                "part of the answers or tokens",
                "%",
                "The part of the next tokens that stay the likeliest, and the part of the answers "
                "that are not lost.",
                [
                    *_lines(arms, "next tokens that agree", 1, lambda one: 100 * one["agreement"]),
                    *_lines(arms, "answers kept", 2, lambda one: 100 * min(1, 1 - one["loss"])),
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
                reference=control,
                logarithmic=True,
            ),
        ]


def _or_dash(value: Any, write: Callable[[Any], str]) -> str:
    return "-" if value is None else write(value)


def _lines(
    arms: list[dict[str, Any]], name: str, colour: int, read: Callable[[dict[str, Any]], float]
) -> list[Line]:
    """Make a line of the m, and a dot of each tag."""
    counted = [one for one in arms if not one["arm"].startswith(TAG_ARM)]
    counted.sort(key=lambda one: one["tokens_with_vision"])
    xs = [one["tokens_with_vision"] for one in counted]
    lines = [Line(name, colour, xs, [read(one) for one in counted])] if counted else []
    tags = [one for one in arms if one["arm"].startswith(TAG_ARM)]
    for place, one in enumerate(tags, start=3):
        shown = one["arm"] if name == "m" else f"{name}, {one['arm']}"
        lines.append(Line(shown, place, [one["tokens_with_vision"]], [read(one)]))
    return lines


# -- rows as plain data -------------------------------------------------------------------------


def row_to_dict(row: Row) -> dict[str, Any]:
    """Write what was found of one item as plain data."""
    return {
        "given": {arm: asdict(given) for arm, given in row.given.items()},
        "divergence": {arm: asdict(found) for arm, found in row.divergence.items()},
    }


def row_from_dict(values: Mapping[str, Any], reference: str | None) -> Row:
    """Read a row; whether its answers are right is judged afresh."""
    given = {arm: given_from_dict(one, reference) for arm, one in values["given"].items()}
    found = {arm: Divergence(**one) for arm, one in values["divergence"].items()}
    return Row(given, found, reference is not None)


def given_from_dict(values: Mapping[str, Any], reference: str | None) -> Given:
    """Read an answer, and judge it."""
    return Given(
        token_ids=tuple(values["token_ids"]),
        answer=values["answer"],
        seconds=values["seconds"],
        correct=None if reference is None else answers_match(values["answer"], reference),
    )


def row_in_short(row: Row) -> dict[str, Any]:
    """Return of one item what a reader of the report wants, by arm."""
    told = {}
    for arm, given in row.given.items():
        found = row.divergence.get(arm)
        told[arm] = {
            "answer": given.answer,
            "correct": given.correct,
            "generated_tokens": len(given.token_ids),
            "tokens_with_vision": _seen(row, arm),
            "agreement": None if found is None else fmean(found.agrees),
            "kl_nats": None if found is None else found.mean_kl_nats,
        }
    return told


# -- the rule -----------------------------------------------------------------------------------


def answers_of(rows: Sequence[Row], arms: Sequence[str]) -> Answers:
    """Sum up the rows, in the order of the arms; the control comes last, where all rows have it."""
    control = [NO_IMAGE] if all(NO_IMAGE in row.given for row in rows) else []
    return Answers(
        items=len(rows),
        references=sum(row.referenced for row in rows),
        arms=[compared(name, rows) for name in (BASELINE, *arms, *control)],
    )


def seen_tokens(rows: Sequence[Row], arm: str) -> float:
    """Mean number of tokens generated with vision, along the answers without withdrawal."""
    return fmean(_seen(row, arm) for row in rows)


def _seen(row: Row, arm: str) -> int:
    whole = len(row.given[BASELINE].token_ids)
    at = None if arm in (BASELINE, NO_IMAGE) else row.divergence[arm].withdrawn_after
    return 0 if arm == NO_IMAGE else whole if at is None else at


def choose(rows: Sequence[Row], arms: Sequence[str], tolerance: float) -> Outcome:
    """Choose among the arms.

    Args:
        arms: without baseline and control.
        tolerance: share of the items, from 0 to 1.
    """
    answers = answers_of(rows, arms)
    seen = {arm.name: seen_tokens(rows, arm.name) for arm in answers.arms}
    found: list[tuple[float, dict[str, Any], str]] = []
    refusals = []
    if any(not arm.startswith(TAG_ARM) for arm in arms):
        m, reason = suggest(answers, tolerance)
        if m is not None:
            found.append((seen[f"m={m}"], {"policy": "mvw", "m": m}, reason))
        refusals.append(reason)
    if any(arm.startswith(TAG_ARM) for arm in arms):
        tag, reason = suggest_tag(answers, tolerance, seen)
        if tag is not None:
            found.append((seen[f"{TAG_ARM}{tag}"], {"policy": "mvw", "until": tag}, reason))
        refusals.append(reason)
    curve = [_point(answers, arm, seen[arm.name], tolerance) for arm in answers.arms]
    if not found:
        return Outcome(curve, None, " ".join(dict.fromkeys(refusals)))
    found.sort(key=lambda one: one[0])
    before, withdrawal, reason = found[0]
    remarks = []
    if len(found) > 1:
        other = found[1][1]
        word = f"m = {other['m']}" if "m" in other else f"until {other['until']}"
        remarks.append(
            f"{word} keeps the answers as well, with {found[1][0]:.1f} tokens generated with "
            f"vision instead of {before:.1f}."
        )
    return Outcome(curve, withdrawal, reason, remarks)


def _point(answers: Answers, arm: Comparison, seen: float, tolerance: float) -> dict[str, Any]:
    """Write the figures of one arm."""
    loss = None if arm.name == BASELINE else loss_of(answers, arm.name)
    return {
        "arm": arm.name,
        "tokens_with_vision": seen,
        "loss": None if loss is None else loss.share,
        "loss_interval_95": None if loss is None else loss.interval_95,
        "within": None if loss is None else loss.share <= tolerance,
        "correct": arm.correct,
        "same_answer": arm.same_answer,
        "agreement": arm.agreement,
        "agreement_interval_95": arm.agreement_interval_95,
        "kl_nats_median": None if arm.kl_nats is None else arm.kl_nats.median,
        "kl_nats_mean": None if arm.kl_nats is None else fmean(arm.kl_nats.samples),
        "generated_tokens_median": arm.generated_tokens.median,
    }
