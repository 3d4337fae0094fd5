"""When a request withdraws, and what the scheduler tells the workers of each step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvw_cli.adapter import spellings
from mvw_cli.policies.mvw import Mvw

Span = tuple[int, int]
"""First position of a run of vision tokens, and the one after its last."""
_NEVER = sys.maxsize


@dataclass(frozen=True)
class Asked:
    """A request's withdrawal: before the pass that computes position `boundary`."""

    boundary: int
    spans: tuple[Span, ...]
    tags: tuple[str, ...] = ()
    """Texts that set the boundary once one of them has been written."""
    earliest: int = 0
    """The boundary is never before this position."""

    def tail(self) -> int:
        """Count the tokens at an output's end that a tag lies in: each has a byte or is special."""
        return 2 * max(len(tag.encode()) for tag in self.tags) + 8


def asked_of(policy: Mvw, prompt_tokens: int, spans: tuple[Span, ...]) -> Asked:
    """Turn a policy into positions: token m is read at position `prompt_tokens + m - 1`."""
    limit = policy.max if policy.m is None else policy.m
    before = prompt_tokens - 1
    return Asked(
        _NEVER if limit is None else before + limit,
        spans,
        spellings(policy.until) if isinstance(policy.until, str) else (),
        0 if policy.min is None else before + policy.min,
    )


def vision_spans(features: Iterable[Any] | None) -> tuple[Span, ...]:
    """Find where a prompt's vision tokens are; markers around them are text and stay."""
    return tuple(
        sorted(
            (first, last + 1)
            for feature in features or ()
            if feature.modality in ("image", "video")
            for first, last in feature.mm_position.extract_embeds_range()
        )
    )


@dataclass(frozen=True)
class Move:
    """One request's entries change places: its vision leaves, and what is behind it closes up."""

    old_blocks: Sequence[int]
    new_blocks: Sequence[int]
    spans: tuple[Span, ...]
    length: int
    """Positions that have an entry, vision included."""
    stand_ins: int = 0
    """Blocks that are written to and whose content others may still read: a fresh one is taken."""

    def slots(self, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots to read from and those to write to: # (n,), (n,)."""
        keep = np.ones(self.length, dtype=bool)
        for start, stop in self.spans:
            keep[start:stop] = False
        old = np.flatnonzero(keep)
        new = np.arange(len(old))
        source = np.asarray(self.old_blocks)[old // block_size] * block_size + old % block_size
        target = np.asarray(self.new_blocks)[new // block_size] * block_size + new % block_size
        moved = source != target
        return source[moved], target[moved]


@dataclass(frozen=True)
class Plan:
    """Rides on the SchedulerOutput of one step, as its attribute `mvw`; workers keep nothing."""

    removed: dict[str, int] = field(default_factory=dict)
    """By request that is scheduled and has withdrawn: how many of its positions have no entry."""
    moves: dict[str, Move] = field(default_factory=dict)
    """To be done, in this order, before anything else of the step touches the cache."""
