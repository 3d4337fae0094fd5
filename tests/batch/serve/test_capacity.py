"""How many at a time: bytes of a slot, counted by hand, and the limits that follow."""

from __future__ import annotations

import pytest
from mvw_hf.model import HuggingFace
from serving import Bench, item

from mvw_cli.batch.serve.capacity import (
    MARGIN,
    MAX_SLOTS,
    Limits,
    Load,
    choose_limits,
    slot_bytes,
)
from mvw_cli.batch.serve.prefetch import Ready
from mvw_cli.batch.workers.worker import Job, Worker
from mvw_cli.cost.shape import CacheLayer, Shape, Weights
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.schema import Profile

MiB = 2**20


def shape(*layers: CacheLayer) -> Shape:
    return Shape(Weights(0, 0, 0, 0, 0, 0, 0, 1, 1), layers, "bfloat16")


LOAD = Load(text_tokens=40, vision_tokens=1000, new_tokens=500, withdrawn_after=16)


def test_grouped_query_attention() -> None:
    """28 layers, 4 key-value heads of 128, as Qwen2.5-VL-7B: keys and values, two bytes each."""
    gqa = shape(*[CacheLayer(2 * 4 * 128)] * 28)
    token = 28 * 2 * 4 * 128 * 2
    assert slot_bytes(gqa, LOAD, "bfloat16") == ((40 + 16 + 1000) * token, (40 + 500) * token)
    assert slot_bytes(gqa, LOAD, "float32") == (1056 * token * 2, 540 * token * 2)


def test_latent_attention() -> None:
    """27 layers of a latent of 512 and a rotary key of 64, as Kimi-VL."""
    mla = shape(*[CacheLayer(512 + 64)] * 27)
    token = 27 * 576 * 2
    assert slot_bytes(mla, LOAD, "bfloat16") == (1056 * token, 540 * token)


def test_cross_attention() -> None:
    """Vision lies beside the sequence, so the prompt is text alone: none of it is to be taken off.

    40 layers of 8 heads of 128, 8 of them crossed, as Llama 3.2 Vision.
    """
    own, crossed = [CacheLayer(2 * 8 * 128)] * 32, [CacheLayer(2 * 8 * 128, cross=True)] * 8
    entry = 2 * 8 * 128 * 2
    before, after = slot_bytes(shape(*own, *crossed), LOAD, "bfloat16")
    assert before == (40 + 16) * 32 * entry + 1000 * 8 * entry
    assert after == (40 + 500) * 32 * entry


def test_sliding_windows_hold_no_more_than_their_width() -> None:
    sliding = shape(CacheLayer(10), CacheLayer(10, window=101))
    assert slot_bytes(sliding, LOAD, "float16") == ((1056 + 100) * 20, (540 + 100) * 20)


@pytest.mark.parametrize(("after", "seen"), [(None, 500), (9000, 500), (1, 1)])
def test_vision_is_there_until_it_is_withdrawn_or_the_answer_ends(
    after: int | None, seen: int
) -> None:
    load = Load(40, 1000, 500, after)
    assert slot_bytes(shape(CacheLayer(1)), load, "float16")[0] == 2 * (1040 + seen)


def choose(
    free: int | None,
    kind: str = "cuda",
    *,
    each: tuple[int, int] = (10 * MiB, 4 * MiB),
    policy: WithdrawalPolicy | None = None,
    kv_bytes: int | None = None,
) -> Limits:
    return choose_limits(free, kind, each, policy or Mvw(m=4), kv_bytes=kv_bytes)


def test_a_margin_of_the_free_memory_is_kept_back() -> None:
    limits = choose(100 * MiB)
    assert MARGIN == 0.2
    assert limits == Limits(20, 80 * MiB, strict=False, reason=limits.reason)
    assert limits.reason == (
        "20 slots: 100.0 MiB free after the weights, 20% kept back; "
        "a slot takes up to 10.0 MiB, 4.0 MiB once vision is withdrawn"
    )


def test_nothing_of_what_was_given_is_kept_back() -> None:
    limits = choose(None, kv_bytes=100 * MiB)
    assert (limits.slots, limits.kv_bytes) == (25, 100 * MiB)
    assert limits.reason.startswith("25 slots: 100.0 MiB for the KV cache; ")


def test_without_withdrawal_a_slot_keeps_its_vision() -> None:
    limits = choose(100 * MiB, policy=NoWithdrawal())
    assert limits.slots == 8
    assert limits.reason.endswith("; a slot takes up to 10.0 MiB")


