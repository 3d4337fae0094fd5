"""What is said of arms that act in the prefill, only look away, or look back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_verdict import FASTER, SAME, SLOWER, measured, step

from mvw_cli.bench.measure.stats import Ratio, summarise
from mvw_cli.bench.report.documents import ArmBound, PrefillBound, Report, Vision
from mvw_cli.bench.verdict.verdict import verdicts


def vision(attended: float, held: float, withdrawals: float = 0.0, looks: float = 0.0) -> Vision:
    return Vision(attended, [attended], [held / 4] * 4, held, withdrawals, looks)


NEVER = vision(100, 400)
THINNER = vision(25, 100)


def bounded(share: float, speedup: float) -> ArmBound:
    one = step(seconds=0.01)
    return ArmBound(one, one, 1.2, PrefillBound(share * 1e9, share, None, speedup))


def of(arm: Vision | None, never: Vision | None = NEVER, **changes: Any) -> Report:
    """An arm that has withdrawn nothing while decoding, unless it is said."""
    made = {"withdrawn_after": None, "name": "own", **changes}
    return measured(never={"vision": never}, vision=arm, **made)


def test_a_prefill_that_reads_less_is_bounded_in_its_first_token() -> None:
    found = verdicts(of(THINNER, bound=bounded(0.4, 2.5), ratios={"ttft": FASTER}))
    assert found == [
        "own at batch 1: the prefill reads 75 % fewer vision entries over its layers and computes "
        "60 % fewer FLOPs: expect the first token at most 2.50 × as fast; measured are 1.20 × "
        "[1.10, 1.30], faster."
    ]


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (SAME, "measured are 1.01 × [0.98, 1.04], no difference shown."),
        (SLOWER, "measured are 0.80 × [0.70, 0.90], slower."),
        (Ratio(3.0, (2.9, 3.1), 12), "measured are 3.00 × [2.90, 3.10], which exceeds the bound: "
                                     "suspect the measurement."),
        (Ratio(2.4, (2.3, 2.6), 12), "measured are 2.40 × [2.30, 2.60], faster."),
    ],
)  # fmt: skip
def test_what_was_measured_stands_beside_it(ratio: Ratio, said: str) -> None:
    # A device whose weights limit the prefill: FLOPs allow for 2.5 and seconds for 1.1.
    [found] = verdicts(of(THINNER, bound=bounded(0.4, 1.1), ratios={"ttft": ratio}))
    assert "at most 1.10 × as fast; " in found and found.endswith(said)


def test_without_a_bound_or_a_ratio_it_is_still_said() -> None:
    start = "own at batch 1: the prefill reads 75 % fewer vision entries over its layers"
    assert verdicts(of(THINNER, bound=None)) == [f"{start}."]
    [found] = verdicts(of(THINNER, bound=None, ratios={"ttft": FASTER}))
    assert found == f"{start}; measured are 1.20 × [1.10, 1.30], faster."


def test_less_in_the_cache_from_the_start() -> None:
    memory = measured().cells[0].arms[1].memory
    less, all_ = (replace(memory, kv_bytes_prefilled=size) for size in (2048, 8192))
    made = measured(
        never={"vision": NEVER, "memory": all_}, vision=THINNER, memory=less, bound=None, name="own"
    )
    assert verdicts(made)[1] == (
        "own at batch 1 has 75 % less in the KV cache from the first token on: 2.0 KiB instead of "
        "8.0 KiB."
    )


def test_an_arm_that_looks_away_frees_nothing() -> None:
    found = verdicts(of(vision(5, 400), ratios={"tokens_per_s": SAME}))
    assert found == [
        "No difference shown in the decode of own at batch 1: 1.01 × [0.98, 1.04]; the bound is "
        "1.20 ×.",
        "own at batch 1 attends to 5 % of the vision tokens in a step, mean over the layers, and "
        "frees nothing: what it does not look at stays in the KV cache.",
    ]


def test_an_arm_that_thins_out_is_no_such_arm() -> None:
    assert verdicts(of(vision(50, 400, withdrawals=3.0))) == []


@pytest.mark.parametrize("never", [NEVER, None])
def test_what_changes_nothing_is_not_judged(never: Vision | None) -> None:
    for same in (NEVER, None):
        found = verdicts(of(same, never, ratios={"tokens_per_s": FASTER}))
        assert found == [
            "own at batch 1 withdrew nothing from its first item: nothing is concluded from it."
        ]


def test_a_withdrawal_from_another_item_than_the_first_is_one() -> None:
    found = verdicts(of(vision(100, 400, withdrawals=0.25), ratios={"tokens_per_s": FASTER}))
    assert found == ["own at batch 1 decodes faster: 1.20 × [1.10, 1.30]; the bound is 1.20 ×."]


@pytest.mark.parametrize(
    ("looks", "said"),
    [(1.5, "looks back 1.50 times an answer, on average"), (0.0, "looks back in no answer")],
)
def test_what_waits_on_the_host(looks: float, said: str) -> None:
    memory = replace(of(None).cells[0].arms[1].memory, host_parked_peak_bytes=3 << 20)
    found = verdicts(of(vision(60, 400, 1.0, looks), memory=memory))
    assert found == [f"own at batch 1 {said}; up to 3.0 MiB wait for that on the host."]


def test_a_long_prefill_names_the_arms_that_help() -> None:
    for arm, said in (
        (THINNER, "withdrawal while decoding can't help there, vision tokens that leave in the "
                  "prefill or are not there from the start can."),
        (vision(50, 400, 1.0), "withdrawal can't help there, fewer vision tokens from the start "
                               "can."),
    ):  # fmt: skip
        made = measured(
            never={"vision": NEVER, "answer_s": summarise([0.1])}, vision=arm, bound=None
        )
        assert verdicts(made)[0] == f"The prefill is 100 % of your request at batch 1: {said}"
