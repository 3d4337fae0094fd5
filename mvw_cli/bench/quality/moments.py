"""When the vision of a sequence goes and when it comes back, as a run's events tell it.

Policies differ: the vision may go at once, bit by bit, in the prefill already, and for a while
only. It does not know what is made of that.
"""

from __future__ import annotations

from collections.abc import Iterable

from mvw_cli.engine.types import Event, Prefilled, Restored, Withdrawn


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
        return (
            event.vision_tokens > 0
            and bool(event.vision_by_layer)
            and not any(event.vision_by_layer)
        )
    if isinstance(event, Withdrawn):
        return event.complete
    return False if isinstance(event, Restored) else None


def changes(events: Iterable[Event]) -> list[int]:
    """List the numbers of tokens after which vision went or came back, in any sequence."""
    return sorted({event.step for event in events if isinstance(event, Withdrawn | Restored)})