def test_a_long_answer_may_outgrow_the_image() -> None:
    """Then the most that a slot takes is not what counts for the number: bytes admit, not it."""
    assert choose(100 * MiB, each=(4 * MiB, 10 * MiB)).slots == 20


@pytest.mark.parametrize("kind", ["cpu", "mps", "cuda"])
def test_more_slots_than_help_are_not_taken(kind: str) -> None:
    limits = choose(2**40, kind)
    assert limits.slots == MAX_SLOTS[kind]
    assert limits.reason.endswith(f"would fit, {kind} gains nothing beyond {MAX_SLOTS[kind]}")


def test_there_is_always_one_slot() -> None:
    limits = choose(MiB)
    assert (limits.slots, limits.kv_bytes, limits.strict) == (1, int(0.8 * MiB), False)
    assert choose(0).slots == 1


@pytest.mark.parametrize(("kind", "most"), [("mps", MAX_SLOTS["mps"]), ("xpu", MAX_SLOTS["cpu"])])
def test_memory_that_is_not_told(kind: str, most: int) -> None:
    limits = choose(None, kind)
    assert (limits.slots, limits.kv_bytes) == (most, None)
    assert limits.reason == f"{most} slots, the most for {kind}: its memory is not told"


# --- a worker's choice, from its first item ---


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Ready:
    """An item of 16 vision tokens and 3 of text; there are 10 MiB."""
    bench = Bench(HuggingFace().tiny(), Mvw(m=4))
    monkeypatch.setattr("mvw_cli.batch.workers.worker.open_session", lambda *_, **__: bench.session)
    monkeypatch.setattr("mvw_cli.batch.workers.worker.free_memory", lambda device: 10 * MiB)
    return bench.ready(item("a", 100))


def chosen(first: Ready, **options: object) -> Limits:
    with Worker(Job(Profile(), **options)) as worker:  # type: ignore[arg-type]
        return worker._choose_limits(first)


TOKEN = 2 * 2 * 8 * 4
"""Bytes of a token of the tiny model: layers, keys and values, head size, float32."""


def test_what_a_worker_chooses_by_itself(first: Ready) -> None:
    request = first.value.request
    assert (request.text_tokens, request.layout.vision_tokens) == (3, 16)
    limits = chosen(first)
    assert (limits.slots, limits.kv_bytes, limits.strict) == (16, 8 * MiB, False)
    assert f"a slot takes up to {(3 + 4 + 16) * TOKEN / 1024:.1f} KiB" in limits.reason
    assert f"{(3 + 100) * TOKEN / 1024:.1f} KiB once vision is withdrawn" in limits.reason


def test_what_a_worker_is_told(first: Ready) -> None:
    both = chosen(first, slots=3, kv_bytes=MiB)
    assert both == Limits(3, MiB, strict=True)
    slots = chosen(first, slots=3)
    assert slots == Limits(3, 8 * MiB, strict=False)  # nothing is chosen, so nothing is explained
    memory = chosen(first, kv_bytes=40_000)
    settled = (3 + 4 + 16) * TOKEN
    assert (memory.slots, memory.kv_bytes, memory.strict) == (40_000 // settled, 40_000, True)
    assert "39.1 KiB for the KV cache" in memory.reason


def test_a_worker_explains_its_choice_once(first: Ready) -> None:
    with Worker(Job(Profile())) as worker:
        told = worker._choose_limits(first)
        assert told.reason
        again = worker._choose_limits(first)
    assert (again.reason, again.slots) == ("", told.slots)


def test_a_model_that_can_not_be_counted(first: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no meta kernels")

    monkeypatch.setattr("mvw_cli.batch.workers.worker.shape_of", fail)
    limits = chosen(first)
    assert (limits.slots, limits.kv_bytes) == (MAX_SLOTS["cpu"], None)
    assert limits.reason.endswith("its memory is not told")
    assert chosen(first, slots=2) == Limits(2)
    limits = chosen(first, kv_bytes=MiB)
    assert (limits.slots, limits.kv_bytes, limits.strict) == (MAX_SLOTS["cpu"], MiB, True)


def test_a_policy_that_withdraws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(HuggingFace().tiny(), NoWithdrawal())
    monkeypatch.setattr("mvw_cli.batch.workers.worker.open_session", lambda *_, **__: bench.session)
    memory = chosen(bench.ready(item("a", 100)), kv_bytes=40_000)
    assert memory.slots == 40_000 // ((3 + 16 + 100) * TOKEN)
    assert "withdrawn" not in memory.reason
