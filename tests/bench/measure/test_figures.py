"""Statistics, and runs made into figures: by hand, without any model."""

from __future__ import annotations

import pytest

from mvw_cli.bench.documents import Memory
from mvw_cli.bench.measure import figures
from mvw_cli.bench.measure.run import Run, Step
from mvw_cli.engine.types import Admitted, Finished, Prefilled, Withdrawn

MEMORY = Memory(0, 0, 0, None, None, None, None, None)


def run(*steps: Step, rate: float = 1.0) -> Run:
    """A run of one sequence whose prefill takes 0.1 s, slowed down as a whole by `rate`."""
    tokens = len(steps) + 1
    withdrawn = [n for n, step in enumerate(steps) if step.withdrawal_s]
    return Run(
        read_s=0.01,
        preprocess_s=0.02,
        vision_s=None,
        prefill_s=0.1 * rate,
        ttft_s=0.1 * rate,
        answer_s=0.12 * rate + sum(step.seconds for step in steps),
        withdrawal_s=sum(step.withdrawal_s for step in steps) if withdrawn else None,
        steps=steps,
        events=(
            Admitted("0", 0.0),
            Prefilled("0", 0.1, 9, 4, 72),
            *(Withdrawn("0", 0.2, n + 1, 4, 4, 80, 48, 0.03) for n in withdrawn),
            Finished("0", 1.0, "length", "", tuple(range(tokens)), 88, 128),
        ),
    )


def step(
    seconds: float, *, withdrawal: float = 0.0, tokens: int = 1, withdrawn: bool = False
) -> Step:
    return Step(seconds, withdrawal, tokens, withdrawn)


SEEING = run(step(0.04), step(0.04), step(0.04))
BLIND = run(step(0.04), step(0.06, withdrawal=0.04, withdrawn=True), step(0.02, withdrawn=True))


def test_a_withdrawal_has_its_own_phase_and_counts_for_the_answer() -> None:
    arm = figures.arm("m=2", [BLIND], [SEEING], MEMORY)
    assert arm.withdrawn_after == 2
    phases = arm.phases
    for found, expected in (
        (phases.decode_before_ms, 40.0), (phases.withdrawal_ms, 40.0),
        (phases.decode_after_ms, 40.0), (arm.tpot_before_ms, 40.0), (arm.tpot_after_ms, 20.0),
    ):  # fmt: skip
        assert found is not None and found.median == pytest.approx(expected)
    assert arm.step_ms == [40.0, 60.0, 20.0]
    assert arm.tpot_ms.samples == [40.0, 60.0, 20.0]
    assert arm.tokens_per_s.median == pytest.approx(3 / 0.12)
    assert phases.vision_ms is None and arm.bound is None
    baseline = figures.arm("baseline", [SEEING], None, MEMORY)
    assert baseline.ratios == {} and baseline.withdrawn_after is None
    assert (baseline.phases.withdrawal_ms, baseline.phases.decode_after_ms) == (None, None)


def test_ratios_are_taken_within_a_turn() -> None:
    """The machine slows down from turn to turn; the arm is 1.25 times as fast in each."""
    rates = (1.0, 2.0, 4.0, 8.0)
    slow = [run(step(0.05 * rate), step(0.05 * rate), rate=rate) for rate in rates]
    fast = [run(step(0.04 * rate), step(0.04 * rate), rate=rate) for rate in rates]
    ratios = figures.ratios(fast, slow)
    assert ratios["tpot"].median == pytest.approx(1.25)
    assert ratios["tpot"].interval_95 == pytest.approx((1.25, 1.25))
    assert ratios["tokens_per_s"].median == pytest.approx(1.25)
    assert ratios["ttft"].median == pytest.approx(1.0)
    assert 1 < ratios["answer"].median < 1.25
    with pytest.raises(ValueError):
        figures.ratios(fast[:2], slow)


def test_answers_of_one_token_are_left_out_of_what_is_said_of_steps() -> None:
    ended = run()
    ratios = figures.ratios([ended, BLIND], [SEEING, SEEING])
    assert (ratios["ttft"].pairs, ratios["tpot"].pairs) == (2, 1)
    assert set(figures.ratios([ended], [SEEING])) == {"ttft", "answer"}
    arm = figures.arm("m=2", [ended, BLIND], [SEEING, SEEING], MEMORY)
    assert len(arm.tokens_per_s.samples) == 1 and arm.step_ms == [40.0, 60.0, 20.0]
    assert arm.generated_tokens.samples == [1.0, 4.0]


def test_a_step_of_a_batch_counts_each_token_and_its_time_once() -> None:
    batch = run(step(0.04, tokens=8), step(0.04, tokens=8), step(0.02, tokens=3))
    assert figures.tokens_per_s(batch) == pytest.approx(19 / 0.1)
    assert figures.arm("baseline", [batch], None, MEMORY).tpot_ms.samples == [40.0, 40.0, 20.0]


def test_unstable_figures_are_named_with_their_spread_and_a_way_out() -> None:
    rates = (1.0, 1.0, 2.0, 2.0)
    runs = [run(step(0.05), step(0.05), rate=rate) for rate in rates]
    arms = [figures.arm("baseline", runs, None, MEMORY)]
    lines = figures.unstable(8, "fixed", 8, 4, arms)
    assert lines == [
        "Batch 8, baseline: time to first token spreads by 67 % (quartiles over median). Leave the "
        "machine to it, fix its clock rate, or measure more with --runs 12.",
        "Batch 8, baseline: time of an answer spreads by 43 % (quartiles over median). Leave the "
        "machine to it, fix its clock rate, or measure more with --runs 12.",
    ]
    [natural] = figures.unstable(1, "natural", 20, 4, arms)
    assert "time to first token" in natural and "items may differ in size" in natural
    steady = [figures.arm("baseline", [SEEING] * 4, None, MEMORY)]
    assert figures.unstable(8, "fixed", 8, 4, steady) == []
