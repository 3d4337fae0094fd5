"""The scheduler: who is admitted when, what memory does to it, and whose failure is whose."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from mvw_hf.model import HuggingFace
from serving import Bench, answers, by_id, item, pictures

from mvw_cli.adapter import Answer, LoadedModel
from mvw_cli.batch.serve import server as serve
from mvw_cli.batch.serve.capacity import Limits
from mvw_cli.batch.serve.server import RECOVERY
from mvw_cli.batch.store.record import dumps
from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import Event, NotExact, Token
from mvw_cli.errors import BadImage, ModelProblem, OutOfMemory, PluginProblem, UsageProblem
from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.stack import Stack
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import Decide, StepView

ROW = 2 * 2 * 8 * 4 * 128
"""Bytes of a row of the tiny model: layers, keys and values, head size, float32, one chunk."""


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    torch.set_num_threads(1)
    return HuggingFace().tiny()


@pytest.fixture
def bench(tiny: LoadedModel) -> Bench:
    return Bench(tiny)


def work(count: int, seed: int = 0, images: int = 1) -> list[Any]:
    """Items whose answers differ in length."""
    chance = random.Random(seed)
    return [
        item(str(n), chance.choice([2, 5, 9, 14, 30]), chance.randint(1, images))
        for n in range(count)
    ]


def out_of_memory(*args: object) -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 …")


POLICIES = (
    Mvw(m=4),
    NoWithdrawal(),
    Stack((Vtw(layer=1), Mvw(m=6))),
    Stack((Mvw(m=2), LookBack(entropy=0.0, steps=2))),
    Anneal(end=8, every=2),
    Pulse(layer=0, max_ratio=0.5),
)


# --- scheduling ---


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_answers_are_those_of_one_at_a_time(tiny: LoadedModel, slots: int, policy: Any) -> None:
    bench, items = Bench(tiny, policy), work(10, images=2)
    records = bench.serve(items, Limits(slots))
    assert bench.most_at_once == slots if slots < 16 else bench.most_at_once > 4
    bench.check(records, items)


def test_never_two_prefills_between_two_steps_while_others_wait(bench: Bench) -> None:
    items = [item("first", 30), *work(10)]
    bench.serve(items, Limits(8))
    assert [did.request for did in bench.did if did.what == "admit"] == [one.id for one in items]
    kinds = [did.what for did in bench.did if did.active and "first" in did.active]
    assert "admit admit" not in " ".join(kinds)
    assert kinds.count("admit") > 5


def test_decoding_goes_on_while_nothing_is_ready(bench: Bench) -> None:
    records = bench.serve([item("a", 9), None, None, item("b", 5)], Limits(2))
    assert list(records) == ["b", "a"]
    assert [did.what for did in bench.did[:5]] == ["admit", *["step"] * 3, "admit"]


def test_nothing_is_done_without_items_or_after_draining_has_begun(bench: Bench) -> None:
    assert bench.serve([], Limits(2)) == {}
    assert bench.serve(work(3), Limits(3), draining=lambda: True) == {}
    assert not bench.did


def test_a_record_comes_as_soon_as_its_answer_ends(bench: Bench) -> None:
    records = bench.server([item("long", 30), item("short", 3)], Limits(2)).records()
    assert next(records)["id"] == "short"
    assert len(bench.steps) < 6
    assert next(records)["id"] == "long"
    assert list(records) == []


def test_what_a_record_says_of_time_and_attempts(bench: Bench) -> None:
    record = bench.serve([item("a", 9)], Limits(1))["a"]
    timings = record["timings"]
    assert (timings["read_ms"], timings["preprocess_ms"]) == (2.0, 3.0)
    inside = timings["ttft_ms"] + timings["decode_ms"]
    assert timings["latency_ms"] >= 5.0 + inside
    assert timings["latency_ms"] - 5.0 - inside < 50
    assert (record["attempts"], record["run"], record["question"]) == (1, "r", "w1 w9")
    assert record["withdrawal"]["step"] == 4
    assert record["memory"]["kv_bytes_end"] < record["memory"]["kv_bytes_prefill"]


# --- admission by bytes ---


@pytest.mark.parametrize(("rows", "seed"), [(6, 0), (9, 0), (9, 2), (14, 1)])
@pytest.mark.parametrize("policy", [Mvw(m=4), Mvw(m=1), NoWithdrawal()])
def test_the_cache_keeps_to_its_budget(
    tiny: LoadedModel, seed: int, rows: int, policy: Any
) -> None:
    """Items of one to fourteen images: up to 230 vision tokens, so of one chunk or two."""
    bench, items = Bench(tiny, policy), work(10, seed, images=14)
    records = bench.serve(items, Limits(8, rows * ROW))
    Bench(tiny, policy).check(records, items)
    assert max(did.kv_allocated_bytes for did in bench.did) <= rows * ROW
    assert bench.most_at_once > 1


def test_withdrawal_puts_more_in_flight_in_the_same_memory(tiny: LoadedModel) -> None:
    items = [item(str(n), 40, images=10) for n in range(12)]  # 160 vision tokens: two chunks
    budget = 10 * ROW
    most, steps = {}, {}
    for policy in (Mvw(m=2), NoWithdrawal()):
        bench = Bench(tiny, policy)
        records = bench.serve(items, Limits(12, budget))
        assert {record["status"] for record in records.values()} == {"ok"}
        assert max(did.kv_allocated_bytes for did in bench.did) <= budget
        most[policy.name], steps[policy.name] = bench.most_at_once, len(bench.steps)
    assert most["none"] == 4  # two chunks each; room for a fifth would come as room for eight
    assert most["mvw"] == 8
    assert steps["mvw"] < steps["none"]


@pytest.mark.parametrize(
    ("policy", "budget"),
    [
        (Mvw(m=4), 10_000),
        (NoWithdrawal(), 10_000),
        (NoWithdrawal(), 20_000),
        (Stack((Mvw(m=2), LookBack(entropy=0.0, steps=2))), 20_000),
        (Anneal(end=8, every=2), 20_000),
    ],
)
def test_the_youngest_begins_again_when_the_cache_outgrows_its_budget(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, budget: int, policy: Any
) -> None:
    """With admission that looks no step ahead, over storages that grow by eight entries a time."""
    monkeypatch.setattr(serve, "LOOKAHEAD", 1)
    monkeypatch.setattr("mvw_cli.engine.rows.CHUNK", 8)
    bench, items = Bench(tiny, policy), work(12, images=2)
    records = bench.serve(items, Limits(8, budget))
    Bench(tiny, policy).check(records, items)
    together = [did.kv_allocated_bytes for did in bench.did if len(did.active) > 1]
    assert max(together) <= budget
    assert sum(record["attempts"] - 1 for record in records.values()) > 0
    first = [did for did in bench.did if did.request == items[0].id]
    assert len(first) == 1  # the oldest is never sent back
    assert len(bench.steps) < sum(record["generated_tokens"] for record in records.values()) * 2


@pytest.mark.parametrize("strict", [False, True])
def test_one_item_alone_may_outgrow_a_budget_that_nobody_has_set(
    bench: Bench, strict: bool
) -> None:
    items = [item("0", 5), item("big", 5, images=10), *work(4)[1:]]
    records = bench.serve(items, Limits(4, ROW + 1, strict=strict))
    assert bench.most_at_once == 1
    bench.check(records, items, *(["big"] if strict else []))
    if strict:
        error = records["big"]["error"]
        assert error["type"] == "OutOfMemory"
        assert "16.0 KiB" in error["cause"] and "--kv-memory" in error["cause"]


# --- memory that runs out ---


def test_one_more_slot_is_tried_after_a_calm_while(bench: Bench) -> None:
    tight = True

    def check(slots: Slots) -> None:
        if tight and len(slots.active) > 1:
            raise out_of_memory()

    bench.before_step = check
    server = bench.server([item(str(n), 3) for n in range(3 * RECOVERY)], Limits(3))
    most, records = [], server.records()
    for number, _ in enumerate(records, 1):
        tight = tight and number < 5
        most.append(server._max_slots)
    assert most[:RECOVERY] == [1] * (RECOVERY - 1) + [2]
    assert most[RECOVERY : 2 * RECOVERY] == [2] * (RECOVERY - 1) + [3]
    assert set(most[2 * RECOVERY :]) == {3}


def test_memory_is_given_back_before_a_step_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failed forward pass held must be gone by then, or giving back frees nothing."""
    import weakref

    class Activation:
        pass

    held: list[weakref.ref[Activation]] = []
    alive: list[bool] = []
    monkeypatch.setattr(serve, "relieve", lambda device: alive.append(held[-1]() is not None))

    def fail_once(*args: object) -> None:
        if not held:
            activation = Activation()
            held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError("no room")

    items = work(3)
    bench.before_step = fail_once
    records = bench.serve(items, Limits(2))
    assert alive == [False]
    held.clear()
    bench.before_admit = fail_once
    assert answers(bench.serve(items, Limits(2))) == answers(records)
    assert alive == [False, False]
    assert {record["attempts"] for record in records.values()} == {1}


