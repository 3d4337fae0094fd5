"""The search for the threshold of policy `mass`.

An answer is generated once without withdrawal, and the vision attention mass that the policy would
have seen after each token is kept. Up to its withdrawal the policy sees just that, so that where
any threshold would withdraw follows without running the model again: the policy itself is asked,
over the kept masses. What a withdrawal there changes is read along the same answer by teacher
forcing; thresholds that keep the tolerance there are tried for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, quantiles
from time import perf_counter
from typing import Any, ClassVar

from mvw_cli.bench.documents import BASELINE
from mvw_cli.bench.measure.items import ItemSpec, ask
from mvw_cli.bench.quality.answers import (
    Row,
    Unanswerable,
    agreement,
    agreement_interval,
    without_image,
)
from mvw_cli.bench.quality.divergence import Divergence, Tick, divergences
from mvw_cli.bench.verdict.suggest import Loss, loss_of
from mvw_cli.calibrate.mvw import answers_of, given_from_dict
from mvw_cli.calibrate.search import (
    CalibrationReport,
    Column,
    Outcome,
    Search,
    SearchRun,
    answered,
    cell,
)
from mvw_cli.engine.types import Finished, Request
from mvw_cli.errors import UsageProblem
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import Decide, Signals, StepView, WithdrawalPolicy
from mvw_cli.render.chart import Chart, Line
from mvw_cli.session import Session
from mvw_cli.text import number, percent, percents

CONTROL = "no image"
CANDIDATES = 12
"""Thresholds that are tried where the user names none."""
_ARM = "mass"


@dataclass(frozen=True)
class MassSearch(Search):
    """The options of `mvw calibrate mass`."""

    doing: ClassVar[str] = "Recording the mass, sample"
    title: ClassVar[str] = "Withdrawn at a mass under the threshold"
    key: ClassVar[str] = "threshold"
    columns: ClassVar[Sequence[Column]] = (
        ("threshold", cell("threshold", lambda threshold: f"{threshold:g}")),
        ("withdrawn", cell("withdrawn", percent)),
        (
            "tokens with vision",
            lambda one: f"{one['tokens_with_vision']:.1f} of {one['tokens']:.1f}",
        ),
        ("agreement", cell("agreement", percent)),
        ("95 %", cell("agreement_interval_95", percents)),
        ("KL, nats", cell("kl_nats_mean", number)),
    )

    thresholds: tuple[float, ...] | None
    tolerance: float
    patience: int
    smoothing: float

    @property
    def policy(self) -> Mass:
        """The policy, whatever its threshold."""
        return Mass(threshold=1.0, patience=self.patience, smoothing=self.smoothing)

    def settings(self) -> dict[str, Any]:
        given = None if self.thresholds is None else list(self.thresholds)
        return {"thresholds": given, "tolerance": self.tolerance, **self.sample_settings()}

    def sample_settings(self) -> dict[str, Any]:
        return {"patience": self.patience, "smoothing": self.smoothing}

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        finished, mass = record(run.session, request, self.policy, run.tick)
        answer = run.session.adapter.parse(finished.text).answer
        return {"answer": answer, "token_ids": finished.token_ids, "mass": mass}

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        known = [mass for one in samples for mass in one["mass"] if mass is not None]
        if not known:
            raise UsageProblem(
                "No attention mass was seen",
                cause="every answer ended with its first token, before any policy is asked",
                hint="mvw calibrate mass --max-new-tokens 512",
            )
        tried = sorted(self.thresholds or candidates(known))
        traces = []
        for place, sample in enumerate(samples, start=1):
            run.progress("Reading the answers with withdrawals, sample", place, len(samples))
            traces.append(self._trace(run, sample, tried))
        points = curve(traces, self.policy, tried, self.tolerance)
        blind = blind_agreement(traces)
        chosen, reason, remarks = self._tried_for_real(run, samples, traces, points, blind)
        if blind is None:
            remarks.append(
                "There was no control without an image to show that the image is needed."
            )
        withdrawal = None
        if chosen is not None:
            withdrawal = {"policy": "mass", "threshold": chosen, **self.sample_settings()}
        figures = {"blind_agreement": blind}
        return Outcome([asdict(point) for point in points], withdrawal, reason, remarks, figures)

    def _trace(self, run: SearchRun, sample: dict[str, Any], thresholds: Sequence[float]) -> Traced:
        """Read an answer with the vision withdrawn wherever one of the thresholds would."""
        run.tick()
        item = run.items[sample["number"] - 1]
        moments = {
            withdrawn_after(replace(self.policy, threshold=one), sample["mass"])
            for one in thresholds
        }
        steps = sorted(step for step in moments if step is not None)
        names = {name: f"{sample['key']}@{name}" for name in (*map(str, steps), CONTROL)}
        missing = [name for name, key in names.items() if run.store.get(key) is None]
        if missing:
            request = ask(run.session, item, run.session.settings)
            control = _without_image(run, item) if CONTROL in missing else None
            steps = [int(name) for name in missing if name != CONTROL]
            ids = sample["token_ids"]
            found = divergences_at(run.session, request, ids, steps, control, run.tick)
            for name in missing:
                divergence = found.get(name)
                kept = {"kl_nats": None} if divergence is None else asdict(divergence)
                run.store.put(names[name], kept)
        kept = {name: run.store.get(key) for name, key in names.items()}
        at = {
            name: Divergence(one["kl_nats"], one["agrees"], one["withdrawn_after"])
            for name, one in kept.items()
            if one is not None and one["kl_nats"] is not None
        }
        return Traced(len(sample["token_ids"]), sample["mass"], at)

    def _tried_for_real(
        self,
        run: SearchRun,
        samples: Sequence[dict[str, Any]],
        traces: Sequence[Traced],
        points: Sequence[ThresholdPoint],
        blind: float | None,
    ) -> tuple[float | None, str, list[str]]:
        """Answer every item under the thresholds that qualify, the highest first.

        Returns:
            The first that keeps the answers, why it or why none, and which do not.
        """
        remarks: list[str] = []
        refused = refusal(points, blind, self.tolerance)
        if refused is not None:
            return None, refused, remarks
        for point in qualifying(points):
            loss = self._loss(run, samples, traces, point.threshold)
            if loss.share <= self.tolerance:
                reason = (
                    f"With a threshold of {point.threshold:g}, "
                    f"{percent(point.agreement)} of the next tokens stay the likeliest, and "
                    f"{loss}; vision goes after {point.tokens_with_vision:.0f} of "
                    f"{point.tokens:.0f} tokens, in {percent(point.withdrawn)} of the answers."
                )
                return point.threshold, reason, remarks
            remarks.append(f"A threshold of {point.threshold:g} is too high: {loss}.")
        return None, "No threshold that keeps the next tokens keeps the answers.", remarks

    def _loss(
        self,
        run: SearchRun,
        samples: Sequence[dict[str, Any]],
        traces: Sequence[Traced],
        threshold: float,
    ) -> Loss:
        """Answer every item under a threshold; return the loss."""
        policy = replace(self.policy, threshold=threshold)
        rows = []
        for place, (sample, trace) in enumerate(zip(samples, traces, strict=True), start=1):
            run.tick()
            doing = f"Answering at a threshold of {threshold:g}, sample"
            run.progress(doing, place, len(samples))
            item = run.items[sample["number"] - 1]
            key = f"{sample['key']}@answer {threshold!r}"
            own = run.store.get(key) or run.store.put(key, answer(run, item, policy))
            given = {
                name: given_from_dict(one, item.reference)
                for name, one in ((BASELINE, sample), (_ARM, own))
            }
            rows.append(Row(given, {_ARM: trace.under(policy)}, item.reference is not None))
        return loss_of(answers_of(rows, [_ARM]), _ARM)

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in sample.items() if name != "token_ids"}
        return {**rest, "mass": [None if one is None else round(one, 5) for one in sample["mass"]]}

    def describe(self, withdrawal: Mapping[str, Any]) -> str:
        return f"mass under {withdrawal['threshold']}"

    def remark(self, report: CalibrationReport) -> str:
        blind = report.outcome.figures["blind_agreement"]
        return "" if blind is None else f"Without any image the agreement is {percent(blind)}."

    def charts(self, report: CalibrationReport) -> list[Chart]:
        """Draw agreement against the threshold, and the mass along the answers."""
        points = report.outcome.curve
        xs = [point["threshold"] for point in points]
        blind = report.outcome.figures["blind_agreement"]
        shares = [100 * point["tokens_with_vision"] / point["tokens"] for point in points]
        longest = max(len(sample["mass"]) for sample in report.samples)
        told = []
        for place in range(longest):
            values = [one["mass"][place] for one in report.samples if place < len(one["mass"])]
            known = [value for value in values if value is not None]
            if known:
                told.append((float(place + 1), 100 * fmean(known)))
        chosen = (report.outcome.withdrawal or {}).get("threshold")
        return [
            Chart(
                "agreement-by-threshold",
                "What a threshold of the mass leaves, and what it lets go",
                "threshold",
                "part of the tokens",
                "%",
                "The part of the next tokens that stay the likeliest, and the part of the tokens "
                "that are generated with vision.",
                [
                    Line(
                        "next tokens that agree", 1, xs, [100 * one["agreement"] for one in points]
                    ),
                    Line("generated with vision", 2, xs, shares),
                ],
                reference=None if blind is None else ("agreement without an image", 100 * blind),
            ),
            Chart(
                "mass-along-answer",
                "Vision attention mass along the answers",
                "generated tokens",
                "mass",
                "%",
                "What the policy sees after each token: mean over the answers that are so long.",
                [Line("mean over the answers", 1, [x for x, _ in told], [y for _, y in told])],
                reference=None if chosen is None else (f"threshold {chosen:g}", 100 * chosen),
            ),
        ]


# -- running the model --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Watching(WithdrawalPolicy):
    """See what another policy would see, and withdraw nothing."""

    name: ClassVar[str] = "watching"

    like: Mass
    seen: list[float | None] = field(default_factory=list)

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return self.like.signals(layers)

    def begin(self) -> Decide:
        return lambda view: self.seen.append(view.mass)


def record(
    session: Session, request: Request, like: Mass, tick: Tick
) -> tuple[Finished, list[float | None]]:
    """Answer a request without withdrawal, and keep the mass after each token.

    Args:
        like: whose layers are watched.

    Returns:
        The answer, and the masses: none after the last token, which no policy is asked about.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
    """
    watching = _Watching(like)
    settings = replace(request.settings, ignore_eos=False)
    finished = answered(session, replace(request, policy=watching, settings=settings), tick)
    return finished, watching.seen


def answer(run: SearchRun, item: ItemSpec, policy: Mass) -> dict[str, Any]:
    """Answer an item under a policy."""
    start = perf_counter()
    settings = replace(run.session.settings, ignore_eos=False)
    request = replace(ask(run.session, item, settings), policy=policy)
    finished = answered(run.session, request, run.tick)
    return {
        "token_ids": finished.token_ids,
        "answer": run.session.adapter.parse(finished.text).answer,
        "seconds": perf_counter() - start,
    }


def divergences_at(
    session: Session,
    request: Request,
    token_ids: Sequence[int],
    steps: Sequence[int],
    control: Request | None,
    tick: Tick,
) -> dict[str, Divergence]:
    """Read an answer with the vision withdrawn after each of some steps.

    Args:
        control: the same question without its image, which is read as well.

    Returns:
        By step, and `no image`.
    """
    base = replace(request, policy=NoWithdrawal())
    arms = {str(step): replace(request, policy=Mvw(m=step)) for step in steps}
    if control is not None:
        arms[CONTROL] = control
    found = divergences(session, base, list(arms.values()), token_ids, tick=tick)
    return dict(zip(arms, found, strict=True))


def _without_image(run: SearchRun, item: ItemSpec) -> Request | None:
    """Ask an item's question without its image; None where that can't be."""
    try:
        return without_image(run.session, item.question, run.session.settings)
    except Unanswerable:
        return None


# -- from masses to a threshold -----------------------------------------------------------------


def withdrawn_after(policy: Mass, mass: Sequence[float | None]) -> int | None:
    """Return the token after which a policy would withdraw that sees these masses; None: never."""
    decide = policy.begin()
    for step, value in enumerate(mass, start=1):
        if decide(StepView(step=step, token_ids=(), text="", mass=value)) is not None:
            return step
    return None


def candidates(masses: Sequence[float], count: int = CANDIDATES) -> list[float]:
    """Choose thresholds to try: quantiles of one mass or more, with three digits."""
    several = len(masses) > 1
    cuts = quantiles(masses, n=count + 1, method="inclusive") if several else masses
    rounded = {min(1.0, float(f"{cut:.3g}")) for cut in cuts}
    return sorted(one for one in rounded if one > 0)


@dataclass(frozen=True, slots=True)
class Traced:
    """One sample: its answer without withdrawal, and what withdrawals in it change."""

    tokens: int
    mass: list[float | None]
    at: Mapping[str, Divergence]
    """As `divergences_at` returns it."""

    def under(self, policy: Mass) -> Divergence:
        """What the policy changes along the answer; nothing where it never withdraws."""
        step = withdrawn_after(policy, self.mass)
        if step is None:
            return Divergence([0.0] * self.tokens, [True] * self.tokens, None)
        return self.at[str(step)]


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """One threshold over all samples."""

    threshold: float
    withdrawn: float
    """Part of the answers in which it withdraws."""
    tokens_with_vision: float
    """Mean number of tokens generated with vision; all of them where it does not withdraw."""
    tokens: float
    """Mean length of an answer."""
    agreement: float
    agreement_interval_95: tuple[float, float] | None
    kl_nats_mean: float
    within: bool


def curve(
    samples: Sequence[Traced], like: Mass, thresholds: Sequence[float], tolerance: float
) -> list[ThresholdPoint]:
    """Sum up each threshold, in ascending order."""
    points = []
    for threshold in sorted(thresholds):
        found = [one.under(replace(like, threshold=threshold)) for one in samples]
        share = agreement(found)
        seen = [
            one.tokens if own.withdrawn_after is None else own.withdrawn_after
            for one, own in zip(samples, found, strict=True)
        ]
        points.append(
            ThresholdPoint(
                threshold=threshold,
                withdrawn=fmean(own.withdrawn_after is not None for own in found),
                tokens_with_vision=fmean(seen),
                tokens=fmean(one.tokens for one in samples),
                agreement=share,
                agreement_interval_95=agreement_interval(found),
                kl_nats_mean=fmean(own.mean_kl_nats for own in found),
                within=share >= 1 - tolerance,
            )
        )
    return points


def blind_agreement(samples: Sequence[Traced]) -> float | None:
    """Agreement without any image; None where not every sample could be asked so."""
    found = [one.at.get(CONTROL) for one in samples]
    known = [one for one in found if one is not None]
    return agreement(known) if len(known) == len(found) else None


def qualifying(points: Sequence[ThresholdPoint]) -> list[ThresholdPoint]:
    """The thresholds that may be chosen, the highest first.

    One qualifies where it and every lower one keep the tolerance, and it withdraws anywhere.
    """
    good = []
    for point in points:
        if not point.within:
            break
        good.append(point)
    return [point for point in reversed(good) if point.withdrawn > 0]


def refusal(points: Sequence[ThresholdPoint], blind: float | None, tolerance: float) -> str | None:
    """Explain why no threshold can be chosen, as far as agreement tells; None where one can."""
    if blind is not None and blind >= 1 - tolerance:
        return (
            f"Without any image {percent(blind)} of the next tokens stay the likeliest: these "
            "answers hardly need their images, so they can't tell when an image may go."
        )
    lowest = points[0]
    if not lowest.within:
        return (
            f"Even at a threshold of {lowest.threshold:g}, the lowest that was tried, only "
            f"{percent(lowest.agreement)} of the next tokens stay the likeliest, less than "
            f"{percent(1 - tolerance)}."
        )
    if not qualifying(points):
        return "No threshold that keeps the tolerance withdraws in any answer."
    return None
