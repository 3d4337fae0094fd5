"""What the queries of an arm attend to, and what of the image its layers hold, by its runs' events.

Beside the baseline's it says what part of the image a step or a prefill still has to read, which is
what a bound needs. It does not know policies, nor what anything costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mvw_cli.bench.report.documents import Vision
from mvw_cli.engine.types import Event, Prefilled, Restored, Token, Withdrawn


@dataclass(frozen=True, slots=True)
class Part:
    """The part of the baseline's vision that an arm reads; 1 is all of it."""

    steps: tuple[float, ...]
    """Of each generated token's query, mean over the layers; the first is the prefill's."""
    prefill: tuple[float, ...]
    """Of what each layer reads in the prefill, layer by layer."""
    withdraws: bool
    """Whether any vision goes while decoding."""


def vision(runs: Sequence[Sequence[Event]]) -> Vision | None:
    """Sum up what the answers of an arm attend to and hold; None without any vision tokens.

    Args:
        runs: the events of each run.
    """
    held: list[Sequence[int]] = []
    answers: list[list[float]] = []
    changes = looks = 0
    for events in runs:
        seeing = {
            event.request: event
            for event in events
            if isinstance(event, Prefilled) and event.vision_tokens and event.vision_by_layer
        }
        held += [event.vision_by_layer for event in seeing.values()]
        attended: dict[str, list[float]] = {request: [] for request in seeing}
        for event in events:
            if event.request not in seeing:
                continue
            if isinstance(event, Token):
                attended[event.request].append(event.vision_attended)
            changes += isinstance(event, Withdrawn) and event.entries > 0
            looks += isinstance(event, Restored)
        answers += [found for found in attended.values() if found]
    if not answers:
        return None
    by_layer = [fmean(counts) for counts in zip(*held, strict=True)]
    longest = max(map(len, answers))
    return Vision(
        attended=fmean(fmean(found) for found in answers),
        attended_along=[
            fmean(found[place] for found in answers if place < len(found))
            for place in range(longest)
        ],
        held_by_layer=by_layer,
        entries_held=sum(by_layer),
        withdrawals=changes / len(held),
        look_backs=looks / len(held),
    )


def part_of(arm: Vision, baseline: Vision) -> Part:
    """Say what part of the baseline's vision an arm reads.

    A sliding window that has let go of an image by the end of the prefill does not tell how much of
    it the layer has read; the layer before does then.
    """
    along = baseline.attended_along
    steps = (
        _share(mine, along[min(place, len(along) - 1)])
        for place, mine in enumerate(arm.attended_along)
    )
    prefill, last = [], 1.0
    for mine, theirs in zip(arm.held_by_layer, baseline.held_by_layer, strict=True):
        last = _share(mine, theirs) if theirs else last
        prefill.append(last)
    return Part(tuple(steps), tuple(prefill), arm.withdrawals > 0)


def _share(mine: float, theirs: float) -> float:
    return min(1.0, mine / theirs) if theirs else 1.0
