"""The search for policy `mvw`: the smallest m, or the earliest tag, that keeps the answers.

Between an m and a tag that both keep the answers, the one with fewer tokens generated with vision
is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers, Comparison
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.quality import answers as answering
from mvw_cli.bench.quality.answers import Given, Row, answers_match, compared
from mvw_cli.bench.quality.divergence import Divergence
from mvw_cli.bench.verdict.suggest import TAG_ARM, loss_of, suggest, suggest_tag
from mvw_cli.calibrate.search import CalibrationReport, Column, Outcome, Search, SearchRun, cell
from mvw_cli.engine.types import Request
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.render.chart import Chart, Line
from mvw_cli.text import count, number, percent, percents

_ROW = ("given", "divergence", "referenced")
"""Of a sample: every token of every answer. The report has their sums, the store has them whole."""
_FLOOR = 1e-9
"""Nats; where a curve is lower, its picture ends here."""


@dataclass
class MvwSearch(Search):
    """The options of `mvw calibrate mvw`."""

    doing: ClassVar[str] = "Comparing the answers, sample"
    title: ClassVar[str] = "Withdrawn after m tokens, or at a tag"
    key: ClassVar[str] = "arm"
    columns: ClassVar[Sequence[Column]] = (
        ("", cell("arm", str)),
        ("tokens with vision", cell("tokens_with_vision", number)),
        ("loss", cell("loss", lambda loss: percent(max(0.0, loss)))),
        ("95 %", cell("loss_interval_95", percents)),
        ("right", cell("correct", count)),
        ("agreement", cell("agreement", percent)),
        ("KL, nats", cell("kl_nats_mean", number)),
    )

    moments: tuple[int, ...]
    tags: tuple[str, ...] | None
    tolerance: float
    """Share of the items, from 0 to 1."""
    _comparing: answering.Comparing | None = None

    def arms(self) -> dict[str, WithdrawalPolicy]:
        """Name the policies that are compared, the baseline first."""
        moments = {f"m={m}": Mvw(m=m) for m in sorted(self.moments)}
        tags = {f"{TAG_ARM}{tag}": Mvw(until=tag) for tag in self.tags or ()}
        return {BASELINE: NoWithdrawal(), **moments, **tags}

    def settings(self) -> dict[str, Any]:
        return {**self.sample_settings(), "tolerance": self.tolerance}

    def sample_settings(self) -> dict[str, Any]:
        return {"m": sorted(self.moments), "tags": list(self.tags or ())}

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        if self._comparing is None:
            self._comparing = run.comparing(self.arms())
        asked = replace(request, policy=NoWithdrawal(), settings=self._comparing.settings)
        row = answering.answer_item(self._comparing, run.items.index(item), asked, item)
        return {"reference": item.reference, **asdict(row)}

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        rows = [row_from_dict(sample, sample["reference"]) for sample in samples]
        outcome = choose(rows, [*self.arms()][1:], self.tolerance)
        if self._comparing is not None:
            outcome.remarks.extend(self._comparing.remarks)
        return outcome

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return of a sample what a reader of the report wants, by arm."""
        row = row_from_dict(sample, sample["reference"])
        arms = {}
        for arm, given in row.given.items():
            found = row.divergence.get(arm)
            arms[arm] = {
                "answer": given.answer,
                "correct": given.correct,
                "generated_tokens": len(given.token_ids),
                "tokens_with_vision": _seen(row, arm),
                "agreement": None if found is None else fmean(found.agrees),
                "kl_nats": None if found is None else found.mean_kl_nats,
            }
        return {**{name: sample[name] for name in sample if name not in _ROW}, "arms": arms}

    def describe(self, withdrawal: Mapping[str, Any]) -> str:
        return _named(withdrawal)

    def chosen(self, withdrawal: Mapping[str, Any]) -> object:
        return f"m={withdrawal['m']}" if "m" in withdrawal else _named(withdrawal)

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


def _named(withdrawal: Mapping[str, Any]) -> str:
    return f"m = {withdrawal['m']}" if "m" in withdrawal else f"{TAG_ARM}{withdrawal.get('until')}"


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
        remarks.append(
            f"{_named(found[1][1])} keeps the answers as well, with {found[1][0]:.1f} tokens "
            f"generated with vision instead of {before:.1f}."
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
