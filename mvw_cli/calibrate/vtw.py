"""The search for VTW's layer: how far the first answer token moves when vision leaves at layer K.

As published (arXiv 2405.05803 and its reference's `--findk`): for each K the mean over samples of
KL(p_K || p), where p is the full model's distribution of the first answer token and p_K that of the
model whose vision leaves before layer K. K is the first layer whose mean is at most eta.

Here, too, along more than the first token: teacher forcing on what the full model has answered, the
mean over those tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.quality.divergence import Tick
from mvw_cli.bench.stats import FEWEST_ITEMS, bootstrap_interval, means
from mvw_cli.calibrate.branches import branches_along
from mvw_cli.calibrate.search import (
    CalibrationReport,
    Column,
    Outcome,
    Search,
    SearchRun,
    answered,
    cell,
)
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.types import Failed, NotExact, Request
from mvw_cli.errors import UsageProblem
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.render.chart import Chart, Line
from mvw_cli.session import Session
from mvw_cli.text import number

ONE_PASS, LAYER_BY_LAYER = "one pass", "layer by layer"
_FLOOR = 1e-9
"""Nats; where a curve is lower, its picture ends here."""


@dataclass(frozen=True)
class VtwSearch(Search):
    """The options of `mvw calibrate vtw`."""

    doing: ClassVar[str] = "KL of every layer, sample"
    title: ClassVar[str] = "Vision gone before layer K"
    key: ClassVar[str] = "layer"
    columns: ClassVar[Sequence[Column]] = (
        ("K", cell("layer", str)),
        ("mean KL, nats", cell("kl_nats", number)),
        (
            "95 % interval",
            cell("interval_95", lambda ends: f"[{number(ends[0])}, {number(ends[1])}]"),
        ),
    )

    eta: float
    """Nats."""
    first: int
    """First layer that may be chosen."""
    tokens: int
    """Of the answer, that are compared."""

    def settings(self) -> dict[str, Any]:
        return {"eta": self.eta, "from": self.first, "tokens": self.tokens}

    def sample_settings(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def check_model(self, session: Session) -> None:
        layers = int(session.loaded.model.config.get_text_config().num_hidden_layers)
        if self.first >= layers:
            raise UsageProblem(
                f"--from {self.first}: there is no such layer to try",
                cause=f"the model has {layers} decoder layers, 0 to {layers - 1}",
                hint=f"mvw calibrate vtw --from {max(1, layers // 2)}",
            )

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        found = layer_divergences(run.session, request, tokens=self.tokens, tick=run.tick)
        return {
            "prompt_tokens": int(request.inputs["input_ids"].shape[1]),
            "vision_tokens": request.layout.vision_tokens,
            **asdict(found),
        }

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        points = curve([sample["kl_nats"] for sample in samples], seed=run.seed)
        layer, reason, remarks = choose_layer(points, self.eta, self.first)
        if self.tokens == 1:
            remarks.append(
                "The published search looks at the first token alone, and says nothing of the rest "
                "of an answer: --tokens 64 looks further."
            )
        slow = next((sample["remark"] for sample in samples if sample["remark"]), None)
        if slow is not None:
            remarks.append(f"The layers were tried one by one, each with a prefill: {slow}.")
        withdrawal = None if layer is None else {"policy": "vtw", "layer": layer}
        return Outcome([asdict(point) for point in points], withdrawal, reason, remarks)

    def describe(self, withdrawal: Mapping[str, Any]) -> str:
        return f"vtw at layer {withdrawal['layer']}"

    def mark(self, point: Mapping[str, Any], outcome: Outcome) -> str:
        if point["layer"] == 0:
            return "no vision at all"
        return "chosen" if point["layer"] == self.chosen(outcome.withdrawal or {}) else ""

    def remark(self, report: CalibrationReport) -> str:
        tokens = max(sample["tokens"] for sample in report.samples)
        return f"KL of the first {tokens} tokens." if tokens > 1 else "KL of the first token."

    def charts(self, report: CalibrationReport) -> list[Chart]:
        points = report.outcome.curve
        lowest = min([self.eta, *(one["kl_nats"] for one in points if one["kl_nats"] > 0)])
        floor = max(_FLOOR, lowest / 10)
        moves = "the first token moves"
        if self.tokens > 1:
            moves = f"the first {self.tokens} tokens move"
        line = Line(
            "mean over the samples",
            1,
            [float(point["layer"]) for point in points],
            [max(floor, point["kl_nats"]) for point in points],
        )
        return [
            Chart(
                "kl-by-layer",
                f"How far {moves} if vision leaves before layer K",
                "layer K",
                "KL divergence",
                "nats",
                "KL of the answer's distribution from the full model's, by layer; eta is "
                f"{self.eta:g}. Layer 0 is without any vision.",
                [line],
                reference=(f"eta = {self.eta:g}", self.eta),
                logarithmic=True,
            )
        ]


# -- one sample ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerDivergences:
    """What one sample shows."""

    kl_nats: list[float | None]
    """KL(p_K || p) by K from 0, mean over the tokens. 0, vision gone before the first layer, is the
    control; None where it can't be had."""
    tokens: int
    """Tokens that were compared: fewer than asked for where the answer is shorter."""
    way: str
    """`ONE_PASS` or `LAYER_BY_LAYER`."""
    remark: str | None
    """Why it was not one pass."""


