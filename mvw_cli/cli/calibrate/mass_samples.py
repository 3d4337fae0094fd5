"""The samples of `mvw calibrate mass`: answered, read again with withdrawals, answered under them.

Each outcome goes into the log as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvw_cli.bench.quality.divergence import Divergence
from mvw_cli.calibrate.mass import (
    BLIND,
    Traced,
    divergences_at,
    record,
    withdrawn_after,
)
from mvw_cli.cli.calibrate.samples import Tick, Work, measured, opened
from mvw_cli.policies.mass import Mass

if TYPE_CHECKING:
    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.engine.types import Request

_ARM = "mass"


def recorded(work: Work, like: Mass) -> list[dict[str, Any]]:
    """Answer every item without withdrawal, and keep the masses."""

    def measure(request: Request, item: ItemSpec, tick: Tick) -> dict[str, Any]:
        found = record(work.session, request, like, tick)
        answer = work.session.adapter.parse(found.text).answer
        values = asdict(found)
        del values["text"]
        return {"answer": answer, **values}

    return measured(work, "Recording the mass", measure)


def traced(
    work: Work, samples: Sequence[dict[str, Any]], like: Mass, thresholds: Sequence[float]
) -> list[Traced]:
    """Read every answer with the vision withdrawn wherever one of the thresholds would."""
    found = []
    for place, sample in enumerate(samples, start=1):
        work.tick()
        work.view.progress("Reading the answers with withdrawals, sample", place, len(samples))
        moments = {
            withdrawn_after(replace(like, threshold=one), sample["mass"]) for one in thresholds
        }
        wanted = [str(step) for step in sorted(step for step in moments if step is not None)]
        names = [*wanted, BLIND]
        missing = [one for one in names if work.log.get(f"{sample['key']}@{one}") is None]
        if missing:
            _read(work, sample, missing)
        at = {}
        for name in names:
            kept = work.log.get(f"{sample['key']}@{name}")
            if kept is not None and kept["kl_nats"] is not None:
                fields = ("kl_nats", "agrees", "withdrawn_after")
                at[name] = Divergence(**{field: kept[field] for field in fields})
        found.append(Traced(len(sample["token_ids"]), sample["mass"], at))
    return found


def _read(work: Work, sample: dict[str, Any], names: Sequence[str]) -> None:
    """Read one answer with withdrawals, and keep what is found."""
    item = work.begun.items.items[sample["number"] - 1]
    _, encode = opened(work.session, item)
    request = encode()
    blind = _blind(work, item) if BLIND in names else None
    steps = [int(one) for one in names if one != BLIND]
    found = divergences_at(work.session, request, sample["token_ids"], steps, blind, work.tick)
    if BLIND in names and blind is None:
        work.log.put(f"{sample['key']}@{BLIND}", {"kl_nats": None})
    for name, divergence in found.items():
        work.log.put(f"{sample['key']}@{name}", asdict(divergence))


def _blind(work: Work, item: ItemSpec) -> Request | None:
    """Ask an item's question without its image; None where that can't be."""
    from mvw_cli.bench.quality.answers import Comparing, Unanswerable, without_image

    comparing = Comparing(
        work.session, {}, work.session.settings, lambda *_: None, lambda: work.shutdown.requested
    )
    try:
        return without_image(comparing, item.question)
    except Unanswerable:
        return None


def answered(
    work: Work,
    samples: Sequence[dict[str, Any]],
    traces: Sequence[Traced],
    like: Mass,
    threshold: float,
) -> tuple[float, str]:
    """Answer every item under a threshold; return the loss by the rule of --suggest, in words too.

    It is the drop of the right answers, or without references the part of answers that come out
    otherwise.
    """
    from mvw_cli.bench.documents import BASELINE
    from mvw_cli.bench.quality.comparisons import Given, Row
    from mvw_cli.bench.quality.judging import answers_match
    from mvw_cli.bench.verdict.suggest import loss_in_words
    from mvw_cli.calibrate.moments import answers_of

    policy = replace(like, threshold=threshold)
    rows = []
    for place, (sample, trace) in enumerate(zip(samples, traces, strict=True), start=1):
        work.tick()
        doing = f"Answering at a threshold of {threshold:g}, sample"
        work.view.progress(doing, place, len(samples))
        item = work.begun.items.items[sample["number"] - 1]
        own = _answer(work, sample, item, policy)
        given = {
            name: Given(
                token_ids=tuple(one["token_ids"]),
                answer=one["answer"],
                seconds=one["seconds"],
                correct=None
                if item.reference is None
                else answers_match(one["answer"], item.reference),
            )
            for name, one in ((BASELINE, sample), (_ARM, own))
        }
        rows.append(Row(given, {_ARM: trace.under(policy)}, item.reference is not None))
    return loss_in_words(answers_of(rows, [_ARM]), _ARM)


def _answer(work: Work, sample: dict[str, Any], item: ItemSpec, policy: Mass) -> dict[str, Any]:
    from mvw_cli.engine.types import Finished

    key = f"{sample['key']}@answer {policy.threshold!r}"
    known = work.log.get(key)
    if known is not None:
        return known
    _, encode = opened(work.session, item)
    settings = replace(work.session.settings, ignore_eos=False)
    start = perf_counter()
    for event in work.session.run([replace(encode(), policy=policy, settings=settings)]):
        work.tick()
        if isinstance(event, Finished):
            answer = work.session.adapter.parse(event.text).answer
            values = {"token_ids": event.token_ids, "answer": answer}
            work.log.put(key, {**values, "seconds": perf_counter() - start})
    kept = work.log.get(key)
    assert kept is not None
    return kept
