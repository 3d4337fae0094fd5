"""From the records of each arm to figures: what is right, what it cost, and against the baseline.

One tree of figures, as it lies in the JSON file; units are in the names, what is not known is None.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from mvw_cli.batch.store.log import LogReader, Record
from mvw_cli.batch.store.output import row_of
from mvw_cli.batch.store.record import clean
from mvw_cli.bench.stats import (
    FEWEST_ITEMS,
    bootstrap_interval,
    mcnemar,
    means,
    paired_drop,
    wilson,
)
from mvw_cli.errors import UsageProblem
from mvw_cli.evaluate.dataset import GROUPS, Dataset, Question
from mvw_cli.evaluate.rules import Rule, Score
from mvw_cli.evaluate.wemath import four_dimensions

SCHEMA_VERSION = 1
NEVER, NO_IMAGE = "never", "no image"
"""The arm that keeps the vision tokens, which the others are held against; and the control."""
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Part:
    """How many of some questions are right."""

    items: int
    score: float


@dataclass(frozen=True, slots=True)
class Change:
    """An arm against the baseline, over what both have answered."""

    pairs: int
    change: float
    """Of the score; below 0 is worse."""
    interval_95: Interval | None
    """Tango's where answers are right or wrong, else bootstrapped; None with too few."""
    lost: int
    """Questions whose score is lower than the baseline's, and higher."""
    won: int
    p_value: float | None
    """McNemar's exact test; None where there is more than right and wrong."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm."""

    name: str
    items: int
    """Questions that are counted: answered; where options are turned, all of their turns."""
    failed: int
    missing: int
    """Without a record, or one of another question or of other images than the baseline's."""
    unread: int
    """Answers in which the rule found none."""
    cut: int
    """Answers that ended at the limit of tokens."""
    score: float | None
    """Mean, from 0 to 1."""
    interval_95: Interval | None
    """Wilson's where answers are right or wrong, else bootstrapped."""
    vlmevalkit: float | None
    """The same by the harness's rule."""
    judged: float | None
    """The same with the judge's word on what the rule could not read."""
    generated_tokens: float | None
    """Mean of an answer, as the others of these; seconds are the median, from reading the image
    to the last token, with as many others as decoded at the same time."""
    seconds: float | None
    vision_tokens: float | None
    kv_bytes_prefill: float | None
    kv_bytes_end: float | None
    change: Change | None = None
    """None for the baseline."""
    groups: dict[str, dict[str, Part]] = field(default_factory=dict)
    """By column, then by its value."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What is the data set's own: `wemath` and `wemath_vlmevalkit`, F1 of yes and no, …"""


@dataclass(frozen=True, slots=True)
class EvalReport:
    """One data set under all arms."""

    data: str
    rule: str
    judge: str | None
    questions: int
    left_out: dict[str, int]
    circular: bool
    model: dict[str, Any]
    """What the answers come from: the fingerprint's, without the withdrawal."""
    mvw: str
    arms: list[ArmResult]
    remarks: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION
    kind: Literal["eval"] = "eval"


@dataclass(slots=True)
class Arm:
    """The records of one arm, and what they are worth, by the questions' ids."""

    name: str
    records: dict[str, Record]
    scores: dict[str, Score] = field(default_factory=dict)
    verdicts: dict[str, bool | None] = field(default_factory=dict)
    """The judge's, of those that it was asked about."""
    outdated: int = 0
    """Questions whose record is of other images than the baseline's, and was left out."""


def read_arm(
    name: str, logs: Iterable[Path], questions: Sequence[Question], baseline: Arm | None = None
) -> Arm:
    """Read the records of an arm, of one log or of those of its shards.

    The last content of a question counts, as its images may have been replaced; of one content an
    answer beats a failure, also one that did not come as far as the images.

    Args:
        baseline: whose images are to be those of this arm, but for the arm without any.

    Raises:
        UsageProblem: they were made with different settings, or are no records.
    """
    asked = {clean(one.item.id): one.item for one in questions}
    records: dict[str, Record] = {}
    runs: dict[str, Path] = {}
    for log in logs:
        reader = LogReader(log, str(log))
        for record, line in reader:
            row_of(record, line, reader)  # refuses what no record of ours holds
            runs.setdefault(record["run"], log)
            item = asked.get(record["id"])
            if item is None or record["question"] != clean(item.question):
                continue
            kept = records.get(record["id"])
            if record["status"] == "ok" or kept is None or _is_of_others(record, kept):
                slim = {key: value for key, value in record.items() if key not in _UNUSED}
                records[record["id"]] = slim
    if len(runs) > 1:
        raise UsageProblem(
            f"The answers of arm {name} were made with different settings",
            cause=f"those in {' and '.join(dict.fromkeys(map(str, runs.values())))}",
            hint="mvw eval --help",
        )
    arm = Arm(name, {})
    wanted = {} if baseline is None or name == NO_IMAGE else baseline.records
    for id in (one.item.id for one in questions if clean(one.item.id) in records):
        record = records[clean(id)]
        if id in wanted and _is_of_others(record, wanted[id]):
            arm.outdated += 1
        else:
            arm.records[id] = record
    return arm