def test_a_prefill_that_lacks_memory_waits_for_its_neighbours(bench: Bench) -> None:
    big = item("big", 5, images=8)
    items = [*work(3), big, *work(6)[3:]]
    crowded: list[int] = []

    def check(request: Any) -> None:
        active = bench.did[-1].active if bench.did else []
        if request.id == "big" and active:
            crowded.append(len(active))
            raise out_of_memory()

    bench.before_admit = check
    records = bench.serve(items, Limits(4))
    assert records["big"]["status"] == "ok" and records["big"]["attempts"] > 1
    assert crowded
    bench.check(records, items)


def test_only_the_largest_of_several_images_becomes_smaller(bench: Bench) -> None:
    encoder = replace(bench.encoder, min_pixels=30)
    two = item("two", 5, images=2)
    small, large = pictures(two)[0], pictures(two, (16, 12))[1]
    ready = replace(bench.ready(two), images=[small, large])
    scaled, remark = encoder.scaled_down(ready) or (None, "")
    assert scaled is not None and scaled.encoded is None
    assert [file.size for file in scaled.images] == [(8, 6), scaled.images[1].size]
    assert scaled.images[1].size[0] * scaled.images[1].size[1] <= 96
    assert scaled.images[1].image.size == scaled.images[1].size
    assert "two-1.png" in remark
    seen = 0
    while (again := encoder.scaled_down(scaled)) is not None:
        scaled, seen = again[0], seen + 1
        assert seen < 20
    assert all(file.size[0] * file.size[1] <= 48 for file in scaled.images)
    assert replace(encoder, min_pixels=None).scaled_down(ready) is None


