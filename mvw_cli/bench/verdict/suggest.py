"""The smallest m, or the earliest tag, whose answers stay within a tolerance.

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
from dataclasses import dataclass
from math import ceil

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers
from mvw_cli.bench.stats import wilson
from mvw_cli.text import percent

_ARM = re.compile(r"m=(\d+)")
TAG_ARM = "until "
"""How the name of an arm begins that withdraws at a tag."""
_Z_SQUARE = 1.959964**2


@dataclass(frozen=True, slots=True)
class Loss:
    """What an arm's answers lose against the baseline, as a share of the items."""

    share: float
    interval_95: tuple[float, float]
    items: int
    counts: str
    """As the middle of a sentence."""

    def __str__(self) -> str:
        low, high = (percent(end) for end in self.interval_95)
        return f"{self.counts}: a loss of {percent(self.share)}, 95 % interval {low} to {high}"


def loss_of(answers: Answers, name: str) -> Loss:
    """Compute what an arm loses; its text is a clause that tells it."""
    arms = {arm.name: arm for arm in answers.arms}
    arm = arms[name]
    if answers.references and arm.lost is not None and arm.won is not None:
        total, right = answers.references, arms[BASELINE].correct
        assert arm.drop_interval_95 is not None
        counts = f"{arm.correct} of {total} answers are right, {right} without withdrawal"
        return Loss((arm.lost - arm.won) / total, arm.drop_interval_95, total, counts)
    total, same = arm.items, arm.same_answer or 0
    counts = f"{same} of {total} answers come out as without withdrawal"
    return Loss((total - same) / total, wilson(total - same, total), total, counts)


def suggest(answers: Answers, tolerance: float) -> tuple[int | None, str]:
    """Find the smallest m from which on no arm loses more than the tolerance; say why, or why none.

    An m counts only if every later one that was tried is within the tolerance, too. None is named
    where the same questions lose no more without any image: they can't tell.

    Args:
        tolerance: share of the items, from 0 to 1.
    """
    names = [arm.name for arm in answers.arms]
    moments = sorted(int(found[1]) for name in names if (found := _ARM.fullmatch(name)))
    if BASELINE not in names or not moments:
        return None, "No arm that withdraws after a number of tokens has been compared."
    if (silent := _can_not_tell(answers, tolerance)) is not None:
        return None, silent
    m = None
    for moment in reversed(moments):
        if loss_of(answers, f"m={moment}").share > tolerance:
            break
        m = moment
    if m is None:
        latest = moments[-1]
        return None, (
            f"With m = {latest}, the latest that was tried, {loss_of(answers, f'm={latest}')}. "
            f"That is more than {percent(tolerance)}."
        )
    return m, _reason(answers, f"m={m}", f"m = {m}", m, tolerance)


def suggest_tag(
    answers: Answers, tolerance: float, seen: Mapping[str, float]
) -> tuple[str | None, str]:
    """Find the tag within the tolerance at which vision goes first; say why, or why none.

    A tag comes at another token in each answer, so that no order among tags, or with an m, makes
    one vouch for another: each stands for itself.

    Args:
        seen: by arm, mean number of tokens that are generated with vision.
    """
    names = [arm.name for arm in answers.arms]
    tags = sorted((name for name in names if name.startswith(TAG_ARM)), key=lambda one: seen[one])
    if BASELINE not in names or not tags:
        return None, "No arm that withdraws at a tag has been compared."
    if (silent := _can_not_tell(answers, tolerance)) is not None:
        return None, silent
    losses = {name: loss_of(answers, name) for name in tags}
    name = next((one for one in tags if losses[one].share <= tolerance), None)
    if name is None:
        least = min(tags, key=lambda one: losses[one].share)
        return None, f"With {least}, {losses[least]}. That is more than {percent(tolerance)}."
    return name.removeprefix(TAG_ARM), _reason(answers, name, name, seen[name], tolerance)


def _can_not_tell(answers: Answers, tolerance: float) -> str | None:
    """Return why these items can't tell when an image may go; None where they can."""
    arms = {arm.name: arm for arm in answers.arms}
    if answers.references and not arms[BASELINE].correct:
        return f"Without withdrawal none of {answers.references} answers is right."
    if NO_IMAGE in arms and (blind := loss_of(answers, NO_IMAGE)).share <= tolerance:
        return (
            f"Without any image {blind.counts}: these questions hardly need their images, so they "
            "can't tell when an image may go."
        )
    return None


def _reason(answers: Answers, name: str, called: str, seen: float, tolerance: float) -> str:
    """Tell why an arm is suggested, and what its figures do not show."""
    arms, loss = {arm.name: arm for arm in answers.arms}, loss_of(answers, name)
    said = [f"With {called}, {loss}."]
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
    if seen >= arms[BASELINE].generated_tokens.median:
        said.append("Half of the answers end before that, so there is little to withdraw.")
    agreement = arms[name].agreement
    if agreement is not None:
        said.append(
            f"Along the answers without withdrawal, {percent(agreement)} of the next tokens "
            "stay the likeliest."
        )
    if NO_IMAGE not in arms:
        said.append("There was no control without an image to show that the image is needed.")
    return " ".join(said)
