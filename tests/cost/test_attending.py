"""What an arm attends to, by its events, and what it can win by that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_profiling_bound import CASES, DEVICES, device

from mvw_cli.cost import attending
from mvw_cli.cost.attending import Part, part_of
from mvw_cli.cost.bound import arm_bound
from mvw_cli.cost.case import Case, cost
from mvw_cli.engine.types import Event, Prefilled, Restored, Token, Withdrawn


def answer(
    request: str, attended: list[float], by_layer: tuple[int, ...], *more: Event
) -> list[Event]:
    return [
        Prefilled(request, 0.0, 40, 16, 72, by_layer),
        *(Token(request, 0.0, step, 5, "", one) for step, one in enumerate(attended, start=1)),
        *more,
    ]


def test_figures_are_means_of_answers_and_of_those_that_got_so_far() -> None:
    gone = Withdrawn("0", 0.0, 2, 16, 32, 80, 48, 0.0, complete=False)
    back = Restored("0", 0.0, 3, 32, 48, 80, 0.0)
    empty = replace(gone, entries=0)
    first = answer("0", [16.0, 16.0, 8.0, 0.0], (16, 16), gone, back, gone, empty)
    # In a batch the events of its sequences are mixed.
    second = answer("1", [8.0, 8.0], (16, 0))
    found = attending.vision([[*second[:1], *first, *second[1:]], answer("0", [0.0], (0, 0))])
    assert found is not None
    assert found.attended == pytest.approx((8 + 10 + 0) / 3)
    assert found.attended_along == [8.0, 12.0, 8.0, 0.0]
    assert found.held_by_layer == pytest.approx([32 / 3, 16 / 3])
    assert found.entries_held == pytest.approx(16)
    assert found.withdrawals == pytest.approx(2 / 3) and found.look_backs == pytest.approx(1 / 3)


def test_without_vision_there_is_nothing_to_tell() -> None:
    blind = [Prefilled("0", 0.0, 9, 0, 72, ()), Token("0", 0.0, 1, 5, "", 0.0)]
    assert attending.vision([blind]) is None
    assert attending.vision([[Prefilled("0", 0.0, 9, 4, 72), Token("0", 0.0, 1, 5, "")]]) is None


def test_a_part_is_of_what_the_baseline_sees_just_then() -> None:
    def seen(*attended: float, held: tuple[int, ...] = (16, 8, 0, 16)) -> Any:
        return attending.vision([answer("0", list(attended), held)])

    baseline = seen(10.0, 10.0, 8.0)
    arm = seen(5.0, 10.0, 2.0, 4.0, held=(16, 4, 0, 0))
    # Beyond the baseline's end counts what it saw last; a layer whose window has let go of the
    # image is taken for the one before it.
    assert part_of(arm, baseline) == Part((0.5, 1.0, 0.25, 0.5), (1.0, 0.5, 0.5, 0.0), False)
    assert part_of(baseline, baseline) == Part((1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), False)


WHOLE = (1.0, 1.0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("on", DEVICES)
def test_all_or_none_is_bounded_as_a_withdrawal(name: str, on: str) -> None:
    one = replace(CASES[name], device=DEVICES[on])
    for m in (0, 1, 9, 39, None):
        steps = tuple(float(m is None or place < m) for place in range(40))
        bound = arm_bound(one, 3, m, Part(steps, WHOLE, m is not None))
        plain = arm_bound(one, 3, m)
        assert (bound.before, bound.after, bound.speedup) == (
            plain.before, plain.after, plain.speedup
        )  # fmt: skip
        # The sum over steps of any part of the vision comes to the same.
        assert one.speedup_with_parts(3, steps) == pytest.approx(bound.speedup, rel=1e-9)
    assert one.answer_speedup(3, 0) == one.answer_speedup(3, 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("on", DEVICES)
def test_what_is_attended_to_bounds_each_step(name: str, on: str) -> None:
    one = replace(CASES[name], device=DEVICES[on])
    steps = tuple(1 - place / 80 for place in range(40))
    baseline = sum(cost(one.steps(2, 20 + step)[0]) for step in range(1, 40))
    arm = sum(cost(one.step_with_part(2, 20 + step, steps[step])) for step in range(1, 40))
    bound = arm_bound(one, 2, None, Part(steps, WHOLE, True))
    assert bound.speedup == pytest.approx(baseline / arm, rel=1e-9)
    assert bound.after == one.step_with_part(2, one.middle, steps[-1])
    assert 1 <= bound.speedup <= one.answer_speedup(2, 1)


@pytest.mark.parametrize("name", CASES)
def test_a_part_lies_between_all_and_none(name: str) -> None:
    one = CASES[name]
    whole, none = one.steps(2, 30)
    assert one.step_with_part(2, 30, 1.0) == whole
    assert one.step_with_part(2, 30, 0.0) == none
    half = one.step_with_part(2, 30, 0.5)
    assert half.kv_bytes == (whole.kv_bytes + none.kv_bytes) / 2
    assert half.weight_bytes == (whole.weight_bytes + none.weight_bytes) / 2
    assert half.flops == pytest.approx((whole.flops + none.flops) / 2)


def test_layers_that_hold_any_vision_are_read_whole() -> None:
    """A tenth of the tokens in each cross-attention layer, and all tokens in a tenth of them."""
    one = CASES["cross"]
    whole, none = one.steps(1, 30)
    thin, few = one.step_with_part(1, 30, 0.1, 1.0), one.step_with_part(1, 30, 0.1, 0.1)
    assert thin.kv_bytes == few.kv_bytes
    assert thin.weight_bytes == whole.weight_bytes > few.weight_bytes > none.weight_bytes
    assert thin.flops - few.flops == pytest.approx(0.9 * 2 * one.flops.cross)
    # That they do to the end is known where nothing goes while decoding.
    steps = (0.1,) * 40
    stays, goes = (arm_bound(one, 1, None, Part(steps, WHOLE, goes)) for goes in (False, True))
    assert stays.after.weight_bytes == whole.weight_bytes > goes.after.weight_bytes
    assert stays.speedup < goes.speedup


def prefill(one: Case, *read: float) -> Any:
    return arm_bound(one, 1, None, Part((1.0,) * 40, read, False)).prefill


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