def test_what_lacked_memory_to_be_encoded_is_encoded_again_alone(bench: Bench) -> None:
    later = item("later", 5)
    encoded_beside: list[int] = []

    def check(images: Sequence[Any]) -> None:
        encoded_beside.append(len(bench.did[-1].active) if bench.did else 0)

    bench.encoder = replace(bench.encoder, fails={"later": check})
    lacking = bench.unreadable(later, OutOfMemory("no room", cause="none"), read=True)
    records = bench.serve([*work(3), lacking, *work(6)[3:]], Limits(4))
    assert encoded_beside == [0]
    alone = [did for did in bench.did if "later" in did.active]
    assert alone and all(did.active == ["later"] for did in alone)
    written = json.loads(dumps(records["later"]))["timings"]
    assert written["read_ms"] is None and written["latency_ms"] is None  # it is not known
    bench.check(records, [*work(6), later])


# --- failures ---


@pytest.mark.parametrize("slots", [1, 3, 6])
def test_an_error_of_a_common_step_is_traced_to_the_guilty_one(bench: Bench, slots: int) -> None:
    def check(held: Slots) -> None:
        if "2" in held.active:
            raise RuntimeError("a kernel did not like it")

    items = [item(str(n), 9) for n in range(8)]
    bench.before_step = check
    records = bench.serve(items, Limits(slots))
    assert records["2"]["error"]["message"] == "a kernel did not like it"
    assert records["2"]["attempts"] == (1 if slots == 1 else 2)
    after = [record for name, record in records.items() if int(name) >= slots + 2]
    assert all(record["attempts"] == 1 for record in after)
    bench.check(records, items, "2")


def test_an_answer_that_the_adapter_can_not_read_is_a_failure(bench: Bench) -> None:
    class Picky(HuggingFace):
        def parse(self, text: str) -> Answer:
            if text == wanted:
                raise KeyError("no such stage")
            return super().parse(text)

    wanted = bench.alone(work(3))["1"][0]
    bench.session = replace(bench.session, adapter=Picky())
    bench.encoder = replace(bench.encoder, session=bench.session)
    records = bench.serve(work(3), Limits(2))
    assert [records[name]["status"] for name in "012"] == ["ok", "failed", "ok"]
    assert records["1"]["error"]["type"] == "KeyError"


class Failing(NoWithdrawal):
    """A policy that raises from a step on, or on being begun, for requests that are not good."""

    def __init__(self, error: Exception, at: int, good: list[bool]) -> None:
        self._error, self._at, self._good = error, at, good

    def begin(self) -> Decide:
        good = self._good.pop(0) if self._good else True
        if not good and not self._at:
            raise self._error

        def decide(view: StepView) -> None:
            if not good and view.step >= self._at:
                raise self._error

        return decide


# --- what ends the run ---


