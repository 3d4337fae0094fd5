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
from itertools import takewhile
from statistics import fmean, quantiles
from typing import Any, ClassVar

from mvw_cli.bench.documents import BASELINE, NO_IMAGE
from mvw_cli.bench.measure.items import ItemSpec, ask
from mvw_cli.bench.quality.answers import (
    Unanswerable,
    agreement,
    agreement_interval,
    without_image,
)
from mvw_cli.bench.quality.divergence import Divergence, Tick, divergences
from mvw_cli.calibrate.mvw import NO_CONTROL, Loss, loss_of
from mvw_cli.calibrate.search import Column, Outcome, Search, SearchRun, answered, cell
from mvw_cli.engine.types import Finished, Request
from mvw_cli.errors import UsageProblem
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policy import Decide, Signals, StepView, WithdrawalPolicy
from mvw_cli.render.chart import Chart, Line
from mvw_cli.session import Session
from mvw_cli.text import number, percent, percents

CANDIDATES = 12
"""Thresholds that are tried where the user names none."""
_ARM = "mass"


@dataclass(frozen=True)
class MassSearch(Search):
    """The options of `mvw calibrate mass`."""

    doing: ClassVar[str] = "Recording the mass, sample"
    measured_by: ClassVar[tuple[str, ...]] = ("patience", "smoothing")
    title: ClassVar[str] = "Withdrawn at a mass under the threshold"
    columns: ClassVar[Sequence[Column]] = (
        ("threshold", cell("threshold", lambda threshold: f"{threshold:g}")),
        ("withdrawn", cell("withdrawn", percent)),
        ("tokens with vision", cell("tokens_with_vision", lambda tokens: f"{tokens:.1f}")),
        ("of", cell("tokens", lambda tokens: f"{tokens:.1f}")),
        ("agreement", cell("agreement", percent)),
        ("95 %", cell("agreement_interval_95", percents)),
        ("KL, nats", cell("kl_nats_mean", number)),
    )

    thresholds: tuple[float, ...] | None
    tolerance: float
    patience: int
    smoothing: float

    def policy(self, threshold: float = 1.0) -> Mass:
        """Make the policy with a threshold."""
        return Mass(threshold=threshold, patience=self.patience, smoothing=self.smoothing)

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        finished, mass = record(run.session, request, self.policy(), run.tick)
        answer = run.session.parse(finished.text).answer
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
        lengths = [len(sample["token_ids"]) for sample in samples]
        found: list[dict[str, Divergence]] = []
        for place, sample in enumerate(samples, start=1):
            run.progress("Reading the answers with withdrawals, sample", place, len(samples))
            found.append(self._read_along(run, sample, tried))
        points = curve(found, lengths, tried, self.tolerance)
        controls = [one[NO_IMAGE] for one in found if NO_IMAGE in one]
        blind = agreement(controls) if len(controls) == len(found) else None
        reason = refusal(points, blind, self.tolerance)
        remarks: list[str] = []
        for point in [] if reason else qualifying(points):
            loss = self._loss(run, samples, point["threshold"])
            if loss.share <= self.tolerance:
                point["chosen"] = True
                control = "" if blind is None else f" ({percent(blind)} without any image)"
                reason = (
                    f"With a threshold of {point['threshold']:g}, {percent(point['agreement'])} of "
                    f"the next tokens stay the likeliest{control}, and {loss}; vision goes after "
                    f"{point['tokens_with_vision']:.0f} of {point['tokens']:.0f} tokens, in "
                    f"{percent(point['withdrawn'])} of the answers."
                )
                break
            remarks.append(f"A threshold of {point['threshold']:g} is too high: {loss}.")
        chosen = next((one["threshold"] for one in points if one.get("chosen")), None)
        withdrawal = None
        if chosen is not None:
            names = {name: getattr(self, name) for name in self.measured_by}
            withdrawal = {"policy": "mass", "threshold": chosen, **names}
        if blind is None:
            remarks.append(NO_CONTROL)
        reason = reason or "No threshold that keeps the next tokens keeps the answers."
        return Outcome(points, withdrawal, reason, remarks, {"blind_agreement": blind})

    def _read_along(
        self, run: SearchRun, sample: dict[str, Any], thresholds: Sequence[float]
    ) -> dict[str, Divergence]:
        """Read an answer with the vision withdrawn wherever one of the thresholds would.

        Returns:
            By threshold, and `no image` where the question can be asked so.
        """
        run.tick()
        steps = {one: withdrawn_after(self.policy(one), sample["mass"]) for one in thresholds}
        wanted = {str(step) for step in steps.values() if step is not None} | {NO_IMAGE}
        names = {name: f"{sample['key']}@{name}" for name in sorted(wanted)}
        missing = [name for name, key in names.items() if run.store.get(key) is None]
        if missing:
            item = run.items[sample["number"] - 1]
            request = ask(run.session, item, run.session.settings)
            arms = {
                one: replace(request, policy=Mvw(m=int(one))) for one in missing if one != NO_IMAGE
            }
            if NO_IMAGE in missing:
                try:
                    control = without_image(run.session, item.question, run.session.settings)
                    arms[NO_IMAGE] = control
                except Unanswerable:
                    run.store.put(names[NO_IMAGE], kl_nats=None)
            read = divergences(
                run.session, request, [*arms.values()], sample["token_ids"], tick=run.tick
            )
            for name, divergence in zip(arms, read, strict=True):
                run.store.put(names[name], **asdict(divergence))
        kept = {name: run.store.get(key) or {} for name, key in names.items()}
        at = {
            name: Divergence(one["kl_nats"], one["agrees"], one["withdrawn_after"])
            for name, one in kept.items()
            if one["kl_nats"] is not None
        }
        length = len(sample["token_ids"])
        never = Divergence([0.0] * length, [True] * length, None)
        told = {str(one): at.get(str(step), never) for one, step in steps.items()}
        return {**told, NO_IMAGE: at[NO_IMAGE]} if NO_IMAGE in at else told

    def _loss(self, run: SearchRun, samples: Sequence[dict[str, Any]], threshold: float) -> Loss:
        """Answer every item under a threshold; return what its answers lose."""
        pairs = []
        for place, sample in enumerate(samples, start=1):
            run.tick()
            doing = f"Answering at a threshold of {threshold:g}, sample"
            run.progress(doing, place, len(samples))
            item = run.items[sample["number"] - 1]
            key = f"{sample['key']}@answer {threshold!r}"
            own = run.store.get(key)
            if own is None:
                own = run.store.put(key, **answer(run, item, self.policy(threshold)))
            given = {BASELINE: sample, _ARM: own}
            pairs.append({"given": given, "reference": item.reference})
        return loss_of(pairs, _ARM)

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in sample.items() if name != "token_ids"}
        return {**rest, "mass": [None if one is None else round(one, 5) for one in sample["mass"]]}

    def charts(self, outcome: Outcome) -> list[Chart]:
        """Draw agreement, and what is generated with vision, against the threshold."""
        points, blind = outcome.curve, outcome.figures["blind_agreement"]
        xs = [point["threshold"] for point in points]
        agrees = [100 * point["agreement"] for point in points]
        shares = [100 * point["tokens_with_vision"] / point["tokens"] for point in points]
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
                    Line("next tokens that agree", 1, xs, agrees),
                    Line("generated with vision", 2, xs, shares),
                ],
                reference=None if blind is None else ("agreement without an image", 100 * blind),
            )
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
    settings = replace(run.session.settings, ignore_eos=False)
    request = replace(ask(run.session, item, settings), policy=policy)
    finished = answered(run.session, request, run.tick)
    said = run.session.parse(finished.text).answer
    return {"token_ids": finished.token_ids, "answer": said}


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


