"""Bounds of steps and answers: against sums over every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mvw_cli.bench.report.documents import Device
from mvw_cli.cost import CacheLayer, Shape, Weights
from mvw_cli.cost.bound import arm_bound, first_reaching, largest_batches, make_plan
from mvw_cli.cost.case import Case, cost, sum_of_larger
from mvw_cli.cost.decode_bound import MATTERS, DecodeBound, Workload
from mvw_cli.cost.flops import Flops, Heads


def device(bandwidth: float = 1e6, flops: float = 1e9, memory: int | None = None) -> Device:
    return Device("toy", "published", bandwidth, flops, None, memory, "made up")


def case(*layers: CacheLayer, crossed: bool = False, **changes: Any) -> Case:
    cross = 300 if crossed else 0
    weights = Weights(1000, 100, 0, 800, cross, cross // 3, 0, 1, 1)
    flops = Flops(
        shape=Shape(weights, layers, "float16"),
        tower=None,
        heads=Heads(2, 5, 5),
        token=700 - cross,
        head=100,
        cross=cross,
        cross_attention=cross // 3,
        cross_states=50 if crossed else 0,
    )
    made = Case(flops, "float16", question_tokens=20, vision_tokens=60, new_tokens=40)
    return replace(made, **changes)


FULL, SLIDING, CROSS = CacheLayer(10), CacheLayer(6, window=75), CacheLayer(8, cross=True)
CASES = {
    "full": case(FULL, FULL),
    "sliding": case(FULL, SLIDING),
    "a window that the prompt fills": case(FULL, CacheLayer(6, window=30)),
    "cross": case(FULL, CROSS, crossed=True),
    "cross, mlp kept": case(FULL, CROSS, crossed=True, keep_mlp=True),
}
DEVICES = {
    "bytes": None,
    "bound by bandwidth": device(1e6, 1e12),
    "bound by arithmetic": device(1e12, 1e6),
    "bound by either": device(1e6, 1.72e6),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("on", DEVICES)
@pytest.mark.parametrize("batch", [1, 7])
def test_an_answer_is_the_sum_of_its_steps(name: str, on: str, batch: int) -> None:
    one = replace(CASES[name], device=DEVICES[on])

    def total(steps: range, withdrawn: bool) -> float:
        return sum(cost(one.steps(batch, 20 + step)[withdrawn]) for step in steps)

    baseline = total(range(1, 40), False)
    for m in (1, 2, 9, 39):
        mixed = total(range(1, m), False) + total(range(m, 40), True)
        assert one.answer_speedup(batch, m) == pytest.approx(baseline / mixed, rel=1e-9)
    for m in (None, 40, 41, 1000):  # nothing is left to read once the last token is there
        assert one.answer_speedup(batch, m) == 1


def test_an_answer_of_one_token_has_no_step() -> None:
    assert replace(CASES["full"], new_tokens=1).answer_speedup(1, 1) == 1


def test_both_limits_take_part_in_one_answer() -> None:
    """The last device of the test above is worth its place."""
    one = replace(CASES["full"], device=DEVICES["bound by either"])
    bounds = [one.steps(1, 20 + step)[0] for step in range(1, 40)]
    assert {b.seconds == b.flops / 1.72e6 for b in bounds} == {True, False}


def test_sums_of_the_larger_of_two() -> None:
    for slope in (-3.0, -0.5, 0.0, 0.7, 4.0):
        for first, last in ((0, 0), (0, 1), (3, 20), (5, 4)):
            found = sum_of_larger(lambda x: 10.0 + x, lambda x, s=slope: 12 + s * x, first, last)
            expected = sum(max(10 + x, 12 + slope * x) for x in range(first, last + 1))
            assert found == pytest.approx(expected)


def test_a_step_moves_what_decode_bound_says() -> None:
    one = CASES["cross"]
    before, after = one.steps(3, 35)
    moved = DecodeBound(one.shape, Workload(60, 35), "float16").step(3)
    assert before.weight_bytes == moved.weight_bytes_before == 1600
    assert after.weight_bytes == moved.weight_bytes_after == 1000
    assert (before.kv_bytes, after.kv_bytes) == (moved.kv_bytes_before, moved.kv_bytes_after)
    assert before.flops == 3 * (2 * 800 + 40 * (35 + 60))
    assert after.flops == 3 * (2 * 500 + 40 * 35)
    assert before.seconds is None


def test_seconds_are_the_larger_of_moving_and_computing() -> None:
    slow_memory = replace(CASES["full"], device=device(1e3, 1e12)).steps(1, 30)[0]
    assert slow_memory.seconds == (slow_memory.weight_bytes + slow_memory.kv_bytes) / 1e3
    slow_units = replace(CASES["full"], device=device(1e12, 1e3)).steps(1, 30)[0]
    assert slow_units.seconds == slow_units.flops / 1e3


def test_without_an_image_nothing_can_be_won() -> None:
    for one in CASES.values():
        blind = one.with_vision(0)
        before, after = blind.steps(2, 30)
        assert before == after
        assert blind.answer_speedup(2, 4) == 1


def test_an_arm() -> None:
    one = CASES["full"]
    bound = arm_bound(one, 4, 9)
    assert (bound.before, bound.after) == one.steps(4, 20 + 20)
    assert bound.speedup == one.answer_speedup(4, 9) > 1
    assert arm_bound(one, 4, None).speedup == 1


def test_expanded_latents_are_moved_too() -> None:
    flops = replace(CASES["full"].flops, heads=Heads(4, 6, 5, latent=8, rotary=2))
    one = replace(CASES["full"], flops=flops)
    plain = replace(one, latent="expanded")
    layers, numbers = 2, 4 * (6 + 5)
    for index, entries in enumerate((95, 35)):
        more = plain.steps(3, 35)[index].kv_bytes - one.steps(3, 35)[index].kv_bytes
        assert more == 3 * 2 * layers * numbers * entries * 2  # written and read, 2 bytes each
    assert plain.step_speedup(3) > one.step_speedup(3)


@pytest.mark.parametrize("start", [1, 2, 255, 256, 257, 700, 4095, 4096, 5000])
def test_the_first_that_reaches(start: int) -> None:
    assert first_reaching(lambda count: count >= start, 1 << 20) == start
    assert first_reaching(lambda count: False, 1 << 12) is None
    assert first_reaching(lambda count: count in (start, 9000), 1 << 8) == (
        start if start <= 256 else None
    )


def test_a_plan() -> None:
    one = replace(CASES["full"], device=device(1e6, 1e9, memory=10_000))
    plan = make_plan(one, [1, 8], 5)
    assert plan.device == one.device
    assert (plan.parameters, plan.weight_bytes) == (1000, 2000)
    assert (plan.vision_tokens, plan.text_tokens, plan.new_tokens) == (60, 40, 40)
    assert plan.withdrawn_after == 5
    assert plan.prefill_flops == one.flops.prefill(20, 60)
    assert plan.prefill_s == max(2 * 900 / 1e6, plan.prefill_flops / 1e9)
    for bound in plan.batches:
        assert (bound.before, bound.after) == one.steps(bound.batch, 40)
        assert bound.before.seconds and bound.after.seconds
        assert bound.speedup == bound.before.seconds / bound.after.seconds
        assert bound.speedup_of_answer == one.answer_speedup(bound.batch, 5) < bound.speedup
    assert [bound.batch for bound in plan.batches] == [1, 8]
    # 59 text tokens are held when the last one is chosen; 2 layers of 10 numbers of 2 bytes
    assert plan.largest_batch_before == 8000 // (40 * 119) == 1
    assert plan.largest_batch_after == 8000 // (40 * 59) == 3


def test_from_where_it_matters_is_the_first_that_does() -> None:
    one = case(CacheLayer(1), CacheLayer(1)).with_vision(30)
    plan = make_plan(one, [1, 2], 5)
    first = plan.matters_from_batch
    assert first is not None and first > 1
    assert one.step_speedup(first) >= MATTERS > one.step_speedup(first - 1)
    for batch, tokens in plan.matters_from_vision_tokens.items():
        assert tokens is not None
        assert one.with_vision(tokens).step_speedup(batch) >= MATTERS
        assert one.with_vision(tokens - 1).step_speedup(batch) < MATTERS
    assert plan.largest_batch_before is plan.largest_batch_after is None
    assert plan.prefill_s is None


def test_it_matters_nowhere_for_too_little_vision_or_too_short_a_window() -> None:
    little = make_plan(CASES["full"].with_vision(3), [1], 5)
    assert little.matters_from_batch is None
    window = make_plan(case(CacheLayer(10, window=20)), [1], 5)
    assert window.matters_from_vision_tokens == {1: None}


def test_arithmetic_can_undo_what_bytes_promise() -> None:
    """A device that computes slowly is never made a tenth faster by fewer bytes."""
    one = case(CacheLayer(100), CacheLayer(100))
    assert make_plan(one, [1], 5).matters_from_batch is not None
    slow = replace(one, device=device(1e15, 1e3), flops=replace(one.flops, token=10**6))
    assert make_plan(slow, [1], 5).matters_from_batch is None


def test_no_room_beside_the_weights() -> None:
    assert largest_batches(CASES["full"], -5) == (0, 0)


def test_quantised_weights_leave_more_room_and_weigh_less() -> None:
    weights = Weights(1000, 100, 800, 800, 0, 0, 0, 1, 1, step_quantizable=700)
    flops = replace(CASES["full"].flops, shape=Shape(weights, (FULL, FULL), "float16"))
    one = replace(CASES["full"], flops=flops, device=device(1e6, 1e12, memory=10_000))
    whole, eight = make_plan(one, [1], 5), make_plan(replace(one, bits=8), [1], 5)
    assert (whole.weight_bytes, eight.weight_bytes) == (2000, 200 * 2 + 800)
    assert eight.batches[0].before.weight_bytes == 100 * 2 + 700
    assert eight.batches[0].before.kv_bytes == whole.batches[0].before.kv_bytes
    assert eight.batches[0].speedup > whole.batches[0].speedup
    assert whole.prefill_s == pytest.approx(0.9 * 2000 / 1e6)
    assert eight.prefill_s == pytest.approx(0.9 * 1200 / 1e6)
    assert eight.largest_batch_after == (10_000 - 1200) // (40 * 59)


def test_memory_that_is_told_outweighs_the_devices() -> None:
    one = replace(CASES["full"], device=device(memory=10_000))
    assert make_plan(one, [1], 5, memory_bytes=2000 + 4760).largest_batch_before == 1
    assert make_plan(one, [1], 5, memory_bytes=2000 + 4759).largest_batch_before == 0
