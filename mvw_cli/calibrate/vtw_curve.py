"""From the divergences of samples to a curve over layers, and to VTW's layer by the published rule.

It does not know how a divergence is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mvw_cli.bench.stats import FEWEST_ITEMS, bootstrap_interval, means


@dataclass(frozen=True, slots=True)
class Point:
    """One layer of the curve."""

    layer: int
    kl_nats: float
    """Mean over the samples."""
    interval_95: tuple[float, float] | None
    """Percentile bootstrap over the samples; None with fewer than 10."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the search comes to."""

    layer: int | None
    """The first that qualifies."""
    reason: str
    remarks: list[str]


def curve(samples: Sequence[Sequence[float | None]], *, seed: int = 0) -> list[Point]:
    """Take the mean over the samples for each layer, with its interval.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    points = []
    for layer, column in enumerate(zip(*samples, strict=True)):
        values = [value for value in column if value is not None]
        if len(values) == len(column):
            points.append(Point(layer, fmean(values), mean_interval_95(values, seed=seed)))
    return points


def mean_interval_95(values: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap a mean over its samples; None where they are too few."""
    if len(values) < FEWEST_ITEMS:
        return None
    return bootstrap_interval(means, values, seed=seed)


def search(points: Sequence[Point], eta: float, first: int) -> Found:
    """Choose the first layer, from `first` on, whose mean is at most eta; say what speaks against.

    Raises:
        ValueError: no layer is to be tried.
    """
    tried = [point for point in points if point.layer >= max(1, first)]
    if not tried:
        raise ValueError(f"no layer from {first} on was tried")
    control = next((point for point in points if point.layer == 0), None)
    best = min(tried, key=lambda point: point.kl_nats)
    chosen = next((point for point in tried if point.kl_nats <= eta), None)
    if chosen is None:
        return Found(
            None,
            f"Even before layer {best.layer}, the best that was tried, the mean KL is "
            f"{best.kl_nats:.3g} nats, more than {eta:g}.",
            [],
        )
    reason = (
        f"Layer {chosen.layer} is the first from {tried[0].layer} on whose mean KL, "
        f"{chosen.kl_nats:.3g} nats, is at most {eta:g}."
    )
    remarks = []
    if control is not None and control.kl_nats <= eta:
        remarks.append(
            f"Without any vision, gone before the first layer, it is {control.kl_nats:.3g} nats: "
            "these tokens hardly need the image, so they can't tell when it may go."
        )
    later = [point for point in tried if point.layer > chosen.layer and point.kl_nats > eta]
    if later:
        worst = max(later, key=lambda point: point.kl_nats)
        remarks.append(
            f"The curve rises again: {worst.kl_nats:.3g} nats at layer {worst.layer}. The "
            f"published rule takes the first layer all the same; --from {worst.layer + 1} starts "
            "after that."
        )
    if chosen.interval_95 is not None and chosen.interval_95[1] > eta:
        remarks.append(
            f"The 95 % interval of that mean ends at {chosen.interval_95[1]:.3g} nats, above eta."
        )
    return Found(chosen.layer, reason, remarks)
