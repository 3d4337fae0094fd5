"""Bytes of the KV cache, counted from a run's events, and once more from the configuration.

The two must agree: the bound rests on the configuration. Vision may go at once or bit by bit, in
the prefill already, and it may come back; text comes with every token. It does not know policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvw_cli.engine.types import Event, Finished, Prefilled, Restored, Withdrawn

if TYPE_CHECKING:
    from mvw_cli.cost import Shape
    from mvw_cli.engine.types import Request

Change = Withdrawn | Restored


def kv_bytes(events: Sequence[Event]) -> tuple[int, int]:
    """Count the entries in use of all sequences of a run, as `Memory.kv_bytes_before` and `after`.

    Of a sequence from which nothing was withdrawn while decoding both are those at its end.
    """
    changed = _changes(events)
    ends = {event.request: event.kv_bytes for event in events if isinstance(event, Finished)}
    kept = sum(size for request, size in ends.items() if request not in changed)
    after = sum(found[-1].kv_bytes_after for found in changed.values())
    # What has gone and not come back; what was written meanwhile is in both.
    gone = sum(
        one.kv_bytes_before - one.kv_bytes_after for found in changed.values() for one in found
    )
    return after + gone + kept, after + kept


def prefilled_bytes(events: Sequence[Event]) -> int:
    """Count the entries of all sequences after their prefills."""
    return sum(event.kv_bytes for event in events if isinstance(event, Prefilled))


def offloaded_peak_bytes(events: Sequence[Event]) -> int:
    """Count the most that waits in host memory at one moment, all sequences together."""
    offloaded: dict[str, int] = {}
    peak = 0
    for event in events:
        if isinstance(event, Withdrawn):
            offloaded[event.request] = event.offloaded_bytes
        elif isinstance(event, Restored | Finished):
            offloaded.pop(event.request, None)
        peak = max(peak, sum(offloaded.values()))
    return peak


def formula_kv_bytes(
    shape: Shape, element_bytes: int, requests: Sequence[Request], events: Sequence[Event]
) -> tuple[int, int] | None:
    """Count what `kv_bytes` counts from the configuration, the prompts and the moments alone.

    How many vision tokens each layer holds after the prefill, and how many entries a withdrawal
    takes that leaves some, is for the policy to say, and is taken from the events. None where
    layers differ in size and some of them lost vision while decoding: which did is not told.
    """
    changed = _changes(events)
    told = {event.request: event for event in events if isinstance(event, Prefilled)}
    lengths = {
        event.request: len(event.token_ids) for event in events if isinstance(event, Finished)
    }
    before = after = 0
    for request in requests:
        found = changed.get(request.id, [])
        # The newest token has not been read yet when its sequence is withdrawn, or ends.
        read = (found[-1].step if found else lengths.get(request.id, 1)) - 1
        by_layer = told[request.id].vision_by_layer if request.id in told else ()
        layers = held_layers(shape, request, by_layer)
        vision = _vision_elements(layers, found)
        if vision is None:
            return None
        text = text_elements(layers, read)
        before += text + sum(layer.elements * layer.vision for layer in layers)
        after += text + vision
    return before * element_bytes, after * element_bytes


@dataclass(frozen=True, slots=True)
class Held:
    """What a layer holds of a sequence after the prefill."""

    elements: int
    """Numbers of an entry."""
    text: int
    """Entries that are no vision."""
    vision: int
    cross: bool
    """Whether no generated token leaves an entry."""


def held_layers(shape: Shape, request: Request, by_layer: Sequence[int] = ()) -> list[Held]:
    """Count what each layer holds after the prefill.

    Sliding windows: of the prompt what reached into the window, and all that comes after it.

    Args:
        by_layer: vision tokens of each layer that holds any without withdrawal, as
            `Prefilled.vision_by_layer`; empty for all of them.
    """
    entries, crossed = request.layout.entries, request.layout.cross_entries
    inside, cross_vision = int(entries.sum()), 0 if crossed is None else int(crossed.sum())
    told = iter(by_layer)
    found = []
    for layer in shape.layers:
        if layer.cross:
            found.append(Held(layer.elements, 0, next(told, cross_vision), cross=True))
            continue
        kept = layer.kept(len(entries))
        vision = int(entries[len(entries) - kept :].sum())
        if not cross_vision:
            vision = next(told, vision)
        # Where the window has cut, it is full: text and vision in it are as many as it holds.
        kept = layer.kept(len(entries) - inside + vision)
        found.append(Held(layer.elements, kept - vision, vision, cross=False))
    return found


def text_elements(layers: Sequence[Held], read: int) -> int:
    """Count the numbers of text, once `read` generated tokens have been read."""
    return sum(layer.elements * (layer.text + read) for layer in layers if not layer.cross)


def kv_elements(shape: Shape, request: Request, read: int, *, withdrawn: bool) -> int:
    """Count the numbers that a sequence holds once `read` generated tokens have been read.

    `Shape.kv_elements`, and for sliding windows what the engine holds.

    Args:
        withdrawn: whether its vision is gone; else all of it is there.
    """
    layers = held_layers(shape, request)
    vision = 0 if withdrawn else sum(layer.elements * layer.vision for layer in layers)
    return text_elements(layers, read) + vision


def _vision_elements(layers: Sequence[Held], found: Sequence[Change]) -> int | None:
    """Count the numbers of vision that are left after some changes; None where it can't be told."""
    whole = sum(layer.elements * layer.vision for layer in layers)
    entries = sum(layer.vision for layer in layers)
    sizes = {layer.elements for layer in layers if layer.vision}
    left = entries
    for change in found:
        if isinstance(change, Restored):
            left += change.entries
        else:
            left = 0 if change.complete else left - change.entries
    if left in (0, entries):
        return whole if left else 0
    return left * sizes.pop() if len(sizes) == 1 else None


def _changes(events: Sequence[Event]) -> Mapping[str, list[Change]]:
    """List by request how its vision went and came back while it was decoded."""
    found: dict[str, list[Change]] = {}
    for event in events:
        if isinstance(event, Withdrawn | Restored):
            found.setdefault(event.request, []).append(event)
    return found
