"""Where the time of an answer goes that the engine's events don't tell: vision encoder, text.

The vision encoder is found by what it is not: every part of the model beside its language model
and head, as `cost.py` counts parameters. Hooks time these parts and are removed on the way out; it
changes nothing that is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

from mvw_cli.bench.measure.clock import Clock, Mark


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
    from mvw_cli.engine.sequence import Detokenizer

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
