"""The part of a step in which the device computes, from planted traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import Plan, job, planted

from mvw_cli.bench.measure import run
from mvw_cli.bench.measure.cell import device_busy, measure
from mvw_cli.bench.measure.device import covered, trace
from mvw_cli.bench.measure.run import Runner
from mvw_cli.policies.none import NoWithdrawal


@pytest.mark.parametrize(
    ("spans", "total"),
    [
        ([], 0),
        ([(3, 5)], 2),
        ([(0, 2), (5, 6)], 3),
        ([(5, 6), (0, 2)], 3),
        ([(0, 4), (2, 6)], 6),
        ([(0, 9), (2, 3), (4, 5)], 9),
        ([(0, 2), (2, 3)], 3),
    ],
)
def test_what_lies_in_several_spans_counts_once(
    spans: list[tuple[float, float]], total: float
) -> None:
    assert covered(spans) == total


def pretend(patch: pytest.MonkeyPatch, each_us: float) -> list[int]:
    """Let the CPU pass for a device of which every step is traced: one kernel, so long."""
    steps: list[int] = []

    def traced(work: Callable[[], None], device: Any) -> list[tuple[float, float]]:
        work()
        return [(10 * n * each_us, 10 * n * each_us + each_us) for n in range(steps[0])]

    from mvw_cli.engine.slots import Slots

    plain = Slots.step

    def step(self: Slots) -> Any:
        if steps:
            steps[0] += 1
        return plain(self)

    patch.setattr(run, "traceable", lambda device: True)
    patch.setattr(run, "trace", lambda work, device: (steps.append(0), traced(work, device))[1])
    patch.setattr(Slots, "step", step)
    return steps


@pytest.mark.parametrize(("tokens", "traced"), [(12, 11), (60, 32)])
def test_kernels_are_counted_over_the_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, traced: int
) -> None:
    asked = job(tmp_path, new_tokens=tokens)
    session = planted(Plan(), monkeypatch)
    steps = pretend(monkeypatch, 1500.0)
    runner = Runner(session, asked.settings(), lambda: False)
    found = runner.kernel_seconds(asked.turn(0), NoWithdrawal())
    assert steps == [traced]
    assert found == pytest.approx(1.5e-3)


def test_nothing_is_claimed_of_a_device_that_can_not_be_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(tmp_path)
    runner = Runner(planted(Plan(), monkeypatch), asked.settings(), lambda: False)
    assert runner.kernel_seconds(asked.turn(0), NoWithdrawal()) is None
    monkeypatch.setattr(run, "traceable", lambda device: True)
    monkeypatch.setattr(run, "trace", lambda work, device: work())
    assert runner.kernel_seconds(asked.turn(0), NoWithdrawal()) is None


def test_a_cell_says_how_busy_the_device_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 30 ms and more, of which kernels run 6."""
    session, asked = planted(Plan(before=0.03), monkeypatch), job(tmp_path)
    cell = measure(session, asked)
    assert cell is not None and device_busy(session, asked, cell) is None
    pretend(monkeypatch, 6000.0)
    busy = device_busy(session, asked, cell)
    assert busy == pytest.approx(6 / cell.arms[0].tpot_ms.median)
    assert 0.02 < busy <= 0.2
    without = replace(asked, arms=asked.arms[1:])
    assert device_busy(session, without, cell) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_trace_of_a_gpu() -> None:
    matrix = torch.ones(2048, 2048, device="cuda")
    few = covered(trace(lambda: [matrix @ matrix for _ in range(4)] and None, matrix.device))
    many = covered(trace(lambda: [matrix @ matrix for _ in range(40)] and None, matrix.device))
    assert 0 < 3 * few < many
