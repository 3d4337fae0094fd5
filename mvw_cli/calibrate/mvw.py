"""The search for policy `mvw`: the smallest m, or the earliest tag, that keeps the answers.

An arm loses the drop of its accuracy against the baseline, where the items have references; else
the part of the answers that come out differently from those of the baseline, reasoning left off:
the baseline stands in for the reference. Agreement of next tokens decides nothing here: most words
of an answer need no image, so even answers without one agree in most.

The tolerance is one on the user's own items. Whether these are enough to show as much for others is
said with it, from the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from math import ceil
from statistics import fmean
from typing import Any, ClassVar

from mvw_cli.bench.documents import BASELINE, NO_IMAGE
from mvw_cli.bench.matching import answers_match
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.quality import answers as answering
from mvw_cli.bench.stats import paired_drop, wilson
from mvw_cli.calibrate.search import Column, Outcome, Search, SearchRun, cell
from mvw_cli.engine.types import Request
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.render.chart import Chart, Line
from mvw_cli.text import count, number, percent, percents

TAG_ARM = "until "
"""How the name of an arm begins that withdraws at a tag."""
NO_CONTROL = "There was no control without an image to show that the image is needed."
_Z_SQUARE = 1.959964**2
_TOKENS = ("given", "divergence", "referenced")
"""Of a sample: every token of every answer. The report has their sums, the store has them whole."""


@dataclass
class MvwSearch(Search):
    """The options of `mvw calibrate mvw`."""

    doing: ClassVar[str] = "Comparing the answers, sample"
    measured_by: ClassVar[tuple[str, ...]] = ("m", "tags")
    title: ClassVar[str] = "Withdrawn after m tokens, or at a tag"
    columns: ClassVar[Sequence[Column]] = (
        ("", cell("arm", str)),
        ("tokens with vision", cell("tokens_with_vision", number)),
        ("loss", cell("loss", lambda loss: percent(max(0.0, loss)))),
        ("95 %", cell("loss_interval_95", percents)),
        ("right", cell("correct", count)),
        ("agreement", cell("agreement", percent)),
        ("KL, nats", cell("kl_nats_mean", number)),
    )

    m: tuple[int, ...]
    tags: tuple[str, ...] | None
    tolerance: float
    """Share of the items, from 0 to 1."""
    _comparing: answering.Comparing | None = None

    def arms(self) -> dict[str, WithdrawalPolicy]:
        """Name the policies that are compared, the baseline first, then each m in order."""
        counted = {f"m={m}": Mvw(m=m) for m in sorted(self.m)}
        tags = {f"{TAG_ARM}{tag}": Mvw(until=tag) for tag in self.tags or ()}
        return {BASELINE: NoWithdrawal(), **counted, **tags}

    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> dict[str, Any]:
        if self._comparing is None:
            self._comparing = answering.Comparing(
                run.session,
                self.arms(),
                replace(run.session.settings, ignore_eos=False),
                progress=lambda place, arm: run.progress(f"Item {place}: {arm}", 0, 0),
                stopping=lambda: run.stopping(),
            )
        asked = replace(request, policy=NoWithdrawal(), settings=self._comparing.settings)
        row = answering.answer_item(self._comparing, run.items.index(item), asked, item)
        return asdict(row)

    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        for sample in samples:
            sample["reference"] = run.items[sample["number"] - 1].reference
        outcome = choose(samples, [*self.arms()][1:], self.tolerance)
        if self._comparing is not None:
            outcome.remarks.extend(self._comparing.remarks)
        return outcome

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return of a sample what a reader of the report wants, by arm."""
        arms = {
            arm: {
                "answer": given["answer"],
                "correct": right(sample, arm),
                "generated_tokens": len(given["token_ids"]),
                "tokens_with_vision": tokens_with_vision(sample, arm),
            }
            for arm, given in sample["given"].items()
        }
        return {**{name: sample[name] for name in sample if name not in _TOKENS}, "arms": arms}

    def charts(self, outcome: Outcome) -> list[Chart]:
        """Draw agreement and loss against the tokens that are generated with vision."""
        arms = [one for one in outcome.curve if one["arm"] not in (BASELINE, NO_IMAGE)]
        return [
            Chart(
                "answers-by-m",
                "What withdrawal after m tokens leaves of the answers",
                "tokens generated with vision, mean",
                "part of the answers or tokens",
                "%",
                "The part of the next tokens that stay the likeliest, and the part of the answers "
                "that are not lost.",
                [
                    *_lines(arms, "next tokens that agree", 1, lambda one: 100 * one["agreement"]),
                    *_lines(arms, "answers kept", 2, lambda one: 100 * min(1, 1 - one["loss"])),
                ],
            )
        ]


def _lines(
    arms: list[dict[str, Any]], name: str, colour: int, read: Callable[[dict[str, Any]], float]
) -> list[Line]:
    """Make a line of the m, and a dot of each tag."""
    lines = {name: [one for one in arms if not one["arm"].startswith(TAG_ARM)]}
    lines |= {f"{name}, {one['arm']}": [one] for one in arms if one["arm"].startswith(TAG_ARM)}
    return [
        Line(
            shown, colour, [one["tokens_with_vision"] for one in some], [read(one) for one in some]
        )
        for shown, some in lines.items()
        if some
    ]


# -- what an arm loses --------------------------------------------------------------------------

Sample = Mapping[str, Any]
"""As the store has it: `given` and `divergence` by arm, as in `Row`; and the `reference`, or None.
"""


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


