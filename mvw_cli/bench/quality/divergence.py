"""How far an arm's next-token distributions are from the baseline's, along one and the same output.

Teacher forcing: answers that differ in one early word can't be compared word by word afterwards;
distributions along the same words can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mvw_cli.bench.measure.events import withdrawn_after
from mvw_cli.engine.memory import relieve
from mvw_cli.engine.types import Event, Failed, Request
from mvw_cli.errors import OutOfMemory
from mvw_cli.session import Session

Tick = Callable[[], None]
"""Called before every decode step; what it raises ends the measurement."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """One arm against the baseline, by token of the output."""

    kl_nats: list[float]
    """KL(baseline || arm) of the distribution that each token is drawn from, at temperature 1 and
    before any logits processor."""
    agrees: list[bool]
    """Whether the likeliest token is the same."""
    withdrawn_after: int | None
    """Tokens that were generated before no vision was left; None where some was left to the end."""

    @property
    def mean_kl_nats(self) -> float:
        """Mean over the output's tokens."""
        return sum(self.kl_nats) / len(self.kl_nats)


def divergences(
    session: Session,
    baseline: Request,
    arms: Sequence[Request],
    output_ids: Sequence[int],
    *,
    tick: Tick = lambda: None,
) -> list[Divergence]:
    """Read one output, usually the baseline's, under the baseline and each arm; compare them.

    Each arm has a KV cache of its own. Where the device has no room for all of them, they are read
    in smaller groups.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: baseline and a single arm do not fit on the device together.
    """
    if not arms:
        return []
    try:
        return _along(session, [baseline, *arms], tuple(output_ids), tick)
    except OutOfMemory:
        if len(arms) == 1:
            raise
    relieve(session.loaded.model.device)
    half = len(arms) // 2
    return [
        divergence
        for group in (arms[:half], arms[half:])
        for divergence in divergences(session, baseline, group, output_ids, tick=tick)
    ]


def _along(
    session: Session, requests: Sequence[Request], forced: tuple[int, ...], tick: Tick
) -> list[Divergence]:
    """Read the output under all requests in lock step; the first is the baseline."""
    names = [str(number) for number in range(len(requests))]
    rows: dict[str, Tensor] = {}
    steps: list[tuple[Tensor, Tensor]] = []

    def see(name: str, step: int, row: Tensor) -> None:  # row: # (V,)
        # A prefill's row may be a view of the logits of the whole prompt.
        rows[name] = row.clone()
        if len(rows) == len(names):
            steps.append(compared(*(rows[one] for one in names)))
            rows.clear()

    events: list[Event] = []
    with session.serving(observe=see) as slots:
        for name, request in zip(names, requests, strict=True):
            tick()
            events += slots.admit(replace(request, id=name, forced=forced))
        while slots.active:
            tick()
            events += slots.step()
            failed = next((event for event in events if isinstance(event, Failed)), None)
            if failed is not None:
                raise failed.error
    kl, agrees = (torch.stack(found, dim=1).tolist() for found in zip(*steps, strict=True))
    return [
        Divergence(kl[arm], agrees[arm], withdrawn_after(events, name))
        for arm, name in enumerate(names[1:])
    ]


def compared(baseline: Tensor, *arms: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the logits of one step: KL(baseline || arm) in nats, and whether the argmax agrees.

    baseline, arms: # (V,). Returned: # (A,) float32 and # (A,) bool, on the device.
    """
    rows = torch.stack((baseline, *arms))
    likeliest = rows.argmax(-1)
    logs = rows.float().log_softmax(-1)  # (1 + A, V)
    first = logs[:1]
    # What the baseline rules out counts for nothing, whatever the arm makes of it.
    terms = torch.where(first.isneginf(), 0.0, first.exp() * (first - logs[1:]))
    return terms.sum(-1).clamp(min=0), likeliest[1:] == likeliest[0]
