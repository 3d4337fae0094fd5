"""One request's events, summed up: text, tokens, timings, withdrawal, memory.

The one home of these figures; whoever shows them adds nothing. Units are in the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mvw_cli.engine.types import (
    Admitted,
    Event,
    Finished,
    Prefilled,
    Restored,
    Token,
    Withdrawn,
)


@dataclass(frozen=True, slots=True)
class Timings:
    """When things happened. A rate is None where too few tokens were generated to give one."""

    ttft_ms: float
    """From the start of the prefill to the first token; reading the image comes before it."""
    decode_ms: float
    """From the first token to the last."""
    tokens_per_s: float | None
    """Over the decode steps, withdrawal included."""
    tokens_per_s_before: float | None
    """Over the decode steps before the withdrawal; all of them where there was none."""
    tokens_per_s_after: float | None
    """Over the decode steps after the withdrawal; None where there was none."""
    withdrawal_ms: float | None
    """All withdrawals, and what came back in between; None where there was none."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What was withdrawn, and when: the first that left no vision, else the first of some."""

    step: int
    vision_tokens: int
    entries: int
    kv_bytes_before: int
    kv_bytes_after: int


@dataclass(frozen=True, slots=True)
class VisionStats:
    """What there was to see, over the whole output."""

    entries_prefill: int
    """Vision entries in the cache after the prefill, summed over the layers."""
    attended_per_token: float
    """Vision tokens that a generated token's query attended to: mean over the tokens, and over the
    layers that would hold vision without any withdrawal."""
    withdrawals: int
    """How often vision was taken, all of it or a part."""
    restores: int
    """How often it came back."""
    offloaded_bytes_peak: int
    """Largest size of the copies in host memory."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one request."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    vision_tokens: int
    generated_tokens: int
    withdrawal: Withdrawal | None
    vision: VisionStats
    timings: Timings
    kv_bytes_prefill: int
    kv_bytes_end: int
    kv_allocated_bytes_end: int


def summarise(events: Iterable[Event]) -> Completion:
    """Sum up the events of one finished request.

    Raises:
        ValueError: the events are not those of one whole request.
    """
    admitted = prefilled = finished = None
    tokens: list[Token] = []
    changes: list[Withdrawn | Restored] = []
    for event in events:
        match event:
            case Admitted():
                admitted = event
            case Prefilled():
                prefilled = event
            case Token():
                tokens.append(event)
            case Withdrawn() | Restored():
                changes.append(event)
            case Finished():
                finished = event
    if admitted is None or prefilled is None or finished is None or not tokens:
        raise ValueError("the events do not make up one whole request")
    taken = [event for event in changes if isinstance(event, Withdrawn)]
    withdrawn = next((event for event in taken if event.complete), next(iter(taken), None))
    return Completion(
        text=finished.text,
        token_ids=finished.token_ids,
        finish_reason=finished.reason,
        prompt_tokens=prefilled.prompt_tokens,
        vision_tokens=prefilled.vision_tokens,
        generated_tokens=len(finished.token_ids),
        withdrawal=None if withdrawn is None else _withdrawal(withdrawn),
        vision=VisionStats(
            entries_prefill=sum(prefilled.vision_by_layer),
            attended_per_token=sum(token.vision_attended for token in tokens) / len(tokens),
            withdrawals=len(taken),
            restores=len(changes) - len(taken),
            offloaded_bytes_peak=max((event.offloaded_bytes for event in taken), default=0),
        ),
        timings=_timings(
            admitted.at,
            [token.at for token in tokens],
            withdrawn,
            sum(event.duration_s for event in changes),
        ),
        kv_bytes_prefill=prefilled.kv_bytes,
        kv_bytes_end=finished.kv_bytes,
        kv_allocated_bytes_end=finished.kv_allocated_bytes,
    )


def _withdrawal(event: Withdrawn) -> Withdrawal:
    return Withdrawal(
        step=event.step,
        vision_tokens=event.vision_tokens,
        entries=event.entries,
        kv_bytes_before=event.kv_bytes_before,
        kv_bytes_after=event.kv_bytes_after,
    )


def _timings(
    start: float, stamps: list[float], withdrawn: Withdrawn | None, took_s: float
) -> Timings:
    last = stamps[-1]
    visible = stamps if withdrawn is None else stamps[: withdrawn.step]
    after = 0 if withdrawn is None else len(stamps) - withdrawn.step
    return Timings(
        ttft_ms=(stamps[0] - start) * 1e3,
        decode_ms=(last - stamps[0]) * 1e3,
        tokens_per_s=_rate(len(stamps) - 1, last - stamps[0]),
        tokens_per_s_before=_rate(len(visible) - 1, visible[-1] - visible[0]),
        tokens_per_s_after=None if withdrawn is None else _rate(after, last - withdrawn.at),
        withdrawal_ms=None if withdrawn is None else took_s * 1e3,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
