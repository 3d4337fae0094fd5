"""Bounds of steps and answers: against sums over every step, and bytes counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mvw_cli.cost.bounds import (
    MATTERS,
    VisionShare,
    arm_bound,
    first_reaching,
    largest_batches,
    make_plan,
    matters_from_batch,
)
from mvw_cli.cost.case import Case, Device
from mvw_cli.cost.flops import Flops, Heads
from mvw_cli.cost.shape import CacheLayer, Count, Shape, Weights


def device(bandwidth: float = 1e6, flops: float = 1e9, memory: int | None = None) -> Device:
    return Device("toy", "published", bandwidth, flops, None, memory, "made up")


def case(*layers: CacheLayer, crossed: bool = False, **changes: Any) -> Case:
    cross = 300 if crossed else 0
    weights = Weights(Count(1000), 100, Count(800), Count(cross), Count(cross // 3))
    flops = Flops(
        shape=Shape(weights, layers, "float16"),
        tower=None,
        heads=Heads(40, 40),
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
        return sum(one.steps(batch, 20 + step)[withdrawn].cost for step in steps)

    baseline = total(range(1, 40), False)
    for m in (1, 2, 9, 39):
        mixed = total(range(1, m), False) + total(range(m, 40), True)
        found = one.answer_speedup(batch, one.all_until(m))
        assert found == pytest.approx(baseline / mixed, rel=1e-9)
    for m in (None, 40, 41, 1000):  # nothing is left to read once the last token is there
        assert one.answer_speedup(batch, one.all_until(m)) == 1


def test_an_answer_of_one_token_has_no_step() -> None:
    assert replace(CASES["full"], new_tokens=1).answer_speedup(1, [1.0]) == 1


def test_a_step_moves_weights_and_cache_and_computes_products() -> None:
    before, after = CASES["cross"].steps(3, 35)
    assert (before.weight_bytes, after.weight_bytes) == (1600, 1000)
    assert before.kv_bytes == 3 * 2 * (10 * 35 + 8 * 60)
    assert after.kv_bytes == 3 * 2 * 10 * 35
    assert before.flops == 3 * (2 * 800 + 40 * (35 + 60))
    assert after.flops == 3 * (2 * 500 + 40 * 35)
    assert before.seconds is None
    assert before.cost == before.bytes_moved == before.weight_bytes + before.kv_bytes


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
        assert blind.answer_speedup(2, blind.all_until(4)) == 1


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
        of_answer = one.answer_speedup(bound.batch, one.all_until(5))
        assert bound.speedup_of_answer == of_answer < bound.speedup
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


def test_quantised_weights_leave_more_room_and_weigh_less() -> None:
    weights = Weights(Count(1000, 800), 100, Count(800, 700))
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


# -- bytes of a step ------------------------------------------------------------------------


def weights(step: int, *, cross: int = 0, attention: int = 0, experts: int = 0) -> Weights:
    counts = (Count(step), Count(cross), Count(attention), Count(experts))
    return Weights(Count(step + experts), 0, *counts, *((8, 2) if experts else (1, 1)))


def moving(model: Weights, vision: int, *layers: CacheLayer, **changes: Any) -> Case:
    """Return a case of which only the bytes mean anything."""
    flops = replace(CASES["full"].flops, shape=Shape(model, layers, "bfloat16"))
    return Case(flops, "bfloat16", 0, vision, 0, **changes)


def test_skipped_layers_leave_the_weights_too_unless_their_mlp_is_kept() -> None:
    layers = (CacheLayer(10), CacheLayer(10, cross=True))
    model = weights(1000, cross=300, attention=100)
    before, after = moving(model, 60, *layers).steps(1, 40)
    assert (before.weight_bytes, after.weight_bytes) == (2000, 1400)
    assert (before.kv_bytes, after.kv_bytes) == (2000, 800)
    assert moving(model, 60, *layers, keep_mlp=True).steps(1, 40)[1].weight_bytes == 1800
    for keep in (False, True):  # a sequence without an image skips them from the start
        before, after = moving(model, 0, *layers, keep_mlp=keep).steps(1, 40)
        assert before.weight_bytes == after.weight_bytes == 1400


@pytest.mark.parametrize("experts", [0, 5_000_000])
@pytest.mark.parametrize("vision", [30, 1000])
def test_it_matters_from_the_first_count_that_reaches_the_line(vision: int, experts: int) -> None:
    one = replace(moving(weights(1_000_000, experts=experts), vision, CacheLayer(64)),
                  question_tokens=300)  # fmt: skip
    first = next((n for n in range(1, 3000) if one.step_speedup(n) >= 1.1), None)
    assert matters_from_batch(one) == first
    assert one.step_speedup(10**9) == pytest.approx((vision + 300) / 300, rel=1e-3)


def test_more_sequences_read_more_experts() -> None:
    one = moving(weights(1000, experts=8000), 10, CacheLayer(1))
    read = [one.steps(batch, 10)[0].weight_bytes for batch in (1, 2, 100)]
    assert read == [2 * (1000 + 2000), 2 * (1000 + 3500), 2 * (1000 + 8000)]


def test_quantised_weights_move_fewer_bytes() -> None:
    layers = (CacheLayer(10), CacheLayer(10, cross=True))
    parts = (Count(1000, 900), Count(300, 280), Count(100, 90), Count(800, 400))
    held = Weights(Count(1000), 0, *parts, 8, 2)
    for bits, each in ((8, 1.0), (4, 4.5 / 8)):
        for keep, gone, linear in ((False, 300, 280), (True, 100, 90)):
            before, after = moving(held, 60, *layers, keep_mlp=keep, bits=bits).steps(1, 40)
            read = (1000 - 900 + 200 - 100) * 2 + (900 + 100) * each  # a quarter of the experts
            assert before.weight_bytes == round(read)
            assert after.weight_bytes == round(read - (gone - linear) * 2 - linear * each)
            assert before.kv_bytes == 2 * 10 * (40 + 60)


# -- arms that attend to a share of the vision ---------------------------------------------


WHOLE = (1.0, 1.0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("on", DEVICES)
def test_all_or_none_is_bounded_as_a_withdrawal(name: str, on: str) -> None:
    one = replace(CASES[name], device=DEVICES[on])
    for m in (0, 1, 9, 39, None):
        steps = tuple(float(m is None or place < m) for place in range(40))
        bound = arm_bound(one, 3, m, VisionShare(steps, WHOLE))
        plain = arm_bound(one, 3, m)
        assert (bound.before, bound.after, bound.speedup) == (
            plain.before, plain.after, plain.speedup
        )  # fmt: skip
    assert arm_bound(one, 3, 0).speedup == arm_bound(one, 3, 1).speedup


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("on", DEVICES)
def test_what_is_attended_to_bounds_each_step(name: str, on: str) -> None:
    one = replace(CASES[name], device=DEVICES[on])
    steps = tuple(1 - place / 80 for place in range(40))
    baseline = sum(one.steps(2, 20 + step)[0].cost for step in range(1, 40))
    arm = sum(one.step(2, 20 + step, steps[step]).cost for step in range(1, 40))
    bound = arm_bound(one, 2, None, VisionShare(steps, WHOLE))
    assert bound.speedup == pytest.approx(baseline / arm, rel=1e-9)
    assert bound.after == one.step(2, one.middle, steps[-1])
    assert 1 <= bound.speedup <= one.answer_speedup(2, one.all_until(1))


@pytest.mark.parametrize("name", CASES)
def test_a_part_lies_between_all_and_none(name: str) -> None:
    one = CASES[name]
    whole, none = one.steps(2, 30)
    half = one.step(2, 30, 0.5)
    assert half.kv_bytes == (whole.kv_bytes + none.kv_bytes) / 2
    assert half.weight_bytes == (whole.weight_bytes + none.weight_bytes) / 2
    assert half.flops == pytest.approx((whole.flops + none.flops) / 2)


def prefill(one: Case, *read: float) -> Any:
    return arm_bound(one, 1, None, VisionShare((1.0,) * 40, read)).prefill


def test_a_prefill_is_bounded_by_what_each_layer_reads() -> None:
    one = CASES["full"]
    whole = prefill(one, 1.0, 1.0)
    assert (whole.flops, whole.share, whole.speedup) == (one.flops.prefill(20, 60), 1.0, 1.0)
    cut = prefill(one, 1.0, 0.0)
    assert cut.flops == one.flops.prefill(20, 60, [60, 0]) < whole.flops
    assert cut.share == cut.flops / whole.flops
    assert cut.speedup == pytest.approx(1 / cut.share)
    assert cut.seconds is None
    assert prefill(one, 0.5, 0.1).flops == one.flops.prefill(20, 60, [30, 6])


def test_a_prefill_takes_at_least_its_time_on_a_device() -> None:
    slow = replace(CASES["full"], device=device(1e12, 1e6))  # arithmetic limits it
    cut = prefill(slow, 1.0, 0.0)
    assert cut.seconds == cut.flops / 1e6 and cut.speedup == pytest.approx(1 / cut.share)
    narrow = replace(CASES["full"], device=device(1e3, 1e12))  # the weights are read in any case
    assert prefill(narrow, 1.0, 0.0).speedup == 1
    skipped = replace(CASES["cross"], device=device(1e3, 1e12))
    kept = replace(CASES["cross, mlp kept"], device=device(1e3, 1e12))
    # 900 of 1000 weights are read, of which 300 are cross-attention's, 100 in the attention.
    assert prefill(skipped, 0.0).speedup == pytest.approx(900 / 600)
    assert prefill(kept, 0.0).speedup == pytest.approx(900 / 800)


def test_states_are_read_and_written_whatever_is_withdrawn() -> None:
    """They bound what a withdrawal wins: it frees the entries, and nothing of them."""
    state = CacheLayer(0, state=100, state_float32=50)
    with_state, without = case(FULL, state), case(FULL)
    read = 2 * (100 * 2 + 50 * 4)
    for batch in (1, 3):
        steps = zip(with_state.steps(batch, 40), without.steps(batch, 40), strict=True)
        for own, plain in steps:
            assert own.kv_bytes - plain.kv_bytes == batch * read
            assert own.flops == plain.flops
        assert 1 < with_state.step_speedup(batch) < without.step_speedup(batch)
    text = 20 + 40 - 1
    assert largest_batches(with_state, 10**6) == (
        10**6 // (10 * (text + 60) * 2 + 400), 10**6 // (10 * text * 2 + 400)
    )  # fmt: skip


def test_shared_entries_are_read_by_each_layer_and_held_once() -> None:
    shared, twice = case(FULL, CacheLayer(0, shared=10)), case(FULL, FULL)
    assert shared.steps(1, 40) == twice.steps(1, 40)
    assert largest_batches(shared, 10**6) == largest_batches(case(FULL), 10**6)
