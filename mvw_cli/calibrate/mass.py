"""The search for the threshold of policy `mass`.

An answer is generated once without withdrawal, and the vision attention mass that the policy would
have seen after each token is kept. Up to its withdrawal the policy sees just that, so that where
any threshold would withdraw follows without running the model again: the policy itself is asked,
over the kept masses. What a withdrawal there changes is read along the same answer by teacher
forcing.

It does not know where samples come from, nor who looks at the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.bench.quality.comparisons import agreement, agreement_interval
from mvw_cli.bench.quality.divergence import Divergence, divergences
from mvw_cli.engine.types import Finished, Request
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import Decide, Signals, StepView, WithdrawalPolicy

if TYPE_CHECKING:
    from mvw_cli.session import Session

Tick = Callable[[], None]
"""Called before every token; what it raises ends the measurement."""
BLIND = "no image"
CANDIDATES = 12
"""Thresholds that are tried where the user names none."""


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


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answer without withdrawal."""

    token_ids: tuple[int, ...]
    text: str
    mass: list[float | None]
    """After each token but the last, which no policy is asked about."""


def record(session: Session, request: Request, like: Mass, tick: Tick) -> Recorded:
    """Answer a request without withdrawal, and keep the mass after each token.

    Args:
        like: whose layers are watched.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
        ValueError: there are no vision tokens in the request.
    """
    if not request.layout.vision_tokens:
        raise ValueError("it holds no vision tokens")
    watching = _Watching(like)
    settings = replace(request.settings, ignore_eos=False)
    for event in session.run([replace(request, policy=watching, settings=settings)]):
        tick()
        if isinstance(event, Finished):
            return Recorded(event.token_ids, event.text, list(watching.seen))
    raise AssertionError("the engine ended without an answer")


def withdrawn_after(policy: Mass, mass: Sequence[float | None]) -> int | None:
    """Say after which token a policy would withdraw that sees these masses; None for never."""
    decide = policy.begin()
    for step, value in enumerate(mass, start=1):
        if decide(StepView(step=step, token_ids=(), text="", mass=value)) is not None:
            return step
    return None


def candidates(masses: Sequence[Sequence[float | None]], count: int = CANDIDATES) -> list[float]:
    """Choose thresholds to try: quantiles of all masses, with three digits.

    Raises:
        ValueError: no mass was told.
    """
    known = [value for one in masses for value in one if value is not None]
    if not known:
        raise ValueError("no mass was told")
    cuts = quantiles(known, n=count + 1, method="inclusive") if len(known) > 1 else known
    rounded = {min(1.0, float(f"{cut:.3g}")) for cut in cuts}
    return sorted(one for one in rounded if one > 0)


def divergences_at(
    session: Session,
    request: Request,
    token_ids: Sequence[int],
    steps: Sequence[int],
    blind: Request | None,
    tick: Tick,
) -> dict[str, Divergence]:
    """Read an answer with the vision withdrawn after each of some steps.

    Args:
        blind: the same question without its image, which is read as well.

    Returns:
        By step, and `no image`.
    """
    base = replace(request, policy=NoWithdrawal())
    arms = {str(step): replace(request, policy=Mvw(m=step)) for step in steps}
    if blind is not None:
        arms[BLIND] = blind
    if not arms:
        return {}
    found = divergences(session, base, list(arms.values()), token_ids, tick=tick)
    return dict(zip(arms, found, strict=True))


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
class Point:
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
) -> list[Point]:
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
            Point(
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
    found = [one.at.get(BLIND) for one in samples]
    known = [one for one in found if one is not None]
    return agreement(known) if len(known) == len(found) else None


def qualifying(points: Sequence[Point]) -> list[Point]:
    """The thresholds that may be chosen, the highest first.

    One qualifies where it and every lower one keep the tolerance, and it withdraws anywhere.
    """
    good = []
    for point in points:
        if not point.within:
            break
        good.append(point)
    return [point for point in reversed(good) if point.withdrawn > 0]


def refusal(points: Sequence[Point], blind: float | None, tolerance: float) -> str | None:
    """Say why no threshold can be chosen, as far as agreement tells; None where one can."""
    least = f"{100 * (1 - tolerance):.1f} %"
    if blind is not None and blind >= 1 - tolerance:
        return (
            f"Without any image {100 * blind:.1f} % of the next tokens stay the likeliest: these "
            "answers hardly need their images, so they can't tell when an image may go."
        )
    lowest = points[0]
    if not lowest.within:
        return (
            f"Even at a threshold of {lowest.threshold:g}, the lowest that was tried, only "
            f"{100 * lowest.agreement:.1f} % of the next tokens stay the likeliest, less than "
            f"{least}."
        )
    if not qualifying(points):
        return "No threshold that keeps the tolerance withdraws in any answer."
    return None
