"""Where the time of an answer goes that the engine's events don't tell: vision encoder, text.

Kernels of CUDA and Metal run after the call that starts them has returned, so a clock has to wait
for them, or to leave an event in the stream and read it later.

The vision encoder is found by what it is not: every part of the model outside its language model
and head, as parameters are counted. Hooks time these parts and are removed on the way out; nothing
that is computed changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import torch

from mvw_cli.engine.sequence import Detokenizer

Mark = Any
"""A moment: seconds of the monotonic clock, or an event in a CUDA stream."""


class Clock:
    """Tells the time of one device. `now` is on the scale of the engine's events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Wait until the device has done all it was asked for; return seconds."""
        self.wait()
        return perf_counter()

    def wait(self) -> None:
        """Wait until the device has done all that it was asked for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    def mark(self) -> Mark:
        """Note this moment in the device's work, without a wait on CUDA."""
        if self._device.type != "cuda":
            return self.now()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """Compute how long it took from one mark of this clock to another."""
        if self._device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class VisionTime:
    """How long the vision encoder has been at work."""

    def __init__(self) -> None:
        self._spans: list[tuple[Clock, Mark, Mark]] = []

    def add(self, clock: Clock, start: Mark, end: Mark) -> None:
        """Note that a part of it has run."""
        self._spans.append((clock, start, end))

    def take(self) -> float | None:
        """Return the seconds since the last call, or None if no part of it has run.

        Waits for the device.
        """
        spans, self._spans = self._spans, []
        if not spans:
            return None
        return sum(clock.seconds(start, end) for clock, start, end in spans)


def vision_parts(model: Any) -> list[Any]:
    """List the outermost modules beside the language model and head: vision tower, projector.

    Empty where the model does not tell its language model.
    """
    decoder = _told(model, "get_decoder")
    if decoder is None or decoder is model:
        return []
    known = {id(decoder)}
    for name in ("get_output_embeddings", "get_input_embeddings"):
        known.add(id(_told(model, name)))
    return list(_beside(model, decoder, known))


@contextmanager
def watched_vision(model: Any) -> Iterator[VisionTime]:
    """Time the vision encoder for as long as this lasts.

    Its parts are summed up; what the model does between them (picking features out of the tower's
    output) is not in it.
    """
    time = VisionTime()
    with ExitStack() as stack:
        for part in vision_parts(model):
            _watch(part, Clock(_device(part, model)), time, stack)
        yield time


def detokenise(tokenizer: Any, outputs: Sequence[Sequence[int]]) -> float:
    """Turn outputs into text once more, token by token as the engine does; return the seconds.

    While decoding it is done between the steps, where it can't be told apart.
    """
    start = perf_counter()
    for ids in outputs:
        text = Detokenizer(tokenizer)
        for token in ids:
            text.add(token)
        text.finish()
    return perf_counter() - start


def _watch(part: Any, clock: Clock, time: VisionTime, stack: ExitStack) -> None:
    started: list[Mark] = []

    def begin(*_: object) -> None:
        started.append(clock.mark())

    def end(*_: object) -> None:
        time.add(clock, started.pop(), clock.mark())

    stack.callback(part.register_forward_pre_hook(begin, prepend=True).remove)
    stack.callback(part.register_forward_hook(end).remove)


def _beside(module: Any, decoder: Any, known: set[int]) -> Iterator[Any]:
    for child in module.children():
        if id(child) in known:
            continue
        if any(inner is decoder for inner in child.modules()):
            yield from _beside(child, decoder, known)
        else:
            yield child


def _told(model: Any, method: str) -> Any:
    try:
        return getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _device(part: Any, model: Any) -> Any:
    first = next(part.parameters(), None)
    return model.device if first is None else first.device
