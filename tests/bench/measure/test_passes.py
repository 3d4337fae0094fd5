"""Measuring an engine that runs elsewhere and reads prompts in its passes, as vLLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from passes import BLOCKS, elsewhere
from planted import job
from sessions import at, tiny

from mvw_cli.bench.documents import Arm
from mvw_cli.bench.measure.cell import device_busy, measure, workload
from mvw_cli.bench.measure.run import Runner
from mvw_cli.bench.quality.answers import NO_LOGITS, compare_answers
from mvw_cli.engine.types import Admitted, Prefilled, Token
from mvw_cli.errors import OutOfMemory


def runner(session: Any, work: Any) -> Runner:
    return Runner(session, work.settings(), stopping=lambda: False)


def measured(folder: Path, **given: Any) -> dict[str, Arm]:
    cell = measure(elsewhere(), job(folder, (3,), warm_up=0, min_time_s=0, **given))
    assert cell is not None and cell.ended is None
    return {arm.name: arm for arm in cell.arms}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("m", [None, 2])
def test_answers_are_those_of_the_engine_behind_it(
    tmp_path: Path, batch: int, m: int | None
) -> None:
    work = job(tmp_path, items=batch, batch=batch, new_tokens=9)
    there = runner(elsewhere(), work).run(work.turn(0), at(m))
    here = runner(tiny("hf"), work).run(work.turn(0), at(m))
    assert there.outputs == here.outputs or sorted(there.outputs) == sorted(here.outputs)


def test_the_prefill_lasts_from_the_first_admission_to_the_last_first_token(tmp_path: Path) -> None:
    work = job(tmp_path, items=3, batch=3, new_tokens=9)
    run = runner(elsewhere(), work).run(work.turn(0), at(4))
    begun = [event.at for event in run.events if isinstance(event, Admitted)]
    first = [event.at for event in run.events if isinstance(event, Prefilled)]
    assert run.prefill_s == pytest.approx(first[-1] - begun[0])
    assert run.ttft_s == pytest.approx(first[0] - begun[0])
    # What was decoded before the last prompt had been read is no step.
    tokens = [event for event in run.events if isinstance(event, Token)]
    assert len(tokens) == 27
    late = [event for event in tokens if event.at > first[-1]]
    assert sum(step.tokens for step in run.steps) == len(late) < 24
    assert all(step.tokens for step in run.steps)
    assert run.decode_s == pytest.approx(tokens[-1].at - first[-1])


def test_steps_before_and_after_are_told_apart_by_the_pass_that_withdraws(tmp_path: Path) -> None:
    work = job(tmp_path, new_tokens=9)
    run = runner(elsewhere(), work).run(work.turn(0), at(3))
    # Tokens 2 and 3 are chosen with vision; the event comes with token 4, chosen without.
    assert [step.withdrawn for step in run.steps] == [False] * 2 + [True] * 6
    assert run.withdrawal_s is None
    own = runner(tiny("hf"), work).run(work.turn(0), at(3))
    assert [step.withdrawn for step in own.steps] == [step.withdrawn for step in run.steps]
    assert own.withdrawal_s is not None


def test_what_is_not_told_is_none_and_no_zero(tmp_path: Path) -> None:
    arms = measured(tmp_path, runs=2, new_tokens=8, items=2, batch=2)
    base, later = arms["baseline"], arms["m=3"]
    for arm in (base, later):
        memory = arm.memory
        assert memory.weight_bytes is None and memory.process_peak_bytes is None
        assert memory.device_allocated_peak_bytes is None
        assert memory.kv_formula_bytes_before is None
        assert arm.phases.vision_ms is None and arm.phases.withdrawal_ms is None
    assert (base.memory.kv_blocks_freed, later.memory.kv_blocks_freed) == (None, 2 * BLOCKS)
    assert later.memory.kv_bytes_after < later.memory.kv_bytes_before
    assert later.withdrawn_after == 3 and later.vision is not None
    assert later.vision.attended < base.vision.attended  # type: ignore[union-attr]
    assert max(later.memory.kv_bytes_along) > 0


def test_the_workload_is_that_of_the_written_out_prompt(tmp_path: Path) -> None:
    work = job(tmp_path, new_tokens=8)
    there = workload(elsewhere(), work, "generated")
    assert there == workload(tiny("hf"), work, "generated")
    assert there.vision_tokens == 16 < there.prompt_tokens


def test_sequences_that_do_not_fit_together_are_no_batch(tmp_path: Path) -> None:
    work = job(tmp_path, items=3, batch=3, new_tokens=4)
    with pytest.raises(OutOfMemory, match="3 sequences do not decode together"):
        runner(elsewhere(room=2), work).run(work.turn(0), at(None))


def test_kernels_can_not_be_traced(tmp_path: Path) -> None:
    work = job(tmp_path, runs=1, warm_up=0, min_time_s=0, new_tokens=4)
    cell = measure(elsewhere(), work)
    assert cell is not None and device_busy(elsewhere(), work, cell) is None


def test_answers_are_compared_without_logits(tmp_path: Path) -> None:
    items = job(tmp_path, items=3).items
    own, there = tiny("hf"), elsewhere()
    expected = compare_answers(own, items, {"m=2": at(2)})
    found = compare_answers(there, items, {"m=2": at(2)})
    assert found.remarks == [NO_LOGITS]
    for one, other in zip(expected.arms, found.arms, strict=True):
        plain = replace(one, agreement=None, agreement_interval_95=None, kl_nats=None)
        assert replace(other, seconds=one.seconds) == plain
