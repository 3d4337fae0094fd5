"""The scheduler under whatever chance brings: memory, images and kernels fail at any moment.

Each item has one record, the budget holds, and an answer is that of its item alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from mvw_hf.model import HuggingFace
from serving import Bench, answers, item

from mvw_cli.adapter import LoadedModel
from mvw_cli.batch.serve import server as serve
from mvw_cli.batch.serve.capacity import Limits
from mvw_cli.engine.slots import Slots
from mvw_cli.errors import BadImage, OutOfMemory
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    torch.set_num_threads(1)
    return HuggingFace().tiny()


class Chance:
    """One run: its items, its limits, and what goes wrong."""

    def __init__(self, seed: int, tiny: LoadedModel) -> None:
        chance = self.chance = random.Random(seed)
        self.policy = chance.choice([Mvw(m=1), Mvw(m=4), Mvw(m=11), NoWithdrawal()])
        self.bench = Bench(tiny, self.policy)
        self.items = [
            item(str(n), chance.choice([1, 2, 3, 7, 12, 25]), chance.choice([1, 1, 2, 5, 9]))
            for n in range(chance.randint(3, 11))
        ]
        self.guilty = chance.choice([None, None, str(chance.randrange(len(self.items)))])
        self.most_rows = chance.choice([99, 99, 1, 2, 3])
        self.often = chance.choice([0, 0, 0.02, 0.15]), chance.choice([0, 0, 0.1, 0.3])
        self.bench.before_step = self.step
        self.bench.before_admit = self.admit
        self.unreadable: set[str] = set()
        self.things = [thing for one in self.items for thing in self.arriving(one)]
        if chance.random() < 0.5:
            self.bench.encoder = replace(self.bench.encoder, min_pixels=chance.choice([10, 40]))
        self.limits = Limits(
            chance.choice([1, 2, 4, 9]),
            chance.choice([None, None, 20_000, 60_000, 120_000]),
            strict=chance.random() < 0.6,
        )

    def step(self, slots: Slots) -> None:
        if self.guilty in slots.active:
            raise RuntimeError("a kernel did not like it")
        if len(slots.active) > self.most_rows or self.chance.random() < self.often[0]:
            raise torch.OutOfMemoryError("no room")

    def admit(self, request: Any) -> None:
        if self.chance.random() < self.often[1]:
            raise torch.OutOfMemoryError("no room")

    def arriving(self, one: Any) -> list[Any]:
        late = [None] if self.chance.random() < 0.2 else []
        kind = self.chance.random()
        if kind < 0.1:
            self.unreadable.add(one.id)
            return [*late, self.bench.unreadable(one, BadImage("damaged"))]
        if kind < 0.2:
            return [*late, self.bench.unreadable(one, OutOfMemory("no room"), read=True)]
        return [*late, one]

    def alone(self, one: Any) -> Any:
        return Bench(self.bench.loaded, self.policy).alone([one])[one.id]


@pytest.mark.parametrize("seed", range(16))
def test_whatever_happens(seed: int, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr("mvw_cli.engine.rows.CHUNK", chance.choice([4, 16, 128]))
    monkeypatch.setattr(serve, "LOOKAHEAD", chance.choice([1, 8, 64]))
    monkeypatch.setattr(serve, "RECOVERY", chance.choice([2, 16]))
    monkeypatch.setattr(serve, "relieve", lambda device: None)  # a tenth of a second each time
    run = Chance(seed, tiny)
    bench, limits = run.bench, run.limits
    records = bench.serve(run.things, limits)
    assert sorted(records) == sorted(one.id for one in run.items)
    for one in run.items:
        record = records[one.id]
        if record["status"] == "ok" and not record["remarks"]:
            assert answers({one.id: record})[one.id] == run.alone(one)
    failed = {id: one["error"]["type"] for id, one in records.items() if one["status"] != "ok"}
    kinds = {id: "BadImage" for id in run.unreadable}
    if run.guilty in failed and run.guilty not in kinds:
        assert failed.pop(run.guilty) in ("RuntimeError", "OutOfMemory")
    lacking = {id for id, kind in failed.items() if kind == "OutOfMemory"}
    assert failed == kinds | dict.fromkeys(lacking, "OutOfMemory")
    if run.often == (0, 0) and not (limits.strict and limits.kv_bytes):
        assert not lacking  # one at a time there is room for each
    if limits.kv_bytes is not None:
        together = [did for did in bench.did if len(did.active) > 1]
        assert all(did.kv_allocated_bytes <= limits.kv_bytes for did in together)
