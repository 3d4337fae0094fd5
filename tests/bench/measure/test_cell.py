"""What the measurement says of a model whose costs are known."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import MIB, Plan, job, planted

from mvw_cli.bench.documents import Arm, Cell
from mvw_cli.bench.measure.cell import measure, workload
from mvw_cli.bench.stats import FEWEST_PAIRS, Summary
from mvw_cli.errors import ModelProblem, OutOfMemory
from mvw_cli.session import open_session

QUICK = Plan()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def near(found: Summary | None, planned_s: float, times: int = 1) -> bool:
    """Whether the samples hold what was planned: never less, and more by the machine's noise."""
    assert found is not None
    planned = planned_s * 1e3
    own_work = 30.0 + 4.0 * times
    return planned <= min(found.samples) and found.median <= 1.5 * planned + own_work


def arms(cell: Cell | None) -> dict[str, Arm]:
    assert cell is not None
    return {arm.name: arm for arm in cell.arms}


PLANNED = Plan(
    read=0.02, preprocess=0.06, vision=0.04, prefill=0.08, before=0.03, withdrawal=0.04, after=0.006
)  # fmt: skip
PAIRS, STEPS = FEWEST_PAIRS, 7


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """The measurement of a model of known costs, withdrawn after 3 of 8 tokens."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        whole = job(tmp_path_factory.mktemp("known"), (3,), runs=PAIRS, new_tokens=STEPS + 1)
        cell = measure(planted(PLANNED, patch), whole)
        assert cell is not None
        return cell


def test_each_planted_cost_is_found_where_it_lies(known: Cell) -> None:
    baseline, later = arms(known)["baseline"], arms(known)["m=3"]
    for arm in (baseline, later):
        assert near(arm.phases.read_ms, PLANNED.read)
        assert near(arm.phases.preprocess_ms, PLANNED.preprocess)
        assert near(arm.phases.vision_ms, PLANNED.vision)
        assert near(arm.phases.prefill_ms, PLANNED.vision + PLANNED.prefill)
        assert near(arm.ttft_ms, PLANNED.vision + PLANNED.prefill)
    assert near(baseline.phases.decode_before_ms, STEPS * PLANNED.before, STEPS)
    assert baseline.phases.withdrawal_ms is None and baseline.phases.decode_after_ms is None
    assert near(later.phases.decode_before_ms, 2 * PLANNED.before, 2)
    assert near(later.phases.withdrawal_ms, PLANNED.withdrawal)
    assert near(later.phases.decode_after_ms, 5 * PLANNED.after, 5)
    assert near(later.tpot_before_ms, PLANNED.before)
    assert near(later.tpot_after_ms, PLANNED.after)
    assert baseline.tpot_after_ms is None and len(baseline.tpot_ms.samples) == PAIRS * STEPS
    # The step after the withdrawal bears it; the others of both kinds lie apart.
    assert len(later.step_ms) == STEPS
    assert max(later.step_ms) == later.step_ms[2] >= 1e3 * (PLANNED.withdrawal + PLANNED.after)
    assert min(later.step_ms[:2]) >= 1e3 * PLANNED.before > max(later.step_ms[3:])
    assert (baseline.withdrawn_after, later.withdrawn_after) == (None, 3)


def test_the_ratio_s_interval_holds_the_planted_gain(known: Cell) -> None:
    baseline, later = arms(known)["baseline"], arms(known)["m=3"]
    assert baseline.ratios == {}
    assert set(later.ratios) == {"ttft", "tpot", "tokens_per_s", "answer"}
    # By plan 5 and 210 / (60 + 40 + 30) = 1.6; the tiny model's own steps make both smaller.
    for name, least, most in (("tpot", 1.5, 5.2), ("tokens_per_s", 1.1, 1.8)):
        low, high = later.ratios[name].interval_95
        assert least < low <= high < most
        assert later.ratios[name].shown == "faster"
    assert all(ratio.pairs == PAIRS for ratio in later.ratios.values())
    assert baseline.tokens_per_s.median <= 1 / PLANNED.before
    assert len(baseline.tokens_per_s.samples) == PAIRS
    assert later.generated_tokens.samples == [STEPS + 1.0] * PAIRS


def test_a_peak_that_is_given_back_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not tell")
    peaks = [
        arms(measure(planted(Plan(transient=size), monkeypatch), job(tmp_path, runs=1)))
        for size in (160 * MIB, 0)
    ]
    # The larger one first: each peak counts from its own run.
    found, without = (one["baseline"].memory.process_peak_bytes for one in peaks)
    assert without is not None and found is not None and found - without > 100 * MIB
    assert peaks[0]["baseline"].memory.device_allocated_peak_bytes is None  # no device of its own


def test_memory_agrees_with_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = planted(QUICK, monkeypatch)
    found = arms(measure(session, job(tmp_path, (1, 4, 99), runs=1, batch=2)))
    one = 2 * 2 * 8 * 4  # layers, keys and values, width, bytes of a float32
    layout = workload(session, job(tmp_path), "generated")
    prompt, vision = layout.prompt_tokens, layout.vision_tokens
    for name, read, gone in (("baseline", 11, 0), ("m=1", 0, vision), ("m=4", 3, vision),
                             ("m=99", 11, 0)):  # fmt: skip
        kept = found[name].memory
        assert kept.kv_bytes_before == 2 * (prompt + read) * one
        assert kept.kv_bytes_after == kept.kv_bytes_before - 2 * gone * one
        assert kept.kv_formula_bytes_before == kept.kv_bytes_before
        assert kept.kv_formula_bytes_after == kept.kv_bytes_after
    later = found["m=4"].memory
    assert len(later.kv_bytes_along) == len(later.kv_allocated_along) == 11  # not of the last token
    assert later.kv_bytes_along[:3] == [2 * (prompt + read) * one for read in range(3)]
    assert later.kv_bytes_along[3] == later.kv_bytes_after
    model = session.loaded.model
    assert found["baseline"].memory.weight_bytes >= sum(p.nbytes for p in model.parameters())


def test_a_batch_is_prefilled_in_turn_and_decodes_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(read=0.02, vision=0.03, prefill=0.02, before=0.01, withdrawal=0.02)
    whole = job(tmp_path, (1, 4), batch=3, items=2, runs=2)
    measured = measure(planted(plan, monkeypatch), whole)
    for name, arm in arms(measured).items():
        assert near(arm.phases.read_ms, 3 * plan.read)
        assert near(arm.phases.vision_ms, 3 * plan.vision)
        assert near(arm.phases.prefill_ms, 3 * (plan.vision + plan.prefill))
        assert near(arm.ttft_ms, plan.vision + plan.prefill)  # of the first sequence alone
        assert len(arm.step_ms) == 11
        assert len(arm.tpot_ms.samples) == 2 * 11  # a step of three tokens counts once
        assert arm.generated_tokens.samples == [12.0] * 6
        if name != "baseline":
            assert near(arm.phases.withdrawal_ms, 3 * plan.withdrawal)
            assert len(arm.tpot_before_ms.samples if arm.tpot_before_ms else []) == (
                2 * 3 if name == "m=4" else 0
            )
    baseline = arms(measured)["baseline"]
    assert near(baseline.phases.decode_before_ms, 11 * plan.before, 11)
    rate = baseline.tokens_per_s.median
    assert rate <= 3 / plan.before
    decode_ms = (baseline.phases.decode_before_ms or baseline.ttft_ms).median
    assert rate == pytest.approx(33 / decode_ms * 1e3, rel=0.2)
    # At m=1 the last sequence's withdrawal falls between its first token and its second.
    first = arms(measured)["m=1"].step_ms[0]
    assert first >= 1e3 * plan.withdrawal


def test_natural_answers_end_where_the_model_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = planted(QUICK, monkeypatch)
    fixed = arms(measure(session, job(tmp_path, runs=1, new_tokens=30)))
    assert {arm.generated_tokens.median for arm in fixed.values()} == {30}
    written: list[int] = []
    forward = session.loaded.model.lm_head.forward

    def ending(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = forward(hidden)
        written.append(1)
        logits[..., 2] = 1e4 if len(written) % 7 == 0 else -1e4
        return logits

    monkeypatch.setattr(session.loaded.model.lm_head, "forward", ending)
    natural = measure(session, job(tmp_path, runs=2, new_tokens=30, mode="natural"))
    assert [arm.generated_tokens.samples for arm in arms(natural).values()] == [[7.0, 7.0]] * 2


def test_pairs_go_on_for_the_time_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int, int]] = []
    start = time.perf_counter()
    cell = measure(
        planted(Plan(prefill=0.05), monkeypatch),
        job(tmp_path, runs=2, min_time_s=1.0, warm_up=2),
        progress=lambda *told: said.append(told),
    )
    assert time.perf_counter() - start >= 1.0
    assert cell is not None and cell.pairs > 2
    texts = [text for text, _, _ in said]
    assert texts[:6] == ["baseline: warm-up", "m=4: warm-up"] * 2 + [
        "baseline: memory",
        "m=4: memory",
    ]
    assert texts[6:12] == [
        *("baseline: pair 1 of 2", "m=4: pair 1 of 2"),
        *("m=4: pair 2 of 2", "baseline: pair 2 of 2"),
        *("baseline: pair 3", "m=4: pair 3"),
    ]
    assert [done for _, done, _ in said] == list(range(len(said)))
    assert said[0][2] == 2 * 2 + 2 + 2 * 2
    assert all(done < total for _, done, total in said)


def test_what_there_is_when_it_is_stopped_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[str] = []
    whole = job(tmp_path, runs=10)
    session = planted(Plan(before=0.002), monkeypatch)

    def stopping() -> bool:
        return "m=4: pair 3 of 10" in pairs

    cell = measure(
        session, whole, progress=lambda text, done, total: pairs.append(text), stopping=stopping
    )
    assert pairs[-1] == "m=4: pair 3 of 10"
    assert cell is not None and cell.pairs == 2 and cell.ended is None
    assert all(len(arm.ttft_ms.samples) == 2 for arm in cell.arms)
    assert all(ratio.pairs == 2 for ratio in cell.arms[1].ratios.values())
    assert measure(session, whole, stopping=lambda: True) is None


def test_what_spreads_is_called_unstable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two prefills to a turn, and the arms change places: each arm meets both kinds.
    plan = Plan(prefill=0.01, jitter=(0.0, 0.3))
    cell = measure(planted(plan, monkeypatch), job(tmp_path, runs=4))
    assert cell is not None
    told = [line for line in cell.unstable if "time to first token spreads by" in line]
    assert told and all(line.startswith("Batch 1, ") and "--runs 12" in line for line in told)


def test_the_workload_is_that_of_the_first_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = workload(planted(QUICK, monkeypatch), job(tmp_path, runs=1, seed=5), "generated")
    assert (work.image_width_px, work.image_height_px) == (40, 30)
    assert (work.vision_tokens, work.seed, work.source) == (16, 5, "generated")


def test_a_batch_that_does_not_fit_names_smaller_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_hint: Callable[[str], None]
) -> None:
    session = planted(QUICK, monkeypatch)

    def full(model: torch.nn.Module, arguments: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    session.loaded.model.register_forward_pre_hook(full, with_kwargs=True)
    assert measure(session, job(tmp_path, runs=1, batch=2)) is not None
    with pytest.raises(OutOfMemory) as error:
        measure(session, job(tmp_path, runs=1, batch=16))
    assert error.value.hint == "mvw profile --batch 1,4,8"
    check_hint(error.value.hint)


def test_answers_that_end_at_once_can_t_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_hint: Callable[[str], None]
) -> None:
    session = planted(QUICK, monkeypatch)
    with torch.no_grad():
        session.loaded.model.lm_head.weight.zero_()
    end = session.loaded.model.generation_config.eos_token_id
    session.loaded.model.lm_head.register_forward_hook(
        lambda module, given, logits: logits.index_fill_(-1, torch.tensor([end]), 9.0)
    )
    with pytest.raises(ModelProblem, match="every answer ends with its first token") as error:
        measure(session, job(tmp_path, runs=2, mode="natural"))
    check_hint(error.value.hint or "")
    fixed = arms(measure(session, job(tmp_path, runs=1)))
    assert fixed["baseline"].generated_tokens.samples == [12.0]  # the end is not taken for one


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_device_is_waited_for_and_its_memory_told(tmp_path: Path) -> None:
    profile = job(tmp_path).profile.model_copy(update={"device": "cuda"})
    whole = replace(job(tmp_path, runs=3, batch=2), profile=profile)
    session = open_session(profile)
    assert str(session.loaded.model.device) == "cuda:0"
    for arm in arms(measure(session, whole)).values():
        assert arm.phases.vision_ms is not None and arm.phases.prefill_ms is not None
        assert 0 < arm.phases.vision_ms.median < arm.phases.prefill_ms.median
        kept = arm.memory
        assert kept.kv_bytes_after == kept.kv_formula_bytes_after
        peak, reserved = kept.device_allocated_peak_bytes, kept.device_reserved_peak_bytes
        assert peak is not None and reserved is not None
        assert kept.weight_bytes + kept.kv_allocated_along[0] < peak <= reserved


def test_what_goes_wrong_after_a_whole_turn_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = planted(QUICK, monkeypatch)
    count, fails_at = [0], 10**6

    def failing(*_: object) -> None:
        count[0] += 1
        if count[0] > fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    session.loaded.model.register_forward_pre_hook(failing)
    measure(session, job(tmp_path, runs=1))
    whole, fails_at = count[0], 2 * count[0] + 20
    cell = measure(session, job(tmp_path, runs=5))
    assert cell is not None and 1 <= cell.pairs < 5
    assert cell.ended is not None and "out of memory" in cell.ended
    count[0], fails_at = 0, whole // 4
    with pytest.raises(OutOfMemory):
        measure(session, job(tmp_path, runs=5))