@torch.inference_mode()
def layer_divergences(
    session: Session, request: Request, *, tokens: int = 1, tick: Tick = lambda: None
) -> LayerDivergences:
    """Try all layers on one sample.

    Cost: `branch_logits` once (more often where `tokens` rows of logits for each layer take over
    256 MiB); with `tokens` above 1 also the generation of that many. Where that is not exact for
    the model: one prefill for each layer.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
    """
    answer: tuple[int, ...] = ()
    if tokens > 1:
        settings = replace(request.settings, max_new_tokens=tokens)
        full = replace(request, policy=NoWithdrawal(), settings=settings)
        answer = answered(session, full, tick).token_ids
    model = session.loaded.model
    layers = int(model.config.get_text_config().num_hidden_layers)
    crossed = request.layout.cross_entries is not None
    candidates = list((crossed and cross_attention_layers(model)) or range(layers))
    found: dict[int, float] = {}
    reason = None
    with session.serving():
        passes = branches_along(
            model,
            request.inputs,
            request.layout,
            candidates,
            answer,
            cross_attention=session.engine.cross_attention,
        )
        try:
            for group, logits in passes:
                tick()
                for layer, branch in zip(group, logits[1:], strict=True):
                    found[layer] = divergence(branch, logits[0])
        except NotExact as error:  # the session would take it for a model that isn't served
            reason = str(error)
    compared = max(1, len(answer))
    if reason is not None:
        slower = layer_by_layer(session, request, answer, tick=tick)
        return LayerDivergences(slower, compared, LAYER_BY_LAYER, reason)
    # Between two cross-attention layers vision does not matter, nor after the last one.
    following = (next((one for one in candidates if one >= k), None) for k in range(layers))
    kl_nats = [0.0 if one is None else found[one] for one in following]
    return LayerDivergences([*kl_nats], compared, ONE_PASS, None)


def layer_by_layer(
    session: Session, request: Request, answer: Sequence[int] = (), *, tick: Tick = lambda: None
) -> list[float | None]:
    """Do the same the plain way: one prefill for each K, under the policy `vtw`.

    Args:
        answer: what the full model has answered; without it the first token alone is compared.
    """
    layers = int(session.loaded.model.config.get_text_config().num_hidden_layers)
    # A forced token is read only if another follows it, so that a single one may be any.
    forced = tuple(answer) or (0,)
    full = _forced_logits(session, request, NoWithdrawal(), forced, tick)
    found: list[float | None] = [None]
    for layer in range(1, layers):
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


# -- from samples to a layer --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """One layer of the curve."""

    layer: int
    kl_nats: float
    """Mean over the samples."""
    interval_95: tuple[float, float] | None
    """Percentile bootstrap over the samples; None with fewer than 10."""


def curve(samples: Sequence[Sequence[float | None]], *, seed: int = 0) -> list[LayerPoint]:
    """Take the mean over the samples for each layer, with its interval."""
    points = []
    for layer, column in enumerate(zip(*samples, strict=True)):
        values = [value for value in column if value is not None]
        if len(values) == len(column):
            enough = len(values) >= FEWEST_ITEMS
            interval = bootstrap_interval(means, values, seed=seed) if enough else None
            points.append(LayerPoint(layer, fmean(values), interval))
    return points


def choose_layer(
    points: Sequence[LayerPoint], eta: float, first: int
) -> tuple[int | None, str, list[str]]:
    """Choose the first layer, from `first` on, whose mean is at most eta.

    Returns:
        The layer, or None; why it or why none; and what speaks against it.
    """
    tried = [point for point in points if point.layer >= max(1, first)]
    control = next((point for point in points if point.layer == 0), None)
    best = min(tried, key=lambda point: point.kl_nats)
    chosen = next((point for point in tried if point.kl_nats <= eta), None)
    if chosen is None:
        reason = (
            f"Even before layer {best.layer}, the best that was tried, the mean KL is "
            f"{best.kl_nats:.3g} nats, more than {eta:g}."
        )
        return None, reason, []
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
    return chosen.layer, reason, remarks
