"""mvw's own engine, behind the manners of one that runs elsewhere and reads prompts in its passes.

As vLLM: a request brings its pictures and one placeholder for each, a prompt is read in a pass and
others decode meanwhile, a pass may bring nothing, a withdrawal is told with the token that comes of
it and without its duration, and neither weights nor logits can be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from sessions import GREEDY, tiny

from mvw_cli.engine.types import Admitted, Event, Request, Token, Withdrawn
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.session import Session

BLOCKS = 3
"""Blocks that each withdrawal frees."""


class Elsewhere:
    """The engine; `room` sequences are in its cache at most."""

    prepares_images, in_process = True, False
    attention = "vllm:STAND_IN"
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, session: Session, room: int) -> None:
        self.own, self._session, self.room = session.engine, session, room
        self.closed = False

    @contextmanager
    def serving(self, **_: Any) -> Iterator[Passes]:
        with self.own.serving() as slots:
            yield Passes(self, slots)

    def run(self, requests: Any) -> Iterator[Event]:
        with self.serving() as slots:
            for request in requests:
                yield from slots.admit(request)
            while slots.active:
                yield from slots.step()

    def encoded(self, request: Request) -> Request:
        """Write the vision tokens out, as vLLM's processor does."""
        loaded = self._session.loaded
        ids = request.inputs["input_ids"][0].tolist()
        if not request.images:
            return request
        image = loaded.model.config.image_token_id
        pixels = loaded.processor.image_processor(list(request.images), return_tensors="pt")
        full = [one for each in ids for one in ([each] * 16 if each == image else [each])]
        inputs = {"input_ids": torch.tensor([full]), "pixel_values": pixels["pixel_values"]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        layout = self._session.adapter.vision(loaded, inputs)
        return replace(request, inputs=inputs, layout=layout, images=())

    def close(self) -> None:
        self.closed = True


class Passes:
    """The slots: what is admitted waits for a pass."""

    def __init__(self, engine: Elsewhere, slots: Any) -> None:
        self._engine, self._slots = engine, slots
        self._waiting: list[Request] = []
        self._late: list[Event] = []
        self._idle = False

    @property
    def active(self) -> list[str]:
        return [*self._slots.active, *(one.id for one in self._waiting)]

    @property
    def kv_bytes(self) -> int:
        return int(self._slots.kv_bytes)

    @property
    def kv_allocated_bytes(self) -> int:
        return 1 << 20

    def admit(self, request: Request) -> list[Event]:
        self._waiting.append(request)
        return [Admitted(request.id, perf_counter())]

    def step(self) -> list[Event]:
        """Every other pass that reads a prompt brings nothing first."""
        self._idle = not self._idle and bool(self._waiting)
        if self._idle:
            return []
        events = self._slots.step() if self._slots.active else []
        if self._waiting and len(self._slots.active) < self._engine.room:
            request = self._engine.encoded(self._waiting.pop(0))
            events += self._slots.admit(request)[1:]
        told, self._late = self._late, []
        for event in events:
            if isinstance(event, Withdrawn):
                changed = replace(event, duration_s=None, kv_blocks_freed=BLOCKS)
                self._late.append(changed)
            else:
                told.append(event)
        at = next((event.at for event in told if isinstance(event, Token)), 0.0)
        return [replace(event, at=at) if isinstance(event, Withdrawn) else event for event in told]


def elsewhere(room: int = 99) -> Session:
    """Open a session on the tiny LLaVA, in the manners of vLLM."""
    own = tiny("hf")
    meta = replace(own.loaded, model=_on_meta(own.loaded.model))
    engine: Any = Elsewhere(own, room)
    return Session(own.adapter, meta, engine, NoWithdrawal(), GREEDY)


def _on_meta(model: Any) -> Any:
    with torch.device("meta"):
        made = type(model)(model.config)
    made.generation_config = model.generation_config
    return made