@pytest.mark.parametrize(("at", "answered"), [(0, "0"), (1, "0"), (3, "013")])
def test_a_policy_that_is_at_fault_ends_the_run(tiny: LoadedModel, at: int, answered: str) -> None:
    """On being begun, at the first token, or in a step with which a later one's answer ends."""
    moody = RuntimeError("not in the mood")
    items = [item("0", 3), item("1", 3), item("2", 9), item("3", 2)]
    server = Bench(tiny, Failing(moody, at, [True, True, False])).server(items, Limits(3))
    records: list[Any] = []
    with pytest.raises(PluginProblem, match=r"policy `none` .* raised RuntimeError") as caught:
        records.extend(server.records())
    assert caught.value.cause is not None and "not in the mood" in caught.value.cause
    assert [(record["id"], record["status"]) for record in records] == [(n, "ok") for n in answered]


def test_a_layer_that_the_model_lacks_ends_the_run(tiny: LoadedModel) -> None:
    with pytest.raises(UsageProblem, match="layer"):
        Bench(tiny, Vtw(layer=99)).serve(work(3), Limits(2))


@pytest.mark.parametrize("at", [0, 1, 3])
def test_where_each_has_its_own_policy_it_ends_that_item_alone(tiny: LoadedModel, at: int) -> None:
    bench = Bench(tiny, Failing(RuntimeError("not in the mood"), at, [True, False, True]))
    items = [item("0", 9), item("1", 9), item("2", 3)]
    records = bench.serve(items, Limits(3), own_policies=True)
    assert [records[name]["status"] for name in "012"] == ["ok", "failed", "ok"]
    assert records["1"]["error"]["type"] == "PluginProblem"


@pytest.mark.parametrize(("limits", "beside"), [(Limits(2), ["0", "1"]), (Limits(2, ROW), ["0"])])
def test_what_is_cancelled_has_no_record_and_its_slot_is_free_before_the_next_step(
    bench: Bench, limits: Limits, beside: list[str]
) -> None:
    """Out of a slot, or where it waits for room; a name that is not known is none's."""
    items, seen = [item("0", 12), item("1", 12), item("2", 5)], list[Event]()
    server = bench.server(
        items,
        limits,
        cancelled=lambda: ["1", "nobody"] if len(bench.steps) == 4 else [],
        seen=seen.append,
    )
    assert by_id(server.records()).keys() == {"0", "2"}
    after = ["0", "2"] if beside == ["0", "1"] else ["0"]
    assert [did.active for did in bench.steps][3:5] == [beside, after]
    tokens = [event.step for event in seen if isinstance(event, Token) and event.request == "0"]
    assert tokens == [*range(1, 13)]


@pytest.mark.parametrize("where", ["admit", "step"])
def test_a_model_that_is_not_exact_ends_the_run(bench: Bench, where: str) -> None:
    def refuse(*args: object) -> None:
        if len(bench.did) > 4:
            raise NotExact("it has changed its mind")

    setattr(bench, f"before_{where}", refuse)
    with pytest.raises(ModelProblem, match="can't be served exactly") as caught:
        bench.serve(work(9), Limits(2))
    assert "it has changed its mind" in (caught.value.cause or "")


@pytest.mark.parametrize("where", ["admit", "step", "feed", "policy"])
def test_a_lost_device_ends_the_run(tiny: LoadedModel, where: str) -> None:
    """Whatever is done on it from then on fails: no item is to blame."""
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    bench = Bench(tiny, Failing(lost, 3, [where != "policy"] * 6))
    items: list[Any] = work(6)

    def fail(*args: object) -> None:
        if len(bench.did) > 2:
            raise lost

    if where in ("admit", "step"):
        setattr(bench, f"before_{where}", fail)
    if where == "feed":
        items.insert(2, bench.unreadable(item("x", 3), lost, read=True))
    records = []
    with pytest.raises(torch.AcceleratorError):
        for record in bench.server(items, Limits(2)).records():
            records.append(record)
    assert all(record["status"] == "ok" for record in records)


def test_draining_admits_nothing_more_and_finishes_what_is_begun(bench: Bench) -> None:
    items = [item(str(n), 12) for n in range(9)]
    records = bench.serve(items, Limits(3), draining=lambda: len(bench.steps) >= 5)
    assert [did.request for did in bench.did if did.what == "admit"] == ["0", "1", "2"]
    bench.check(records, items[:3])


# --- whatever chance brings: memory, images and kernels fail at any moment ---


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
    if run.often == (0, 0):
        assert not lacking  # one at a time there is room for each
    if limits.kv_bytes is not None:
        together = [did for did in bench.did if len(did.active) > 1]
        assert all(did.kv_allocated_bytes <= limits.kv_bytes for did in together)
