"""WeMath's four dimensions (arXiv 2407.01284), from which answers are right.

A problem is asked whole and in its two or three steps. What is divided by is the problems that are
there with all their steps; VLMEvalKit's own figure (`dataset/utils/wemath.py`) divides by 525 and
subtracts what went wrong, so that a problem that is missing counts as mastered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALL = 525
"""Problems of the whole data set: 360 of two steps, 165 of three."""


@dataclass(frozen=True, slots=True)
class FourDimensions:
    """Problems by how their steps and the whole were answered; shares are None where of nothing."""

    problems: int
    incomplete: int
    """Problems that lack an answer to the whole or to a step, and are left out."""
    insufficient_knowledge: int
    """IK: some step wrong, and the whole wrong."""
    inadequate_generalization: int
    """IG: all steps right, and the whole wrong."""
    complete_mastery_strict: int
    """CM: all steps right, and the whole; loose: some step, and the whole."""
    complete_mastery_loose: int
    rote_memorization_strict: int
    """RM: some step wrong, and the whole right; loose: all steps wrong."""
    rote_memorization_loose: int
    rote_memorization_rate_strict: float | None
    """RM / (CM + RM)."""
    rote_memorization_rate_loose: float | None
    score_strict: float | None
    """1 - (RM + IK + IG / 2) / problems."""
    score_loose: float | None
    vlmevalkit_score_strict: float
    """The same with 525 in the place of the problems that are there."""
    vlmevalkit_score_loose: float
    one_step: float | None
    """S1: the part of the single steps that are right."""
    two_step: float | None
    """S2: of the problems of two steps, as a whole."""
    three_step: float | None


def four_dimensions(answered: Iterable[tuple[str, str, bool]]) -> FourDimensions:
    """Sum up answers.

    Args:
        answered: `ID`, `key` (`2steps_1`, `2steps_multi`, …) and whether it is right.
    """
    problems: dict[tuple[int, str], dict[str, bool]] = {}
    for id, key, right in answered:
        first, _, part = key.partition("steps_")
        if first in ("2", "3") and part:
            problems.setdefault((int(first), id), {})[part] = right
    whole = {
        (steps, id): parts
        for (steps, id), parts in problems.items()
        if parts.keys() >= {*map(str, range(1, steps + 1)), "multi"}
    }
    knowledge = generalization = 0
    mastery, rote = {"strict": 0, "loose": 0}, {"strict": 0, "loose": 0}
    single: list[bool] = []
    for (steps, _), parts in whole.items():
        each = [parts[str(step)] for step in range(1, steps + 1)]
        single += each
        if not parts["multi"]:
            generalization += all(each)
            knowledge += not all(each)
            continue
        mastery["strict"] += all(each)
        mastery["loose"] += any(each)
        rote["strict"] += not all(each)
        rote["loose"] += not any(each)

    def score(kind: str, of: int) -> float:
        return (of - 0.5 * generalization - rote[kind] - knowledge) / of

    count = len(whole)
    return FourDimensions(
        problems=count,
        incomplete=len(problems) - count,
        insufficient_knowledge=knowledge,
        inadequate_generalization=generalization,
        complete_mastery_strict=mastery["strict"],
        complete_mastery_loose=mastery["loose"],
        rote_memorization_strict=rote["strict"],
        rote_memorization_loose=rote["loose"],
        rote_memorization_rate_strict=_share(rote["strict"], rote["strict"] + mastery["strict"]),
        rote_memorization_rate_loose=_share(rote["loose"], rote["loose"] + mastery["loose"]),
        score_strict=score("strict", count) if count else None,
        score_loose=score("loose", count) if count else None,
        vlmevalkit_score_strict=score("strict", ALL),
        vlmevalkit_score_loose=score("loose", ALL),
        one_step=_share(sum(single), len(single)),
        two_step=_wholes(whole, 2),
        three_step=_wholes(whole, 3),
    )


def _wholes(problems: Mapping[tuple[int, str], Mapping[str, bool]], steps: int) -> float | None:
    found = [parts["multi"] for (count, _), parts in problems.items() if count == steps]
    return _share(sum(found), len(found))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