def curve(
    found: Sequence[Mapping[str, Divergence]],
    lengths: Sequence[int],
    thresholds: Sequence[float],
    tolerance: float,
) -> list[dict[str, Any]]:
    """Sum up each threshold over all samples.

    Args:
        found: of each sample, what each threshold changes along its answer.
        lengths: of these answers, in tokens.

    Returns:
        By threshold, the part of the answers in which it withdraws (`withdrawn`), the tokens that
        are generated with vision of all `tokens`, mean over the answers, and the agreement.
    """
    points = []
    for threshold in thresholds:
        own = [one[str(threshold)] for one in found]
        share = agreement(own)
        seen = [
            length if one.withdrawn_after is None else one.withdrawn_after
            for one, length in zip(own, lengths, strict=True)
        ]
        points.append(
            {
                "threshold": threshold,
                "withdrawn": fmean(one.withdrawn_after is not None for one in own),
                "tokens_with_vision": fmean(seen),
                "tokens": fmean(lengths),
                "agreement": share,
                "agreement_interval_95": agreement_interval(own),
                "kl_nats_mean": fmean(one.mean_kl_nats for one in own),
                "within": share >= 1 - tolerance,
            }
        )
    return points


def qualifying(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the thresholds that may be chosen, the highest first.

    One qualifies where it and every lower one keep the tolerance, and it withdraws anywhere.
    """
    good = list(takewhile(lambda point: point["within"], points))
    return [point for point in reversed(good) if point["withdrawn"] > 0]


def refusal(points: Sequence[dict[str, Any]], blind: float | None, tolerance: float) -> str | None:
    """Explain why no threshold can be chosen, as far as agreement tells; None where one can."""
    if blind is not None and blind >= 1 - tolerance:
        return (
            f"Without any image {percent(blind)} of the next tokens stay the likeliest: these "
            "answers hardly need their images, so they can't tell when an image may go."
        )
    lowest = points[0]
    if not lowest["within"]:
        return (
            f"Even at a threshold of {lowest['threshold']:g}, the lowest that was tried, only "
            f"{percent(lowest['agreement'])} of the next tokens stay the likeliest, less than "
            f"{percent(1 - tolerance)}."
        )
    if not qualifying(points):
        return "No threshold that keeps the tolerance withdraws in any answer."
    return None
