"""The smallest m whose answers stay within a tolerance, and the profile that uses it.

The loss of an arm is the drop of its accuracy against the baseline, where the items have
references; else the part of the answers that come out differently from those of the baseline,
reasoning left off: the baseline stands in for the reference. Agreement of next tokens decides
nothing here: most words of an answer need no image, so even answers without one agree in most.

The tolerance is one on the user's own items. Whether these are enough to show as much for others is
said with it, from the interval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers, Comparison
from mvw_cli.bench.quality.proportions import wilson
from mvw_cli.bench.verdict.derived_profile import write_derived
from mvw_cli.text import percent

if TYPE_CHECKING:
    from mvw_cli.bench.documents import ProfileReport

_ARM = re.compile(r"m=(\d+)")
TAG_ARM = "until "
"""How the name of an arm begins that withdraws at a tag."""
_Z_SQUARE = 1.959964**2


@dataclass(frozen=True, slots=True)
class _Loss:
    """What an arm's answers lose against the baseline, as a share of the items."""

    share: float
    interval_95: tuple[float, float]
    items: int
    words: str
    """The counts, as the middle of a sentence."""


def with_suggestion(answers: Answers, tolerance: float) -> Answers:
    """Add the suggestion to what was found."""
    m, reason = suggest(answers, tolerance)
    return replace(answers, tolerance=tolerance, suggestion=m, suggestion_reason=reason)


def suggest(answers: Answers, tolerance: float) -> tuple[int | None, str]:
    """Find the smallest m from which on no arm loses more than the tolerance; say why, or why none.

    An m counts only if every later one that was tried is within the tolerance, too. None is named
    where the same questions lose no more without any image: they can't tell.

    Args:
        tolerance: share of the items, from 0 to 1.
    """
    arms = {arm.name: arm for arm in answers.arms}
    base = arms.get(BASELINE)
    moments = sorted(int(found[1]) for name in arms if (found := _ARM.fullmatch(name)))
    if base is None or not moments:
        return None, "No arm that withdraws after a number of tokens has been compared."
    if (silent := _can_not_tell(answers, base, arms, tolerance)) is not None:
        return None, silent
    within: list[tuple[int, _Loss]] = []
    for m in reversed(moments):
        loss = _loss(answers, base, arms[f"m={m}"])
        if loss.share > tolerance:
            break
        within.append((m, loss))
    if not within:
        latest = moments[-1]
        loss = _loss(answers, base, arms[f"m={latest}"])
        return None, (
            f"With m = {latest}, the latest that was tried, {loss.words}: {_told(loss)}. That is "
            f"more than {percent(tolerance)}."
        )
    m, loss = within[-1]
    return m, " ".join(
        [
            f"With m = {m}, {loss.words}: {_told(loss)}.",
            *_caveats(f"m={m}", m, loss, tolerance, base, arms),
        ]
    )


def suggest_tag(
    answers: Answers, tolerance: float, seen: Mapping[str, float]
) -> tuple[str | None, str]:
    """Find the tag within the tolerance at which vision goes first; say why, or why none.

    A tag comes at another token in each answer, so that no order among tags, or with an m, makes
    one vouch for another: each stands for itself.

    Args:
        seen: by arm, mean number of tokens that are generated with vision.
    """
    arms = {arm.name: arm for arm in answers.arms}
    base = arms.get(BASELINE)
    tags = sorted((name for name in arms if name.startswith(TAG_ARM)), key=lambda one: seen[one])
    if base is None or not tags:
        return None, "No arm that withdraws at a tag has been compared."
    if (silent := _can_not_tell(answers, base, arms, tolerance)) is not None:
        return None, silent
    losses = {name: _loss(answers, base, arms[name]) for name in tags}
    name = next((one for one in tags if losses[one].share <= tolerance), None)
    if name is None:
        least = min(tags, key=lambda one: losses[one].share)
        return None, (
            f"With {least}, {losses[least].words}: {_told(losses[least])}. That is more than "
            f"{percent(tolerance)}."
        )
    said = [f"With {name}, {losses[name].words}: {_told(losses[name])}."]
    return name.removeprefix(TAG_ARM), " ".join(
        [*said, *_caveats(name, seen[name], losses[name], tolerance, base, arms)]
    )


