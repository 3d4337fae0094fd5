"""The search for VTW's layer: how far the first answer token moves when vision leaves at layer K.

As published (arXiv 2405.05803 and its reference's `--findk`): for each K the mean over samples of
KL(p_K || p), where p is the full model's distribution of the first answer token and p_K that of the
model whose vision leaves before layer K. K is the first layer whose mean is at most eta.

Here, too, along more than the first token: teacher forcing on what the full model has answered, the
mean over those tokens. It does not know where samples come from, nor who looks at the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvw_cli.calibrate.branches import branch_logits
from mvw_cli.engine.cross_attention import cross_attention_layers
from mvw_cli.engine.exact import NotExact
from mvw_cli.engine.types import Failed, Finished, Request
from mvw_cli.oracle.masked import extended
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import WithdrawalPolicy

if TYPE_CHECKING:
    from mvw_cli.session import Session

ONE_PASS, LAYER_BY_LAYER = "one pass", "layer by layer"
_LOGIT_BYTES = 2**28
"""Of the logits of one pass, in float32; with more, the layers are tried in several passes."""

Tick = Callable[[], None]
"""Called now and then; what it raises ends the measurement."""


class _NoBranches(Exception):
    """Why a model's layers can't be tried in one pass."""


@dataclass(frozen=True, slots=True)
class Divergences:
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


def layer_divergences(
    session: Session, request: Request, *, tokens: int = 1, tick: Tick = lambda: None
) -> Divergences:
    """Try all layers on one sample.

    Cost: `branch_logits` once (more often where `tokens` rows of logits for each layer take over
    256 MiB); with `tokens` above 1 also the generation of that many. Where that is not exact for
    the model: one prefill for each layer.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
        ValueError: there are no vision tokens in the request.
    """
    if not request.layout.vision_tokens:
        raise ValueError("the request holds no vision tokens")
    answer = _answer(session, request, tokens, tick) if tokens > 1 else ()
    try:
        found = _in_one_pass(session, request, answer, tick)
        return Divergences(found, max(1, len(answer)), ONE_PASS, None)
    except _NoBranches as error:
        reason = str(error)
    slower = layer_by_layer(session, request, answer, tick=tick)
    return Divergences(slower, max(1, len(answer)), LAYER_BY_LAYER, reason)


def _answer(session: Session, request: Request, tokens: int, tick: Tick) -> tuple[int, ...]:
    settings = replace(request.settings, max_new_tokens=tokens)
    for event in session.run([replace(request, policy=NoWithdrawal(), settings=settings)]):
        tick()
        if isinstance(event, Finished):
            return event.token_ids
    raise AssertionError("the engine ended without an answer")


@torch.inference_mode()
def _in_one_pass(
    session: Session, request: Request, answer: Sequence[int], tick: Tick
) -> list[float | None]:
    model = session.loaded.model
    text = model.config.get_text_config()
    layers, cross_layers = int(text.num_hidden_layers), _cross_layers(model, request)
    candidates = list(cross_layers or range(layers))
    inputs, rows = request.inputs, max(1, len(answer))
    if rows > 1:
        inputs = extended(inputs, answer[:-1])
        gone = torch.zeros(rows - 1, dtype=torch.bool)
        entries = torch.cat([request.layout.entries.cpu(), gone])
        layout = replace(request.layout, entries=entries)
    else:
        layout = request.layout
    size = max(1, _LOGIT_BYTES // (4 * rows * int(text.vocab_size)) - 1)
    found: dict[int, float] = {}
    with session.serving():
        for start in range(0, len(candidates), size):
            tick()
            group = candidates[start : start + size]
            try:
                logits = branch_logits(
                    model,
                    inputs,
                    layout,
                    group,
                    tokens=rows,
                    cross_attention=session.engine.cross_attention,
                )
            except NotExact as error:  # the session would take it for a model that isn't served
                raise _NoBranches(str(error)) from error
            for layer, branch in zip(group, logits[1:], strict=True):
                found[layer] = divergence(branch, logits[0])
    # Between two cross-attention layers vision does not matter, nor after the last one.
    following = (next((one for one in candidates if one >= k), None) for k in range(layers))
    return [0.0 if one is None else found[one] for one in following]


def _cross_layers(model: Any, request: Request) -> tuple[int, ...]:
    return cross_attention_layers(model) if request.layout.cross_entries is not None else ()


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
