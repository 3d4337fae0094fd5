"""Helpers that run the engine on tiny random models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvw_cli.adapter import LoadedModel, ModelSpec, VisionLayout
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import Completion, Event, GenerationSettings, Request, summarise
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy


@dataclass(frozen=True)
class Run:
    completion: Completion
    logits: Tensor  # (T, V)
    events: list[Event]


def loaded(model: Any, processor: Any = None) -> LoadedModel:
    return LoadedModel("test", type(model).__name__, model, processor, ModelSpec())


def request(
    inputs: Mapping[str, Tensor],
    vision: Tensor | VisionLayout,
    m: int | None,
    *,
    name: str = "a",
    policy: WithdrawalPolicy | None = None,
    **settings: Any,
) -> Request:
    options = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True, **settings}
    chosen = policy or (NoWithdrawal() if m is None else Mvw(m=m))
    layout = vision if isinstance(vision, VisionLayout) else VisionLayout(vision)
    return Request(name, inputs, layout, chosen, GenerationSettings(**options))


def run(
    model: Any, requests: Iterable[Request], *, processor: Any = None, **engine: Any
) -> dict[str, Run]:
    """Run requests to the end; return what came of each, with the logits of every step."""
    logits: dict[str, list[Tensor]] = {}
    events: dict[str, list[Event]] = {}

    def observe(name: str, step: int, row: Tensor) -> None:
        rows = logits.setdefault(name, [])
        assert step == len(rows) + 1
        rows.append(row.clone())

    for event in Engine(loaded(model, processor), **engine).run(requests, observe=observe):
        events.setdefault(event.request, []).append(event)
    return {
        name: Run(summarise(own), torch.stack(logits[name]), own) for name, own in events.items()
    }
