"""The search for policy `mvw`: the smallest m, or the earliest tag, that keeps the answers.

The rule is that of `mvw profile --suggest` (`profiling/suggest.py`). Between an m and a tag that
both keep the answers, the one with fewer tokens generated with vision is taken. It does not run
anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Answers, Comparison
from mvw_cli.bench.quality.comparisons import Given, Row, compared
from mvw_cli.bench.quality.divergence import Divergence
from mvw_cli.bench.quality.judging import answers_match
from mvw_cli.bench.verdict.suggest import TAG_ARM, loss_of, suggest, suggest_tag
from mvw_cli.calibrate.report import Outcome


def row_to_dict(row: Row) -> dict[str, Any]:
    """Write what was found of one item as plain data."""
    return {
        "given": {arm: asdict(given) for arm, given in row.given.items()},
        "divergence": {arm: asdict(found) for arm, found in row.divergence.items()},
    }


def row_from_dict(values: Mapping[str, Any], reference: str | None) -> Row:
    """Read a row; whether its answers are right is judged afresh."""
    given = {
        arm: Given(
            token_ids=tuple(one["token_ids"]),
            answer=one["answer"],
            seconds=one["seconds"],
            correct=None if reference is None else answers_match(one["answer"], reference),
        )
        for arm, one in values["given"].items()
    }
    found = {arm: Divergence(**one) for arm, one in values["divergence"].items()}
    return Row(given, found, reference is not None)


def row_in_short(row: Row) -> dict[str, Any]:
    """Tell of one item what a reader of the report wants, by arm."""
    told = {}
    for arm, given in row.given.items():
        found = row.divergence.get(arm)
        told[arm] = {
            "answer": given.answer,
            "correct": given.correct,
            "generated_tokens": len(given.token_ids),
            "tokens_with_vision": _seen(row, arm),
            "agreement": None if found is None else fmean(found.agrees),
            "kl_nats": None if found is None else found.mean_kl_nats,
        }
    return told


def answers_of(rows: Sequence[Row], arms: Sequence[str]) -> Answers:
    """Sum up the rows, in the order of the arms; the control comes last, where all rows have it.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no rows")
    control = [NO_IMAGE] if all(NO_IMAGE in row.given for row in rows) else []
    return Answers(
        items=len(rows),
        references=sum(row.referenced for row in rows),
        arms=[compared(name, rows) for name in (BASELINE, *arms, *control)],
    )


def seen_tokens(rows: Sequence[Row], arm: str) -> float:
    """Mean number of tokens generated with vision, along the answers without withdrawal."""
    return fmean(_seen(row, arm) for row in rows)


def _seen(row: Row, arm: str) -> int:
    whole = len(row.given[BASELINE].token_ids)
    at = None if arm in (BASELINE, NO_IMAGE) else row.divergence[arm].withdrawn_after
    return 0 if arm == NO_IMAGE else whole if at is None else at


def choose(rows: Sequence[Row], arms: Sequence[str], tolerance: float) -> Outcome:
    """Choose among the arms.

    Args:
        arms: without baseline and control.
        tolerance: share of the items, from 0 to 1.
    """
    answers = answers_of(rows, arms)
    seen = {arm.name: seen_tokens(rows, arm.name) for arm in answers.arms}
    found: list[tuple[float, dict[str, Any], str]] = []
    refusals = []
    if any(not arm.startswith(TAG_ARM) for arm in arms):
        m, reason = suggest(answers, tolerance)
        if m is not None:
            found.append((seen[f"m={m}"], {"policy": "mvw", "m": m}, reason))
        refusals.append(reason)
    if any(arm.startswith(TAG_ARM) for arm in arms):
        tag, reason = suggest_tag(answers, tolerance, seen)
        if tag is not None:
            arm = f"{TAG_ARM}{tag}"
            found.append((seen[arm], {"policy": "mvw", "until": tag}, reason))
        refusals.append(reason)
    curve = [_point(answers, arm, seen[arm.name], tolerance) for arm in answers.arms]
    if not found:
        return Outcome(curve, None, " ".join(dict.fromkeys(refusals)), [])
    found.sort(key=lambda one: one[0])
    before, withdrawal, reason = found[0]
    remarks = []
    if len(found) > 1:
        other = found[1][1]
        word = f"m = {other['m']}" if "m" in other else f"until {other['until']}"
        remarks.append(
            f"{word} keeps the answers as well, with {found[1][0]:.1f} tokens generated with "
            f"vision instead of {before:.1f}."
        )
    return Outcome(curve, withdrawal, reason, remarks)


def _point(answers: Answers, arm: Comparison, seen: float, tolerance: float) -> dict[str, Any]:
    """Tell the figures of one arm."""
    alone = arm.name == BASELINE
    share, interval = (None, None) if alone else loss_of(answers, arm.name)
    return {
        "arm": arm.name,
        "tokens_with_vision": seen,
        "loss": share,
        "loss_interval_95": interval,
        "within": None if share is None else share <= tolerance,
        "correct": arm.correct,
        "same_answer": arm.same_answer,
        "agreement": arm.agreement,
        "agreement_interval_95": arm.agreement_interval_95,
        "kl_nats_median": None if arm.kl_nats is None else arm.kl_nats.median,
        "kl_nats_mean": None if arm.kl_nats is None else fmean(arm.kl_nats.samples),
        "generated_tokens_median": arm.generated_tokens.median,
    }
