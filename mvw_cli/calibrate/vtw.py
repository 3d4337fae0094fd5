"""The search for VTW's layer: how far the first answer token moves when vision leaves at layer K.

As published (arXiv 2405.05803 and its reference's `--findk`): for each K the mean over samples of
KL(p_K || p), where p is the full model's distribution of the first answer token and p_K that of the
model whose vision leaves before layer K. K is the first layer whose mean is at most eta.

Here, too, along more than the first token: teacher forcing on what the full model has answered, the
mean over those tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.quality.divergence import Tick
from mvw_cli.bench.stats import FEWEST_ITEMS, bootstrap_interval, means
from mvw_cli.calibrate.branches import judge_layers
from mvw_cli.calibrate.search import Column, Outcome, Search, SearchRun, answered, cell
from mvw_cli.engine.types import Failed, NotExact, Request
from mvw_cli.errors import UsageProblem
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.render.chart import Chart, Line
from mvw_cli.session import Session
from mvw_cli.text import number, plural

_FLOOR = 1e-9
"""Nats; where a curve is lower, its picture ends here."""


@dataclass(frozen=True)
class VtwSearch(Search):
    """The options of `mvw calibrate vtw`."""

    doing: ClassVar[str] = "KL of every layer, sample"
    measured_by: ClassVar[tuple[str, ...]] = ("tokens",)
    title: ClassVar[str] = "Vision gone before layer K; 0 is without any"
    columns: ClassVar[Sequence[Column]] = (
        ("K", cell("layer", str)),
        ("mean KL, nats", cell("kl_nats", number)),
        ("95 % interval", cell("interval_95", lambda ends: f"[{', '.join(map(number, ends))}]")),
    )

    eta: float
    """Nats."""
    min_layer: int
    """First layer that may be chosen."""
    tokens: int
    """Of the answer, that are compared."""

    def check(self, run: SearchRun) -> None:
        layers = _decoder_layers(run.session)
        if self.min_layer >= layers:
            raise UsageProblem(
                f"--min-layer {self.min_layer}: there is no such layer to try",
                cause=f"the model has {layers} decoder layers, 0 to {layers - 1}",
                hint=f"mvw calibrate vtw --min-layer {max(1, layers // 2)}",
            )

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        answer: tuple[int, ...] = ()
        if self.tokens > 1:
            settings = replace(request.settings, max_new_tokens=self.tokens)
            full = replace(request, policy=NoWithdrawal(), settings=settings)
            answer = answered(run.session, full, run.tick).token_ids
        kl_nats, remark = layer_divergences(run.session, request, answer, tick=run.tick)
        return {
            "prompt_tokens": int(request.inputs["input_ids"].shape[1]),
            "vision_tokens": request.layout.vision_tokens,
            "tokens": max(1, len(answer)),
            "kl_nats": kl_nats,
            "remark": remark,
        }

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        points = curve([sample["kl_nats"] for sample in samples], seed=run.seed)
        layer, reason, remarks = choose_layer(points, self.eta, self.min_layer)
        if self.tokens == 1:
            remarks.append(
                "The published search looks at the first token alone, and says nothing of the rest "
                "of an answer: --tokens 64 looks further."
            )
        slow = next((sample["remark"] for sample in samples if sample["remark"]), None)
        if slow is not None:
            remarks.append(f"The layers were tried one by one, each with a prefill: {slow}.")
        for point in points:
            point["chosen"] = point["layer"] == layer
        withdrawal = None if layer is None else {"policy": "vtw", "layer": layer}
        return Outcome(points, withdrawal, reason, remarks)

    def charts(self, outcome: Outcome) -> list[Chart]:
        points = outcome.curve
        lowest = min([self.eta, *(one["kl_nats"] for one in points if one["kl_nats"] > 0)])
        floor = max(_FLOOR, lowest / 10)
        xs, ys = [float(one["layer"]) for one in points], [one["kl_nats"] for one in points]
        return [
            Chart(
                "kl-by-layer",
                "How far an answer moves if vision leaves before layer K",
                "layer K",
                "KL divergence",
                "nats",
                f"KL of {plural(self.tokens, 'token')} of the answer from the full model's, by "
                f"layer; eta is {self.eta:g}. Layer 0 is without any vision.",
                [Line("mean over the samples", 1, xs, [max(floor, one) for one in ys])],
                reference=(f"eta = {self.eta:g}", self.eta),
                logarithmic=True,
            )
        ]


# -- one sample ---------------------------------------------------------------------------------


def layer_divergences(
    session: Session, request: Request, answer: Sequence[int] = (), *, tick: Tick = lambda: None
) -> tuple[list[float | None], str | None]:
    """Try all layers on one sample.

    Cost: `branch_logits` once (more often where the logits of all layers take over 256 MiB). Where
    that is not exact for the model: one prefill for each layer.

    Args:
        answer: what the full model has answered; without it the first token alone is compared.

    Returns:
        KL(p_K || p) in nats by K from 0, mean over the tokens; 0, vision gone before the first
        layer, is the control, and None where it can't be had. And why it was not one pass, if so.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
    """
    reason = None
    with session.serving():
        try:
            *found, _ = judge_layers(
                session.loaded.model,
                request.inputs,
                request.layout,
                divergence,
                answer,
                cross_attention=session.engine.cross_attention,
                tick=tick,
            )
        except NotExact as error:  # the session would take it for a model that isn't served
            reason = str(error)
    if reason is not None:
        return layer_by_layer(session, request, answer, tick=tick), reason
    return [*found], None


def layer_by_layer(
    session: Session, request: Request, answer: Sequence[int] = (), *, tick: Tick = lambda: None
) -> list[float | None]:
    """Do the same the plain way: one prefill for each K, under the policy `vtw`."""
    # A forced token is read only if another follows it, so that a single one may be any.
    forced = tuple(answer) or (0,)
    full = _forced_logits(session, request, NoWithdrawal(), forced, tick)
    found: list[float | None] = [None]
    for layer in range(1, _decoder_layers(session)):
        branch = _forced_logits(session, request, Vtw(layer=layer), forced, tick)
        found.append(divergence(branch, full))
    return found


def _forced_logits(
    session: Session,
    request: Request,
    policy: WithdrawalPolicy,
    forced: tuple[int, ...],
    tick: Tick,
) -> Tensor:
    """Read an output under a policy; return the logits of its tokens: # (T, V)."""
    rows: list[Tensor] = []
    asked = replace(request, policy=policy, forced=forced)
    with session.serving(observe=lambda name, step, row: rows.append(row.clone())) as slots:
        tick()
        events = slots.admit(asked)
        while slots.active:
            tick()
            events += slots.step()
            failed = next((event for event in events if isinstance(event, Failed)), None)
            if failed is not None:
                raise failed.error
    return torch.stack(rows)


