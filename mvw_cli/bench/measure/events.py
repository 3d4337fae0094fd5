"""What a run's events tell: when vision goes and comes back, what is attended to, and KV bytes.

KV bytes are counted from the events, and once more from the configuration. The two must agree, as
the bounds rest on the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean

from mvw_cli.bench.documents import Stage, Vision
from mvw_cli.cost.bounds import VisionShare
from mvw_cli.cost.shape import Shape
from mvw_cli.engine.types import Event, Finished, Prefilled, Restored, Token, Withdrawn

Change = Withdrawn | Restored


def note_withdrawn(withdrawn: set[str], events: Iterable[Event]) -> None:
    """Keep up to date which requests have no vision left, at any layer."""
    for event in events:
        gone = _gone(event)
        if gone:
            withdrawn.add(event.request)
        elif gone is not None:
            withdrawn.discard(event.request)


def withdrawn_after(events: Iterable[Event], request: str) -> int | None:
    """Count the tokens that a request had generated when no vision was left for the first time.

    0 where the prefill has left none; None where some was left to the end.
    """
    for event in events:
        if event.request == request and _gone(event):
            return event.step if isinstance(event, Withdrawn) else 0
    return None


def _gone(event: Event) -> bool | None:
    """Whether an event leaves a sequence without vision; None where it says nothing of it."""
    if isinstance(event, Prefilled):
        by_layer = event.vision_by_layer
        return event.vision_tokens > 0 and bool(by_layer) and not any(by_layer)
    if isinstance(event, Withdrawn):
        return event.complete
    return False if isinstance(event, Restored) else None


# -- vision -----------------------------------------------------------------------------------


def vision_statistics(runs: Sequence[Sequence[Event]]) -> Vision | None:
    """Sum up what the answers of an arm attend to and hold; None without any vision tokens."""
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


def vision_share(arm: Vision, baseline: Vision) -> VisionShare:
    """Compute the share of the baseline's vision that an arm reads.

    A sliding window that has let go of an image by the end of the prefill does not tell how much of
    it the layer has read; the layer before does then.
    """
    along = baseline.attended_along
    steps = []
    for place, mine in enumerate(arm.attended_along):
        theirs = along[min(place, len(along) - 1)]
        steps.append(min(1.0, mine / theirs) if theirs else 1.0)
    prefill, last = [], 1.0
    for mine, theirs in zip(arm.held_by_layer, baseline.held_by_layer, strict=True):
        last = min(1.0, mine / theirs) if theirs else last
        prefill.append(last)
    return VisionShare(tuple(steps), tuple(prefill))


# -- KV bytes ---------------------------------------------------------------------------------


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


def stages(events: Sequence[Event]) -> list[Stage]:
    """List what was withdrawn and what came back while decoding, stage by stage."""
    changed = [[one for one in found if one.entries] for found in _changes(events).values()]
    by_stage = [[one for one in turn if one is not None] for turn in zip_longest(*changed)]
    return [
        Stage(
            turn[0].step,
            sum(one.kv_bytes_before for one in turn),
            sum(one.kv_bytes_after for one in turn),
        )
        for turn in by_stage
    ]


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


def blocks_freed(events: Sequence[Event]) -> int | None:
    """Count the blocks of a paged cache that withdrawals gave back; None where it has none."""
    freed = [event.kv_blocks_freed for event in events if isinstance(event, Withdrawn)]
    told = [one for one in freed if one is not None]
    return sum(told) if told else None


def formula_kv_bytes(
    shape: Shape, element_bytes: int, events: Sequence[Event]
) -> tuple[int, int] | None:
    """Count what `kv_bytes` counts from the configuration, the prompts and the moments alone.

    None where a policy leaves a part of the vision, or where a sliding window is full: what each
    layer holds is then for the run to tell.
    """
    changed = _changes(events)
    lengths = {
        event.request: len(event.token_ids) for event in events if isinstance(event, Finished)
    }
    before = after = 0
    for prompt in events:
        if not isinstance(prompt, Prefilled):
            continue
        changes, vision = changed.get(prompt.request, []), prompt.vision_tokens
        gone = [isinstance(change, Withdrawn) and change.complete for change in changes]
        # The newest token has not been read yet when its sequence is withdrawn, or ends.
        read = (changes[-1].step if changes else lengths[prompt.request]) - 1
        entries = prompt.prompt_tokens + read
        in_part = any(one != vision for one in prompt.vision_by_layer) or gone not in ([], [True])
        if in_part or any(layer.kept(entries) < entries for layer in shape.layers):
            return None
        text = entries if shape.has_cross_attention else entries - vision
        before += shape.cache_bytes(text, vision, element_bytes)
        after += shape.cache_bytes(text, 0 if gone else vision, element_bytes)
    return before, after


def _changes(events: Sequence[Event]) -> Mapping[str, list[Change]]:
    """List by request how its vision went and came back while it was decoded."""
    found: dict[str, list[Change]] = {}
    for event in events:
        if isinstance(event, Withdrawn | Restored):
            found.setdefault(event.request, []).append(event)
    return found