def _is_of_others(record: Record, other: Record) -> bool:
    """Whether two records of one question are of different images, as far as both tell."""
    keys = {record.get("key"), other.get("key")}
    return None not in keys and len(keys) > 1


_UNUSED = ("text", "reasoning", "stages", "images", "question", "reference", "vision")


def score_arm(arm: Arm, rule: Rule, questions: Sequence[Question]) -> None:
    """Judge the answers of an arm by a rule."""
    arm.scores = {
        one.item.id: rule(record["answer"], one)
        for one in questions
        if (record := arm.records.get(one.item.id)) and record["status"] == "ok"
    }


def undecided(score: Score, *, letters: bool) -> bool:
    """Whether a judge has something to say: on what could not be read, or is not the right text."""
    return score.read is None or (not letters and score.value < 1)


def summed(
    dataset: Dataset, arms: Sequence[Arm], names: Sequence[str], *, judged: bool
) -> list[ArmResult]:
    """Sum up all arms; `names` are those wanted, in order, the baseline among them or not."""
    by_name = {arm.name: arm for arm in arms}
    baseline = by_name.get(NEVER)
    return [_arm(dataset, by_name[name], baseline, judged=judged) for name in names]


def _arm(dataset: Dataset, arm: Arm, baseline: Arm | None, *, judged: bool) -> ArmResult:
    questions = dataset.questions
    ours = _values(dataset, arm, lambda id: arm.scores[id].value)
    theirs = _values(dataset, arm, lambda id: arm.scores[id].harness)
    told = _values(dataset, arm, lambda id: _judged(arm, id)) if judged else {}
    ok = [record for record in arm.records.values() if record["status"] == "ok"]
    change = None
    if baseline is not None and arm.name != NEVER:
        change = _change(ours, _values(dataset, baseline, lambda id: baseline.scores[id].value))
    return ArmResult(
        name=arm.name,
        items=len(ours),
        failed=len(arm.records) - len(ok),
        missing=len(questions) - len(arm.records),
        unread=sum(score.read is None for score in arm.scores.values()),
        cut=sum(record["finish_reason"] == "length" for record in ok),
        score=_mean(ours.values()),
        interval_95=_interval([*ours.values()]),
        vlmevalkit=_mean(theirs.values()),
        judged=_mean(told.values()),
        generated_tokens=_mean(record["generated_tokens"] for record in ok),
        seconds=_median(record["timings"]["latency_ms"] for record in ok),
        vision_tokens=_mean(record["vision_tokens"] for record in ok),
        kv_bytes_prefill=_mean(record["memory"]["kv_bytes_prefill"] for record in ok),
        kv_bytes_end=_mean(record["memory"]["kv_bytes_end"] for record in ok),
        change=change,
        groups=_groups(dataset, ours),
        metrics=_metrics(dataset, arm),
    )


def _judged(arm: Arm, id: str) -> float:
    return float(arm.verdicts[id] is True) if id in arm.verdicts else arm.scores[id].value


def _values(dataset: Dataset, arm: Arm, value: Callable[[str], float | None]) -> dict[str, float]:
    """Return what each unit is worth: of several rows the least, and only where all are there."""
    units: dict[str, list[float | None]] = defaultdict(list)
    for one in dataset.questions:
        known = one.item.id in arm.scores
        units[dataset.unit(one)].append(value(one.item.id) if known else None)
    values = {unit: [one for one in found if one is not None] for unit, found in units.items()}
    return {unit: min(one) for unit, one in values.items() if len(one) == len(units[unit])}


def _is_binary(values: Iterable[float]) -> bool:
    return set(values) <= {0.0, 1.0}


def _interval(values: Sequence[float]) -> Interval | None:
    if not values:
        return None
    if _is_binary(values):
        return wilson(round(sum(values)), len(values))
    return bootstrap_interval(means, values) if len(values) >= FEWEST_ITEMS else None


