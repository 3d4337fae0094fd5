"""From the answers to each item to the figures of an arm, compared with the baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from mvw_cli.bench.documents import BASELINE, Comparison
from mvw_cli.bench.quality.divergence import Divergence
from mvw_cli.bench.stats import (
    FEWEST_ITEMS,
    bootstrap_interval,
    mcnemar,
    paired_drop,
    summarise,
    wilson,
)

_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Given:
    """One answer."""

    token_ids: tuple[int, ...]
    answer: str
    """The answer proper, as the adapter takes it out of the text."""
    seconds: float
    correct: bool | None
    """Whether it is the reference; None where there is none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One item under all arms."""

    given: Mapping[str, Given]
    """By arm."""
    divergence: Mapping[str, Divergence]
    """By arm, along the baseline's output; none of the baseline itself."""
    referenced: bool


def compared(name: str, rows: Sequence[Row]) -> Comparison:
    """Sum up one arm over all items.

    Raises:
        ValueError: there are no items.
    """
    own = [row.given[name] for row in rows]
    base = [row.given[BASELINE] for row in rows]
    pairs = list(zip(own, base, strict=True))
    places = [_first_difference(one.token_ids, other.token_ids) for one, other in pairs]
    differing = [float(place) for place in places if place is not None]
    judged = [one.correct for one in own if one.correct is not None]
    alone = Comparison(
        name=name,
        items=len(rows),
        identical=len(rows) - len(differing),
        first_difference=summarise(differing) if differing else None,
        agreement=None,
        kl_nats=None,
        generated_tokens=summarise([float(len(one.token_ids)) for one in own]),
        seconds=summarise([one.seconds for one in own]),
        correct=sum(judged) if judged else None,
        accuracy_interval_95=wilson(sum(judged), len(judged)) if judged else None,
        p_value=None,
    )
    if name == BASELINE:
        return alone
    found = [row.divergence[name] for row in rows]
    lost = sum(one.correct is False and other.correct is True for one, other in pairs)
    won = sum(one.correct is True and other.correct is False for one, other in pairs)
    return replace(
        alone,
        agreement=agreement(found),
        kl_nats=summarise([one.mean_kl_nats for one in found]),
        p_value=mcnemar(lost, won) if judged else None,
        same_answer=sum(answers_match(one.answer, other.answer) for one, other in pairs),
        agreement_interval_95=agreement_interval(found),
        lost=lost if judged else None,
        won=won if judged else None,
        drop_interval_95=paired_drop(lost, won, len(judged)) if judged else None,
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Find which token, from 1, is the first that differs; an end counts as one."""
    for place, (left, right) in enumerate(zip(one, other, strict=False), start=1):
        if left != right:
            return place
    return None if len(one) == len(other) else min(len(one), len(other)) + 1


def agreement(found: Sequence[Divergence]) -> float:
    """Part of the next tokens that stay the likeliest, over all tokens of all answers."""
    return sum(sum(one.agrees) for one in found) / sum(len(one.agrees) for one in found)


def agreement_interval(found: Sequence[Divergence]) -> tuple[float, float] | None:
    """Bootstrap the agreement over the answers: tokens of one answer go together."""
    if len(found) < FEWEST_ITEMS:
        return None
    counts = [(sum(one.agrees), len(one.agrees)) for one in found]
    return bootstrap_interval(
        lambda drawn: drawn[..., 0].sum(axis=1) / drawn[..., 1].sum(axis=1), counts
    )


def answers_match(one: str, other: str) -> bool:
    """Whether two answers are the same: the one rule by which an answer is judged right.

    Equal once case, runs of spaces and a final full stop are left out of account; numbers equal as
    numbers: `3`, `3.0` and `+3` are one, `1,000` is a thousand. Nothing is guessed beyond that:
    `three` is not `3`, and a sentence that holds the right word is not the right answer.
    """
    left, right = _plain(one), _plain(other)
    if left == right:
        return True
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return _number(left) == _number(right)
    return False


def _plain(text: str) -> str:
    words = " ".join(text.split()).casefold()
    return words.removesuffix(".").rstrip()


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))