def loss_of(answers: Answers, arm: str) -> tuple[float, tuple[float, float]]:
    """Compute the share of the items that an arm loses against the baseline, with its interval."""
    arms = {one.name: one for one in answers.arms}
    loss = _loss(answers, arms[BASELINE], arms[arm])
    return loss.share, loss.interval_95


def loss_in_words(answers: Answers, arm: str) -> tuple[float, str]:
    """Compute what an arm loses, as `loss_of`, and tell it as a clause."""
    arms = {one.name: one for one in answers.arms}
    loss = _loss(answers, arms[BASELINE], arms[arm])
    return loss.share, f"{loss.words}: {_told(loss)}"


def _can_not_tell(
    answers: Answers, base: Comparison, arms: Mapping[str, Comparison], tolerance: float
) -> str | None:
    """Return why these items can't tell when an image may go; None where they can."""
    if answers.references and not base.correct:
        return f"Without withdrawal none of {answers.references} answers is right."
    control = arms.get(NO_IMAGE)
    if control is not None and (blind := _loss(answers, base, control)).share <= tolerance:
        return (
            f"Without any image {blind.words}: these questions hardly need their images, so they "
            "can't tell when an image may go."
        )
    return None


def _loss(answers: Answers, base: Comparison, arm: Comparison) -> _Loss:
    if answers.references and arm.lost is not None and arm.won is not None:
        total = answers.references
        assert arm.drop_interval_95 is not None
        words = f"{arm.correct} of {total} answers are right, {base.correct} without withdrawal"
        return _Loss((arm.lost - arm.won) / total, arm.drop_interval_95, total, words)
    total, same = arm.items, arm.same_answer or 0
    words = f"{same} of {total} answers come out as without withdrawal"
    return _Loss((total - same) / total, wilson(total - same, total), total, words)


def _told(loss: _Loss) -> str:
    low, high = (percent(end) for end in loss.interval_95)
    return f"a loss of {percent(loss.share)}, 95 % interval {low} to {high}"


def _caveats(
    arm: str,
    seen: float,
    loss: _Loss,
    tolerance: float,
    base: Comparison,
    arms: Mapping[str, Comparison],
) -> list[str]:
    said = []
    if loss.interval_95[1] <= tolerance:
        said.append(f"All of the interval is within {percent(tolerance)}.")
    elif tolerance > 0:
        # Both intervals end at z² / (n + z²) where nothing is lost.
        needed = ceil(_Z_SQUARE * (1 - tolerance) / tolerance)
        said.append(
            f"On these items that is within {percent(tolerance)}; {loss.items} are too few to "
            f"show it for others: that takes {needed} where nothing is lost, and more elsewhere."
        )
    else:
        said.append("No number of items shows that nothing is ever lost.")
    if seen >= base.generated_tokens.median:
        said.append("Half of the answers end before that, so there is little to withdraw.")
    agreement = arms[arm].agreement
    if agreement is not None:
        said.append(
            f"Along the answers without withdrawal, {percent(agreement)} of the next tokens "
            "stay the likeliest."
        )
    if NO_IMAGE not in arms:
        said.append("There was no control without an image to show that the image is needed.")
    return said


# -- the profile ----------------------------------------------------------------------------------


def write_profile(report: ProfileReport, target: Path) -> None:
    """Write a profile that withdraws at the suggested m and is else the one that was measured.

    Raises:
        UsageProblem: the file can't be written, or the measured profile is made of it.
        ValueError: nothing is suggested.
    """
    answers = report.answers
    if answers is None or answers.suggestion is None:
        raise ValueError("nothing is suggested")
    m = answers.suggestion
    write_derived(
        report.profile,
        target,
        withdrawal={"policy": "mvw", "m": m},
        description=f"m = {m}, by mvw profile on {answers.items} items",
        reason=answers.suggestion_reason or "",
        hint="mvw profile --m 16 --suggest suggested.yaml",
    )