def _change(ours: Mapping[str, float], base: Mapping[str, float]) -> Change | None:
    pairs = [(value, base[unit]) for unit, value in ours.items() if unit in base]
    if not pairs:
        return None
    lost, won = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    change = fmean(a - b for a, b in pairs)
    if all(map(_is_binary, pairs)):
        low, high = paired_drop(lost, won, len(pairs))
        # Added, so that nothing is -0.0.
        return Change(len(pairs), change, (0.0 - high, 0.0 - low), lost, won, mcnemar(lost, won))
    differences = [a - b for a, b in pairs]
    few = len(pairs) < FEWEST_ITEMS
    interval = None if few else bootstrap_interval(means, differences)
    return Change(len(pairs), change, interval, lost, won, None)


def _groups(dataset: Dataset, values: Mapping[str, float]) -> dict[str, dict[str, Part]]:
    found: dict[str, dict[str, Part]] = {}
    for column in GROUPS:
        members: dict[str, dict[str, float]] = defaultdict(dict)
        for one in dataset.questions:
            unit, group = dataset.unit(one), one.group(column)
            if group is not None and unit in values:
                members[group].setdefault(unit, values[unit])
        if len(members) > 1:
            found[column] = {
                name: Part(len(part), fmean(part.values()))
                for name, part in sorted(members.items())
            }
    return found


# -- what is a data set's own -------------------------------------------------------------------


def _metrics(dataset: Dataset, arm: Arm) -> dict[str, Any]:
    answered = [one for one in dataset.questions if one.item.id in arm.scores]
    if any("steps_" in str(one.row.get("key")) for one in dataset.questions):
        told = {"wemath": _wemath(answered, lambda id: arm.scores[id].value)}
        if dataset.rule == "wemath":
            told["wemath_vlmevalkit"] = _wemath(answered, lambda id: arm.scores[id].harness)
        return told
    if dataset.rule != "yes-no" or not answered:
        return {}
    yes = {True: 0, False: 0}
    said = right = 0
    for one in answered:
        is_yes = arm.scores[one.item.id].read == "yes"
        true = one.answers[0].strip().lower() == "yes"
        yes[true] += 1
        said += is_yes
        right += is_yes and true
    precision, recall = right / said if said else 0.0, right / yes[True] if yes[True] else 0.0
    both = precision + recall
    found = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "said_yes": said / len(answered),
    }
    if dataset.name == "HallusionBench":
        found |= _hallusion(answered, arm)
    return found


def _wemath(questions: Iterable[Question], value: Callable[[str], float | None]) -> dict[str, Any]:
    rows = ((str(one.row.get("ID")), str(one.row.get("key")), one.item.id) for one in questions)
    return asdict(four_dimensions((id, key, value(item) == 1.0) for id, key, item in rows))


def _hallusion(questions: Iterable[Question], arm: Arm) -> dict[str, float]:
    """Count figures and questions of HallusionBench (arXiv 2310.14566) with all answers right.

    An index is `VD_chart_0_SET_FIGURE_QUESTION`-like: its fourth to sixth parts.
    """
    figures: dict[tuple[str, ...], list[float]] = defaultdict(list)
    asked: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for one in questions:
        parts = one.item.id.split("_")
        if len(parts) > 5:
            kind, value = str(one.row.get("l2-category")), arm.scores[one.item.id].value
            figures[kind, parts[3], parts[4]].append(value)
            asked[kind, parts[3], parts[5]].append(value)
    if not figures:
        return {}
    return {
        "figure_accuracy": fmean(min(found) for found in figures.values()),
        "question_accuracy": fmean(min(found) for found in asked.values()),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) / 1000 if found else None


def item_lines(dataset: Dataset, arms: Sequence[Arm]) -> Iterable[dict[str, Any]]:
    """Yield each question with what every arm has answered and what that is worth."""
    for one in dataset.questions:
        id = one.item.id
        told: dict[str, dict[str, Any]] = {}
        for arm in arms:
            record, score = arm.records.get(id), arm.scores.get(id)
            if record is None or score is None:
                told[arm.name] = {"status": "missing" if record is None else "failed"}
                continue
            told[arm.name] = {"status": "ok", "answer": record["answer"], **asdict(score)}
            if id in arm.verdicts:
                told[arm.name]["judge"] = arm.verdicts[id]
        groups = {name: one.group(name) for name in GROUPS if one.group(name) is not None}
        yield {"id": id, "answers": [*one.answers], **groups, "arms": told}


def slug(name: str) -> str:
    """Name the file of an arm's records, without its ending."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.") or "arm"
