"""A whole report with made-up figures, from a seed: renderers and comparisons are tested on it."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

from mvw_cli.bench.documents import (
    Answers,
    Arm,
    AttentionMass,
    Cell,
    Comparison,
    Memory,
    Model,
    Phases,
    ProfileReport,
    Vision,
    Workload,
)
from mvw_cli.bench.stats import Summary, paired_ratio, summarise
from mvw_cli.cost.bounds import ArmBound, BatchBound, Plan, PrefillBound
from mvw_cli.cost.case import Device, StepBound
from mvw_cli.environment import Environment

NEW_TOKENS, VISION, PROMPT, RUNS = 256, 1008, 1064, 12
KV_PER_TOKEN = 131_072
WEIGHTS = 21_300_000_000
STEP_MS = {1: 31.0, 8: 44.0}
PER_VISION_MS = {1: 0.0004, 8: 0.012}
"""What the vision tokens cost each step, by batch: nothing that shows at 1, a lot at 8."""


@cache
def report(*, batches: tuple[int, ...] = (1, 8), seed: int = 0) -> ProfileReport:
    """Make a report in which everything was measured: batches, arms, answers, attention."""
    return ProfileReport(
        environment=environment(),
        model=Model("llava-cot", "Xkev/Llama-3.2V-11B-cot", "a1b2c3d", "bfloat16", "cuda:0",
                    "sdpa", False),
        profile={
            "name": "llava-cot",
            "values": {"adapter": "llava-cot", "quantization": None, "cross_attention": "skip"},
            "origins": {},
        },
        workload=Workload("fixed", NEW_TOKENS, 20, "folder", PROMPT, VISION, 1024, 768, 0, 2,
                          RUNS, 10.0),
        command=["mvw", "profile", "--images", "photos", "--m", "16,64,never"],
        started="2026-11-21T08:30:00Z",
        seconds=412.5,
        plan=plan(batches),
        cells=[cell(batch, seed) for batch in batches],
        answers=answers(),
        attention=attention(),
        verdicts=[
            "At batch 1 the weights are 98.8 % of the traffic: expect at most 1.02 ×.",
            "At batch 8 the cache is 9 % of it: expect at most 1.08 ×.",
        ],
    )  # fmt: skip


def bare() -> ProfileReport:
    """Make a report in which as little as possible was measured: one batch, the baseline alone."""
    full = report(batches=(1,))
    arm = full.cells[0].arms[0]
    nothing = Phases(*(None for _ in range(7)))
    memory = Memory(WEIGHTS, 1000, 1000, None, None, None, None, None)
    arm = replace(arm, phases=nothing, memory=memory, tpot_before_ms=None, bound=None, step_ms=[])
    return replace(
        full,
        environment=replace(full.environment, torch=None, transformers=None, device="cpu"),
        model=replace(full.model, revision=None, device="cpu", random_weights=True),
        plan=None,
        cells=[replace(full.cells[0], arms=[arm], unstable=[])],
        answers=None,
        attention=None,
        verdicts=[],
    )


def layerwise() -> ProfileReport:
    """Make a report on arms that act in the prefill, only look away, and look back."""
    full = report(batches=(8,))
    baseline, early, late = full.cells[0].arms
    whole = PrefillBound(2.3e13, 1.0, 0.033, 1.0)
    cut = PrefillBound(1.15e13, 0.5, 0.0165, 2.0)

    def arm(one: Arm, name: str, seen: Vision, prefill: PrefillBound, offloaded: int = 0) -> Arm:
        bound = None if one.bound is None else replace(one.bound, prefill=prefill)
        entries = PROMPT * 4 - 4 * VISION + int(seen.entries_held)
        memory = replace(
            one.memory,
            kv_bytes_prefilled=entries * KV_PER_TOKEN // 4,
            host_offloaded_peak_bytes=offloaded,
        )
        return replace(one, name=name, vision=seen, bound=bound, memory=memory)

    keeps = replace(early, withdrawn_after=None)
    arms = [
        arm(baseline, "baseline", _vision([VISION] * 4, [VISION] * NEW_TOKENS), whole),
        arm(keeps, "vtw:layer=2", _vision([VISION, VISION, 0, 0], [VISION / 2] * NEW_TOKENS), cut),
        arm(keeps, "pulse", _vision([VISION] * 4, [VISION, *[40.25] * (NEW_TOKENS - 1)]), whole),
        arm(
            late,
            "mvw:m=64+look-back",
            _vision([VISION] * 4, [VISION] * 64 + [0.0] * 100 + [VISION] * 92, 2.0, 1.0),
            whole,
            offloaded=VISION * KV_PER_TOKEN,
        ),
    ]
    return replace(full, cells=[replace(full.cells[0], arms=arms)])


def _vision(
    held: list[float], along: list[float], withdrawals: float = 0.0, looks: float = 0.0
) -> Vision:
    return Vision(sum(along) / len(along), along, held, sum(held), withdrawals, looks)


def planned() -> ProfileReport:
    """Make what `--plan` gives: figures from the configuration, nothing run."""
    return replace(bare(), plan=plan((1, 8)), cells=[])


def environment() -> Environment:
    return Environment("0.5.0", "3.11.9", "2.13.0", "5.23.0", None, "Linux-6.1-x86_64", "cuda:0",
                       "NVIDIA H100 80GB HBM3", 16)  # fmt: skip


def cell(batch: int, seed: int = 0) -> Cell:
    rng = random.Random(f"{seed} {batch}")
    arms: list[Arm] = []
    for name, m in (("baseline", None), ("m=16", 16), ("m=64", 64)):
        arms.append(_arm(rng, batch, name, m, arms[0] if arms else None))
    unstable = ["ttft_ms of m=64 spreads by 31 %: close other programs, or use --runs 30."]
    return Cell(batch, RUNS, arms, unstable if batch == 8 else [])


def _arm(rng: random.Random, batch: int, name: str, m: int | None, baseline: Arm | None) -> Arm:
    runs = [[_step(rng, batch, token, m) for token in range(2, NEW_TOKENS + 1)]
            for _ in range(RUNS)]  # fmt: skip
    ttft = [118.0 + 2 * batch + rng.gauss(0, 2) for _ in runs]
    seconds = [sum(run) / 1000 for run in runs]
    rate = [batch * len(run) / s for run, s in zip(runs, seconds, strict=True)]
    answer = [t / 1000 + s for t, s in zip(ttft, seconds, strict=True)]
    split = (m or NEW_TOKENS) - 1
    tpot = [sum(run) / len(run) for run in runs]
    ratios = {}
    if baseline is not None:
        ratios = {
            "ttft": paired_ratio(baseline.ttft_ms.samples, ttft),
            "tpot": paired_ratio([1000 * batch / r for r in baseline.tokens_per_s.samples], tpot),
            "tokens_per_s": paired_ratio(rate, baseline.tokens_per_s.samples),
            "answer": paired_ratio(baseline.answer_s.samples, answer),
        }
    return Arm(
        name=name,
        withdrawn_after=m,
        generated_tokens=summarise([float(NEW_TOKENS)] * RUNS),
        ttft_ms=summarise(ttft),
        tpot_ms=summarise([step for run in runs for step in run]),
        tpot_before_ms=summarise([step for run in runs for step in run[:split]]),
        tpot_after_ms=summarise([step for run in runs for step in run[split:]]) if m else None,
        tokens_per_s=summarise(rate),
        answer_s=summarise(answer),
        phases=_phases(rng, ttft, seconds, m),
        memory=_memory(batch, m),
        step_ms=[sorted(column)[RUNS // 2] for column in zip(*runs, strict=True)],
        ratios=ratios,
        bound=ArmBound(step_bound(batch, True), step_bound(batch, False), 1 + 0.02 * batch),
    )


def _step(rng: random.Random, batch: int, token: int, m: int | None) -> float:
    seen = VISION if m is None or token <= m else 0
    return STEP_MS[batch] + PER_VISION_MS[batch] * seen + 0.002 * token + abs(rng.gauss(0, 0.3))


def _phases(rng: random.Random, ttft: list[float], seconds: list[float], m: int | None) -> Phases:
    share = (m or NEW_TOKENS) / NEW_TOKENS

    def around(value: float) -> Summary:
        return summarise([value + rng.random() * 0.05 * value for _ in ttft])

    return Phases(
        read_ms=around(11.0),
        preprocess_ms=around(24.0),
        vision_ms=around(61.0),
        prefill_ms=summarise(ttft),
        decode_before_ms=summarise([1000 * share * s for s in seconds]),
        withdrawal_ms=around(0.9) if m else None,
        decode_after_ms=summarise([1000 * (1 - share) * s for s in seconds]) if m else None,
    )


def _memory(batch: int, m: int | None) -> Memory:
    # With the last token the sequences are gone.
    entries = [
        PROMPT + token - 1 - (VISION if m and token >= m else 0) for token in range(1, NEW_TOKENS)
    ]
    used = [batch * one * KV_PER_TOKEN for one in entries]
    held = [batch * math.ceil(one / 256) * 256 * KV_PER_TOKEN for one in entries]
    after = used[m - 1 if m else -1]
    before = after + (batch * VISION * KV_PER_TOKEN if m else 0)
    peak = WEIGHTS + max(held)
    return Memory(WEIGHTS, before, after, before, after, peak, peak + 2**30, 4 * 2**30, used, held)


def step_bound(batch: int, vision: bool) -> StepBound:
    kv = batch * KV_PER_TOKEN * (56 + NEW_TOKENS // 2 + (VISION if vision else 0))
    return StepBound(WEIGHTS, kv, 2e10 * batch, (WEIGHTS + kv) / 3.35e12)


def plan(batches: tuple[int, ...]) -> Plan:
    device = Device("NVIDIA H100 80GB HBM3", "measured", 2.9e12, 7.1e14, 4.2e-6, 80 * 2**30,
                    "measured 2026-11-21")  # fmt: skip
    return Plan(
        device=device,
        parameters=10_670_000_000,
        weight_bytes=WEIGHTS,
        vision_tokens=VISION,
        text_tokens=184,
        new_tokens=NEW_TOKENS,
        withdrawn_after=16,
        prefill_flops=2.3e13,
        prefill_s=0.033,
        batches=[
            BatchBound(b, step_bound(b, True), step_bound(b, False), 1 + 0.01 * b, 1 + 0.009 * b)
            for b in batches
        ],
        matters_from_batch=16,
        matters_from_vision_tokens={b: None if b == 1 else 1300 for b in batches},
        largest_batch_before=351,
        largest_batch_after=None,
        verdicts=["At batch 1 the weights are 98.8 % of the traffic: expect at most 1.02 ×."],
    )


def answers() -> Answers:
    def arm(name: str, identical: int, right: int, p: float | None) -> Comparison:
        whole = identical == 20
        return Comparison(
            name=name,
            items=20,
            identical=identical,
            first_difference=None if whole else summarise([20.0, 31.0, 44.0]),
            agreement=0.9 + identical / 200,
            kl_nats=summarise([0.001 * (21 - identical)] * 3),
            generated_tokens=summarise([180.0, 240.0, 210.0]),
            seconds=summarise([6.1, 8.0, 7.2]),
            correct=right,
            accuracy_interval_95=(right / 20 - 0.15, min(1.0, right / 20 + 0.1)),
            p_value=p,
            same_answer=None if whole else identical + 1,
            agreement_interval_95=None if whole else (0.88 + identical / 200, 0.95),
            lost=None if whole else 3,
            won=None if whole else 1,
            drop_interval_95=None if whole else (-0.05, 0.27),
        )

    arms = [arm("baseline", 20, 17, None), arm("m=16", 11, 15, 0.5), arm("m=64", 18, 17, 1.0),
            arm("no image", 0, 6, 0.0034)]  # fmt: skip
    return Answers(
        20,
        20,
        arms,
        ["2 answers were left out: they are longer than 256 tokens."],
    )


def attention() -> AttentionMass:
    layers = [3, 8, 13, 18]
    mass = [0.05 + 0.5 * math.exp(-token / 30) for token in range(NEW_TOKENS)]
    by_layer = [[value * (0.6 + 0.2 * i) for value in mass] for i in range(len(layers))]
    uniform = [VISION / (PROMPT + token) for token in range(NEW_TOKENS)]
    return AttentionMass(layers, mass, by_layer, uniform)