def divergence(branch: Tensor, full: Tensor) -> float:
    """Compute KL(branch || full) in nats, at temperature 1, mean over the rows: # (T, V) both."""
    ours, theirs = (rows.float().log_softmax(-1) for rows in (branch, full))
    # What the branch rules out counts for nothing, whatever the full model makes of it.
    terms = torch.where(ours.isneginf(), 0.0, ours.exp() * (ours - theirs))
    return float(terms.sum(-1).clamp(min=0).mean())


def _decoder_layers(session: Session) -> int:
    return int(session.loaded.model.config.get_text_config().num_hidden_layers)


# -- from samples to a layer --------------------------------------------------------------------


def curve(samples: Sequence[Sequence[float | None]], *, seed: int = 0) -> list[dict[str, Any]]:
    """Take the mean over the samples for each layer, with its interval from 10 samples on."""
    points = []
    for layer, column in enumerate(zip(*samples, strict=True)):
        values = [value for value in column if value is not None]
        if len(values) == len(column):
            enough = len(values) >= FEWEST_ITEMS
            interval = bootstrap_interval(means, values, seed=seed) if enough else None
            points.append({"layer": layer, "kl_nats": fmean(values), "interval_95": interval})
    return points


def choose_layer(
    points: Sequence[Mapping[str, Any]], eta: float, min_layer: int
) -> tuple[int | None, str, list[str]]:
    """Choose the first layer, from `min_layer` on, whose mean is at most eta.

    Returns:
        The layer, or None; why it or why none; and what speaks against it.
    """
    tried = [point for point in points if point["layer"] >= max(1, min_layer)]
    chosen = next((point for point in tried if point["kl_nats"] <= eta), None)
    if chosen is None:
        best = min(tried, key=lambda point: float(point["kl_nats"]))
        reason = (
            f"Even before layer {best['layer']}, the best that was tried, the mean KL is "
            f"{best['kl_nats']:.3g} nats, more than {eta:g}."
        )
        return None, reason, []
    reason = (
        f"Layer {chosen['layer']} is the first from {tried[0]['layer']} on whose mean KL, "
        f"{chosen['kl_nats']:.3g} nats, is at most {eta:g}."
    )
    remarks = []
    if points[0]["layer"] == 0 and points[0]["kl_nats"] <= eta:
        remarks.append(
            f"Without any vision, gone before the first layer, it is {points[0]['kl_nats']:.3g} "
            "nats: these tokens hardly need the image, so they can't tell when it may go."
        )
    later = [one for one in tried if one["layer"] > chosen["layer"] and one["kl_nats"] > eta]
    if later:
        worst = max(later, key=lambda point: float(point["kl_nats"]))
        remarks.append(
            f"The curve rises again: {worst['kl_nats']:.3g} nats at layer {worst['layer']}. The "
            f"published rule takes the first layer all the same; --min-layer {worst['layer'] + 1} "
            "starts after that."
        )
    if chosen["interval_95"] is not None and chosen["interval_95"][1] > eta:
        end = chosen["interval_95"][1]
        remarks.append(f"The 95 % interval of that mean ends at {end:.3g} nats, above eta.")
    return int(chosen["layer"]), reason, remarks
