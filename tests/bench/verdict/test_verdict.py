"""The sentences of a verdict: each branch said where its figures show it, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_report import report

from mvw_cli.bench.documents import Arm, Cell, ProfileReport, Stage, Vision
from mvw_cli.bench.stats import Ratio, summarise
from mvw_cli.bench.verdict.verdict import plan_verdicts, verdicts
from mvw_cli.cost.bounds import ArmBound, BatchBound, Plan, PrefillBound
from mvw_cli.cost.case import Device, StepBound

FASTER, SLOWER = Ratio(1.2, (1.1, 1.3), 12), Ratio(0.8, (0.7, 0.9), 12)
SAME = Ratio(1.01, (0.98, 1.04), 12)


def step(weights: int = 970, kv: int = 30, flops: float = 10.0, seconds: Any = None) -> StepBound:
    return StepBound(weights, kv, flops, seconds)


def at(batch: int, speedup: float, **before: Any) -> BatchBound:
    return BatchBound(batch, step(**before), step(kv=10), speedup + 0.1, speedup)


def plan(**changes: Any) -> Plan:
    made = Plan(
        device=None,
        parameters=500,
        weight_bytes=1000,
        vision_tokens=1000,
        text_tokens=600,
        new_tokens=101,
        withdrawn_after=16,
        prefill_flops=1e6,
        prefill_s=None,
        batches=[at(1, 1.03), at(32, 1.4, kv=900)],
        matters_from_batch=9,
        matters_from_vision_tokens={1: 22_000, 32: 300},
        largest_batch_before=None,
        largest_batch_after=None,
        verdicts=[],
    )
    return replace(made, **changes)


def fast(bandwidth: float = 1000.0, flops: float = 1000.0) -> Device:
    return Device("toy", "measured", bandwidth, flops, None, None, "now")


def test_a_plan_without_a_device() -> None:
    assert plan_verdicts(plan()) == [
        "The weights are 97 % of what a decode step moves at batch 1: expect withdrawal after "
        "16 tokens to make the decode at most 1.03 × as fast; at batch 32 at most 1.40 ×.",
        "With 1,000 vision tokens a step can become 10 % faster at batch 9, at no smaller one. "
        "It would take 22,000 at batch 1.",
    ]
    turned = plan(batches=[at(32, 1.4, kv=900), at(1, 1.03)])
    assert plan_verdicts(turned) == plan_verdicts(plan())


@pytest.mark.parametrize(
    ("batch", "needed", "said"),
    [
        (None, {1: None}, "can't become 10 % faster at any batch size."),
        (1, {1: 10}, "can become 10 % faster even at batch 1."),
        (7, {1: 2000, 2: 1500, 8: 900}, "It would take 2,000 at batch 1, 1,500 at batch 2."),
    ],
)
def test_from_where_it_matters(batch: int | None, needed: dict[int, int | None], said: str) -> None:
    made = plan(matters_from_batch=batch, matters_from_vision_tokens=needed)
    assert plan_verdicts(made)[1].endswith(said)


BATCHES = [at(1, 1.03, flops=999.0), at(32, 1.0, flops=1001.0)]
ONE_SECOND = [at(1, 1.03, seconds=0.01)]  # 100 steps
CLOCKED = {"device": fast(1e9, 1e9), "prefill_s": 4.0, "batches": ONE_SECOND}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_tokens": 0}, "no vision tokens to withdraw"),
        ({"device": fast(), "batches": BATCHES}, "At batch 32 arithmetic limits a step on toy"),
        ({"device": fast(), "batches": BATCHES[:1]}, None),
        ({"largest_batch_before": 14, "largest_batch_after": 1200},
         "caches of 14 sequences with their vision, of 1,200 without."),
        ({"largest_batch_before": 0, "largest_batch_after": 0}, "no room for the cache of one"),
        ({"device": replace(fast(), memory_bytes=512), "largest_batch_before": 0,
          "largest_batch_after": 0}, "The weights take 1000 B, more than the 512 B of toy."),
        (CLOCKED, "By these bounds the prefill is 80 % of a request at batch 1"),
        ({**CLOCKED, "prefill_s": 0.9}, None),
        ({**CLOCKED, "batches": [at(8, 1.0, seconds=0.01)]}, None),
        ({"batches": [replace(at(1, 1.3), after=step(weights=776))]}, "20 % of the weights too"),
    ],
)  # fmt: skip
def test_what_else_a_plan_says(changes: dict[str, Any], said: str | None) -> None:
    found = plan_verdicts(plan(**changes))
    assert len(found) == 2 if said is None else said in " ".join(found)


# -- measured -------------------------------------------------------------------------------


def measured(
    baseline: dict[str, Any] | None = None, mode: str = "fixed", **arm: Any
) -> ProfileReport:
    """One batch with `baseline` and `m=16`, with nothing to be said about unless changed."""
    full = report(batches=(1,))
    cell = full.cells[0]
    quiet: dict[str, Any] = {
        "answer_s": summarise([10.0]),
        "tpot_ms": summarise([10.0]),
        "bound": bounded(1.2, seconds=0.01),
    }

    def silent(one: Arm) -> Arm:
        phases = replace(one.phases, prefill_ms=summarise([100.0]))
        memory = replace(
            one.memory, kv_bytes_before=100, kv_bytes_after=100,
            kv_formula_bytes_before=100, kv_formula_bytes_after=100,
        )  # fmt: skip
        return replace(one, phases=phases, memory=memory, **quiet)

    first, second = (silent(one) for one in cell.arms[:2])
    first, second = replace(first, **(baseline or {})), replace(second, **{"ratios": {}, **arm})
    cell = replace(cell, arms=[first, second])
    workload = replace(full.workload, mode=mode)
    return replace(full, cells=[cell], workload=workload)


def bounded(speedup: float, seconds: float | None = None) -> ArmBound:
    return ArmBound(step(seconds=seconds), step(seconds=seconds), speedup)


def tokens(count: float) -> Any:
    return summarise([count] * 3)


def prefill(ms: float | None) -> dict[str, Any]:
    phases = measured().cells[0].arms[0].phases
    return {"phases": replace(phases, prefill_ms=None if ms is None else summarise([ms]))}


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (prefill(8000.0), "The prefill is 80 % of your request at batch 1: withdrawal can't help"),
        (prefill(4900.0), None),
        (prefill(None), None),
        (
            {"bound": bounded(1.2, seconds=0.0022)},
            "Bytes and arithmetic account for 22 % of a step",
        ),
        ({"bound": bounded(1.2, seconds=0.0051)}, None),
        ({"bound": bounded(1.2)}, None),
        ({"bound": None}, None),
        ({"bound": bounded(1.2, seconds=0.02)}, "A step at batch 1 takes 50 % of the time"),
        ({"bound": bounded(1.2, seconds=0.0108)}, None),
    ],
)
def test_where_the_time_of_the_baseline_goes(baseline: dict[str, Any], said: str | None) -> None:
    found = verdicts(measured(baseline=baseline))
    assert found == [] if said is None else [one.startswith(said) for one in found] == [True]


SHORTER = {"generated_tokens": tokens(119), "ratios": {"answer": FASTER}}


@pytest.mark.parametrize(
    "report",
    [
        replace(measured(), cells=[]),
        measured(),
        measured(name="no image", ratios={"tokens_per_s": FASTER}),  # the control is not judged
        measured({"generated_tokens": tokens(120)}, "natural", **SHORTER),  # about as long
    ],
)
def test_figures_that_show_nothing_say_nothing(report: ProfileReport) -> None:
    assert verdicts(report) == []


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (SAME, "No difference shown in the decode of m=16 at batch 1: 1.01 × [0.98, 1.04]"),
        (SLOWER, "m=16 at batch 1 decodes slower: 0.80 × [0.70, 0.90]"),
        (FASTER, "m=16 at batch 1 decodes faster: 1.20 × [1.10, 1.30]"),
    ],
)
def test_speed_beside_its_bound(ratio: Ratio, said: str) -> None:
    ratios = {"tokens_per_s": ratio}
    assert verdicts(measured(ratios=ratios)) == [f"{said}; the bound is 1.20 ×."]
    assert verdicts(measured(ratios=ratios, bound=None)) == [f"{said}."]
    assert verdicts(measured(ratios={"tpot": ratio}, bound=None)) == [f"{said}."]


def test_more_than_the_bound_allows() -> None:
    ratios = {"tokens_per_s": FASTER}
    assert verdicts(measured(ratios=ratios, bound=bounded(1.05))) == [
        "m=16 at batch 1 decodes 1.20 × [1.10, 1.30] as fast, which exceeds the bound of 1.05 ×: "
        "suspect the measurement, or a step that moves more of the cache than it holds."
    ]
    # An interval that reaches the bound does not contradict it.
    assert "exceeds" not in verdicts(measured(ratios=ratios, bound=bounded(1.11)))[0]


def test_at_natural_length_no_bound_is_held_against_the_speed() -> None:
    natural = measured(mode="natural", ratios={"tokens_per_s": FASTER}, bound=bounded(1.0))
    assert verdicts(natural) == ["m=16 at batch 1 decodes faster: 1.20 × [1.10, 1.30]."]


def test_fewer_than_six_pairs_claim_nothing() -> None:
    """Neither a difference, nor that a bound is exceeded, however far their figures lie apart."""
    few, first = Ratio(3.0, (2.9, 3.1), 5), prefill_bounded(0.4, 2.5)
    made = of(THINNER, bound=first, ratios={"tokens_per_s": few, "ttft": few})
    said = verdicts(made)
    assert said[0] == (
        "No difference shown in the decode of own at batch 1: 3.00 × (only 5 pairs); the bound is "
        "1.20 ×."
    )
    assert said[1].endswith("measured are 3.00 × (only 5 pairs), no difference shown.")
    assert len(said) == 2
    six = Ratio(3.0, (2.9, 3.1), 6)
    said = verdicts(of(THINNER, bound=first, ratios={"tokens_per_s": six, "ttft": six}))
    assert all("exceeds the bound" in sentence for sentence in said) and len(said) == 2


@pytest.mark.parametrize(
    ("count", "answer", "speed", "said"),
    [
        (90, FASTER, SAME, "shorter, 90 tokens for 120; this and not speed explains the 16.7 % "
                           "fewer seconds of an answer."),
        (150, SLOWER, SAME, "longer, 150 tokens for 120; this and not speed explains the 25 % "
                            "more seconds of an answer."),
        (90, FASTER, FASTER, "and each token is faster: both make up the 16.7 % fewer seconds."),
        (150, SLOWER, SLOWER, "and each token is slower: both make up the 25 % more seconds."),
        (90, SAME, SAME, "no difference is shown in the seconds of an answer."),
        (150, FASTER, FASTER, "and yet an answer takes 16.7 % fewer seconds."),
    ],
)  # fmt: skip
def test_length_is_told_from_speed(count: int, answer: Ratio, speed: Ratio, said: str) -> None:
    made = measured(
        baseline={"generated_tokens": tokens(120)},
        mode="natural",
        generated_tokens=tokens(count),
        ratios={"answer": answer, "tokens_per_s": speed},
    )
    assert verdicts(made)[1].startswith("m=16 at batch 1: answers are ")
    assert verdicts(made)[1].endswith(said)
    assert len(verdicts(replace(made, workload=replace(made.workload, mode="fixed")))) == 1


def test_an_arm_that_never_withdrew() -> None:
    made = measured(withdrawn_after=None, ratios={"tokens_per_s": FASTER}, name="at </CAPTION>")
    assert verdicts(made) == [
        "at </CAPTION> at batch 1 withdrew nothing from its first item: nothing is concluded from "
        "it."
    ]


def test_an_arm_without_a_baseline_is_not_judged() -> None:
    made = measured(ratios={"tokens_per_s": FASTER})
    cell = replace(made.cells[0], arms=made.cells[0].arms[1:])
    assert verdicts(replace(made, cells=[cell])) == []


def test_what_is_freed() -> None:
    memory = replace(
        measured().cells[0].arms[1].memory, kv_bytes_before=8192, kv_bytes_after=2048,
        kv_formula_bytes_before=None, kv_formula_bytes_after=None,
    )  # fmt: skip
    assert verdicts(measured(memory=memory)) == [
        "m=16 at batch 1 frees 75 % of the KV cache: 8.0 KiB become 2.0 KiB."
    ]


def test_what_is_freed_in_stages() -> None:
    """Each with what was held just before it; more than a few are left to the table."""
    stages = [Stage(0, 9216, 8192), Stage(3, 8704, 6144), Stage(6, 6656, 2048)]
    memory = replace(
        measured().cells[0].arms[1].memory, kv_bytes_before=8192, kv_bytes_after=2048,
        kv_formula_bytes_before=None, kv_formula_bytes_after=None, stages=stages,
    )  # fmt: skip
    assert verdicts(measured(memory=memory)) == [
        "m=16 at batch 1 frees 75 % of the KV cache: 8.0 KiB become 2.0 KiB.",
        "m=16 at batch 1 withdraws in 3 stages: 9.0 KiB → 8.0 KiB in the prefill, "
        "8.5 KiB → 6.0 KiB after 3 tokens, 6.5 KiB → 2.0 KiB after 6 tokens.",
    ]
    for few in (stages[:1], stages * 2):
        assert len(verdicts(measured(memory=replace(memory, stages=few)))) == 1


@pytest.mark.parametrize(("field", "when"), [("before", "before"), ("after", "after")])
def test_a_cache_that_is_not_as_counted(field: str, when: str) -> None:
    memory = measured().cells[0].arms[1].memory
    memory = replace(memory, **{f"kv_formula_bytes_{field}": 1234})  # type: ignore[arg-type]
    assert verdicts(measured(memory=memory)) == [
        f"The KV cache of m=16 at batch 1 has 100 bytes {when} the withdrawal where the "
        "configuration says 1,234: suspect the bound."
    ]


def test_a_device_that_waits_for_the_host() -> None:
    made = measured(baseline={"bound": bounded(1.2, seconds=0.002)})
    idle = replace(made.cells[0], device_busy=0.22)
    assert verdicts(replace(made, cells=[idle])) == [
        "Launch-bound: the device is busy 22 % of a step's time at batch 1. The rest is the host's "
        "work, which withdrawal does not shorten."
    ]
    busy = replace(made.cells[0], device_busy=0.51)
    [sentence] = verdicts(replace(made, cells=[busy]))
    assert sentence.startswith("Bytes and arithmetic account for 20 %")


def test_every_batch_has_its_own_sentences() -> None:
    one = measured(ratios={"tokens_per_s": SAME})
    cells: list[Cell] = [one.cells[0], replace(one.cells[0], batch=8)]
    said = verdicts(replace(one, cells=cells))
    assert [" at batch 1: " in said[0], " at batch 8: " in said[1]] == [True, True]
    assert len(said) == 2


# -- arms that act in the prefill, only look away, or look back -------------------------------


def vision(attended: float, held: float, withdrawals: float = 0.0, looks: float = 0.0) -> Vision:
    return Vision(attended, [attended], [held / 4] * 4, held, withdrawals, looks)


NEVER = vision(100, 400)
THINNER = vision(25, 100)


def prefill_bounded(share: float, speedup: float) -> ArmBound:
    one = step(seconds=0.01)
    return ArmBound(one, one, 1.2, PrefillBound(share * 1e9, share, None, speedup))


def of(arm: Vision | None, baseline: Vision | None = NEVER, **changes: Any) -> ProfileReport:
    """An arm that has withdrawn nothing while decoding, unless it is said."""
    made = {"withdrawn_after": None, "name": "own", **changes}
    return measured(baseline={"vision": baseline}, vision=arm, **made)


def with_memory(looks: float | None, **memory: int) -> ProfileReport:
    """An arm of its own memory; it looks back so often, or has thinned out the prefill."""
    whole = measured().cells[0].arms[1].memory
    seen = THINNER if looks is None else vision(60, 400, 1.0, looks)
    baseline = {"vision": NEVER, "memory": replace(whole, kv_bytes_prefilled=8192)}
    changed = replace(whole, **memory)  # type: ignore[arg-type]
    return measured(
        baseline, withdrawn_after=None, name="own", vision=seen, memory=changed, bound=None
    )


READS_LESS = "own at batch 1: the prefill reads 75 % fewer vision entries over its layers"
NOTHING = "own at batch 1 withdrew nothing from its first item: nothing is concluded from it."
FAST, ALIKE = {"tokens_per_s": FASTER}, {"tokens_per_s": SAME}


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (of(THINNER, bound=prefill_bounded(0.4, 2.5), ratios={"ttft": FASTER}),
         [f"{READS_LESS} and computes 60 % fewer FLOPs: expect the first token at most 2.50 × as "
          "fast; measured are 1.20 × [1.10, 1.30], faster."]),
        (of(THINNER, bound=None), [f"{READS_LESS}."]),
        (of(THINNER, bound=None, ratios={"ttft": FASTER}),
         [f"{READS_LESS}; measured are 1.20 × [1.10, 1.30], faster."]),
        (with_memory(None, kv_bytes_prefilled=2048),
         [f"{READS_LESS}.", "own at batch 1 has 75 % less in the KV cache from the first token on: "
                            "2.0 KiB instead of 8.0 KiB."]),
        # It looks away and frees nothing; what thins out is no such arm.
        (of(vision(5, 400), ratios=ALIKE),
         ["No difference shown in the decode of own at batch 1: 1.01 × [0.98, 1.04]; the bound is "
          "1.20 ×.", "own at batch 1 attends to 5 % of the vision tokens in a step, mean over the "
          "layers, and frees nothing: what it does not look at stays in the KV cache."]),
        (of(vision(50, 400, withdrawals=3.0)), []),
        (of(NEVER, ratios=FAST), [NOTHING]),
        (of(NEVER, None, ratios=FAST), [NOTHING]),
        (of(None, ratios=FAST), [NOTHING]),
        # It withdrew from another item than the first.
        (of(vision(100, 400, withdrawals=0.25), ratios=FAST),
         ["own at batch 1 decodes faster: 1.20 × [1.10, 1.30]; the bound is 1.20 ×."]),
        (with_memory(1.5, host_offloaded_peak_bytes=3 << 20),
         ["own at batch 1 looks back 1.50 times an answer, on average; up to 3.0 MiB wait for that "
          "on the host."]),
        (with_memory(0.0, host_offloaded_peak_bytes=3 << 20),
         ["own at batch 1 looks back in no answer; up to 3.0 MiB wait for that on the host."]),
    ],
)  # fmt: skip
def test_arms_that_act_in_the_prefill_look_away_or_look_back(
    report: ProfileReport, said: list[str]
) -> None:
    assert verdicts(report) == said


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
    [found] = verdicts(of(THINNER, bound=prefill_bounded(0.4, 1.1), ratios={"ttft": ratio}))
    assert "at most 1.10 × as fast; " in found and found.endswith(said)


def test_a_long_prefill_names_the_arms_that_help() -> None:
    for arm, said in (
        (THINNER, "withdrawal while decoding can't help there, vision tokens that leave in the "
                  "prefill or are not there from the start can."),
        (vision(50, 400, 1.0), "withdrawal can't help there, fewer vision tokens from the start "
                               "can."),
    ):  # fmt: skip
        made = measured(
            baseline={"vision": NEVER, "answer_s": summarise([0.1])}, vision=arm, bound=None
        )
        assert verdicts(made)[0] == f"The prefill is 100 % of your request at batch 1: {said}"
