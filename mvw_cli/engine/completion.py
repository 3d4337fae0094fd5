"""One request's events, summed up: text, tokens, timings, withdrawal, memory.

The one home of these figures; whoever shows them adds nothing. Units are in the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mvw_cli.engine.types import Admitted, Event, Finished, Prefilled, Token, Withdrawn


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


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What was withdrawn, and when."""

    step: int
    vision_tokens: int
    entries: int
    kv_bytes_before: int
    kv_bytes_after: int


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
    timings: Timings
    kv_bytes_prefill: int
    kv_bytes_end: int
    kv_allocated_bytes_end: int


def summarise(events: Iterable[Event]) -> Completion:
    """Sum up the events of one finished request.

    Raises:
        ValueError: the events are not those of one whole request.
    """
    admitted = prefilled = finished = withdrawn = None
    stamps: list[float] = []
    for event in events:
        match event:
            case Admitted():
                admitted = event
            case Prefilled():
                prefilled = event
            case Token():
                stamps.append(event.at)
            case Withdrawn():
                withdrawn = event
            case Finished():
                finished = event
    if admitted is None or prefilled is None or finished is None or not stamps:
        raise ValueError("the events do not make up one whole request")
    return Completion(
        text=finished.text,
        token_ids=finished.token_ids,
        finish_reason=finished.reason,
        prompt_tokens=prefilled.prompt_tokens,
        vision_tokens=prefilled.vision_tokens,
        generated_tokens=len(finished.token_ids),
        withdrawal=None if withdrawn is None else _withdrawal(withdrawn),
        timings=_timings(admitted.at, stamps, withdrawn),
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


def _timings(start: float, stamps: list[float], withdrawn: Withdrawn | None) -> Timings:
    last = stamps[-1]
    visible = stamps if withdrawn is None else stamps[: withdrawn.step]
    after = 0 if withdrawn is None else len(stamps) - withdrawn.step
    return Timings(
        ttft_ms=(stamps[0] - start) * 1e3,
        decode_ms=(last - stamps[0]) * 1e3,
        tokens_per_s=_rate(len(stamps) - 1, last - stamps[0]),
        tokens_per_s_before=_rate(len(visible) - 1, visible[-1] - visible[0]),
        tokens_per_s_after=None if withdrawn is None else _rate(after, last - withdrawn.at),
        withdrawal_ms=None if withdrawn is None else withdrawn.duration_s * 1e3,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
