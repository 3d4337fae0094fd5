"""What a job takes on 1 to 1,000 workers, computed from the rate that one of them was measured at.

Nothing here was measured on more than one; what is assumed is written beside the figures.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from statistics import NormalDist

from regions.figures import missing, result, where
from regions.reference import table

IMAGES = 1_000_000
START_S = 120
"""Assumed: seconds until a worker has loaded its model."""
IMAGE_MB = 1
"""Assumed: size of an image's file."""
_PER_NODE = 8
_CHUNKS = (1, 4, 16)
_ITEMS = 4096


def scaling() -> str:
    """Write the worked example."""
    document = result("batch")
    if document is None:
        return missing("batch")
    rate = float(document["arms"]["mvw"]["items_per_s"])
    rows = [_row(workers, rate) for workers in (1, 8, 64, 1000)]
    head = (
        "Workers",
        "Command",
        "Images/s",
        f"{IMAGES:,} images",
        "Of the time, answering",
        "Largest shard",
        "Read from the file system",
    )
    sentence = (
        f"One worker was measured at {rate:.2f} images/s; all else is computed from that. "
        f"{where(document)}"
    )
    return f"{table(head, rows)}\n\n{sentence}"


def chunks() -> str:
    """Write how many slots stand empty where items are handed out in chunks."""
    document = result("batch")
    if document is None:
        return missing("batch")
    slots, lengths = int(document["slots"]), document["new_tokens"]
    answers = _answers(float(lengths["median"]), float(lengths["p90"]))
    rows = [
        (f"chunks of {times * slots}", f"{_empty(answers, slots, times * slots):.0%}")
        for times in _CHUNKS
    ]
    rows.append(("one by one, as they are wanted", f"{_empty(answers, slots, len(answers)):.0%}"))
    sentence = (
        f"Counted, not measured: {len(answers):,} answers whose lengths are log-normal with the "
        f"median ({lengths['median']:.0f} tokens) and the 90th percentile "
        f"({lengths['p90']:.0f}) of the benchmark, {slots} slots, one step for each token."
    )
    return f"{table(('Handed out', 'Slots empty, of all steps'), rows)}\n\n{sentence}"


def _row(workers: int, rate: float) -> tuple[str, ...]:
    shards = workers // _PER_NODE if workers > _PER_NODE else 1
    largest = _largest(IMAGES, shards)
    answering_s = largest / (rate * workers / shards)
    if workers == 1:
        command = "`mvw batch …`"
    elif shards == 1:
        command = f"`mvw batch … --workers {workers}`"
    else:
        command = f"{shards} × `mvw batch … --workers {_PER_NODE} --shard I/{shards}`"
    return (
        f"{workers:,}",
        command,
        f"{rate * workers:,.1f}",
        _time(START_S + answering_s),
        f"{IMAGES / (rate * workers) / (START_S + answering_s):.0%}",
        f"{largest:,.0f}",
        f"{rate * workers * IMAGE_MB:,.0f} MB/s",
    )


def _largest(images: int, shards: int) -> float:
    """Expect the largest of the shards: binomial, by the quantile at 1 - 1/(n + 1)."""
    if shards == 1:
        return images
    spread = math.sqrt(images / shards * (1 - 1 / shards))
    return images / shards + spread * NormalDist().inv_cdf(shards / (shards + 1))


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _answers(median: float, p90: float) -> list[int]:
    spread = math.log(p90 / median) / NormalDist().inv_cdf(0.9)
    chance = random.Random(0)
    return [max(1, round(chance.lognormvariate(math.log(median), spread))) for _ in range(_ITEMS)]


def _empty(answers: Sequence[int], slots: int, chunk: int) -> float:
    """Count the steps of slots without an answer, where each chunk ends before the next begins."""
    steps = 0
    for first in range(0, len(answers), chunk):
        ends = [0] * slots
        for length in answers[first : first + chunk]:
            heapq.heapreplace(ends, ends[0] + length)
        steps += max(ends) * slots
    return 1 - sum(answers) / steps