def right(sample: Sample, arm: str) -> bool | None:
    """Whether an arm's answer is the reference; None where there is none."""
    reference = sample["reference"]
    return None if reference is None else answers_match(sample["given"][arm]["answer"], reference)


def loss_of(samples: Sequence[Sample], arm: str) -> Loss:
    """Compute what an arm loses."""
    judged = [(right(one, BASELINE), right(one, arm)) for one in samples]
    judged = [pair for pair in judged if pair[0] is not None]
    if judged:
        lost, won = judged.count((True, False)), judged.count((False, True))
        before, after = (sum(map(bool, side)) for side in zip(*judged, strict=True))
        total = len(judged)
        counts = f"{after} of {total} answers are right, {before} without withdrawal"
        return Loss((lost - won) / total, paired_drop(lost, won, total), total, counts)
    pairs = [(one["given"][arm]["answer"], one["given"][BASELINE]["answer"]) for one in samples]
    total, same = len(pairs), sum(answers_match(*pair) for pair in pairs)
    counts = f"{same} of {total} answers come out as without withdrawal"
    return Loss((total - same) / total, wilson(total - same, total), total, counts)


# -- the rule -----------------------------------------------------------------------------------


def choose(samples: Sequence[Sample], arms: Sequence[str], tolerance: float) -> Outcome:
    """Choose the arm with the fewest tokens with vision of those that keep the tolerance.

    An m counts only if every later one that was tried keeps it, too. A tag comes at another token
    in each answer, so that no order among tags, or with an m, makes one vouch for another: each
    stands for itself. None is chosen where the same questions lose no more without any image.

    Args:
        arms: without baseline and control; each m in ascending order, then the tags.
        tolerance: share of the items, from 0 to 1.
    """
    control = [NO_IMAGE] if all(NO_IMAGE in one["given"] for one in samples) else []
    losses = {arm: loss_of(samples, arm) for arm in (*arms, *control)}
    curve = [_point(samples, arm, losses.get(arm), tolerance) for arm in (BASELINE, *losses)]
    before = curve[0]
    if before["correct"] == 0:
        reason = f"Without withdrawal none of {losses[arms[0]].items} answers is right."
        return Outcome(curve, None, reason)
    if control and losses[NO_IMAGE].share <= tolerance:
        reason = (
            f"Without any image {losses[NO_IMAGE].counts}: these questions hardly need their "
            "images, so they can't tell when an image may go."
        )
        return Outcome(curve, None, reason)
    kept = {one["arm"]: one for one in curve if one["arm"] in arms and one["within"]}
    counted = [arm for arm in arms if not arm.startswith(TAG_ARM)]
    vouched = list(takewhile(kept.__contains__, reversed(counted)))
    tags = [arm for arm in arms if arm.startswith(TAG_ARM)]
    qualifying = [*reversed(vouched), *(arm for arm in tags if arm in kept)]
    if not qualifying:
        nearest = min([*counted[-1:], *tags], key=lambda arm: losses[arm].share)
        reason = f"With {nearest}, {losses[nearest]}. That is more than {percent(tolerance)}."
        return Outcome(curve, None, reason)
    chosen = min(qualifying, key=lambda arm: float(kept[arm]["tokens_with_vision"]))
    kept[chosen]["chosen"] = True
    key, value = ("m", int(chosen[2:])) if chosen in counted else ("until", chosen[len(TAG_ARM) :])
    reason = f"With {chosen}, {losses[chosen]}. {_shown_for_others(losses[chosen], tolerance)}"
    remarks = [] if control else [NO_CONTROL]
    return Outcome(curve, {"policy": "mvw", key: value}, reason, remarks)


def _shown_for_others(loss: Loss, tolerance: float) -> str:
    """Tell whether the items are enough to show the tolerance for others, too."""
    if loss.interval_95[1] <= tolerance:
        return f"All of the interval is within {percent(tolerance)}."
    if tolerance == 0:
        return "No number of items shows that nothing is ever lost."
    # Both intervals end at z² / (n + z²) where nothing is lost.
    needed = ceil(_Z_SQUARE * (1 - tolerance) / tolerance)
    return (
        f"On these items that is within {percent(tolerance)}; {loss.items} are too few to show it "
        f"for others: that takes {needed} where nothing is lost, and more elsewhere."
    )


def tokens_with_vision(sample: Sample, arm: str) -> int:
    """Count the tokens generated with vision, along the answer without withdrawal."""
    if arm == NO_IMAGE:
        return 0
    at = None if arm == BASELINE else sample["divergence"][arm]["withdrawn_after"]
    return len(sample["given"][BASELINE]["token_ids"]) if at is None else int(at)


def _point(
    samples: Sequence[Sample], arm: str, loss: Loss | None, tolerance: float
) -> dict[str, Any]:
    """Write the figures of one arm; the baseline has no loss."""
    judged = [one for one in (right(sample, arm) for sample in samples) if one is not None]
    point: dict[str, Any] = {
        "arm": arm,
        "tokens_with_vision": fmean(tokens_with_vision(one, arm) for one in samples),
        "correct": sum(judged) if judged else None,
        **dict.fromkeys(("loss", "loss_interval_95", "within", "agreement", "kl_nats_mean")),
    }
    if loss is not None:
        found = [one["divergence"][arm] for one in samples]
        agrees = [agrees for one in found for agrees in one["agrees"]]
        point |= {
            "loss": loss.share,
            "loss_interval_95": loss.interval_95,
            "within": loss.share <= tolerance,
            "agreement": fmean(agrees),
            "kl_nats_mean": fmean(fmean(one["kl_nats"]) for one in found),
        }
    return point
