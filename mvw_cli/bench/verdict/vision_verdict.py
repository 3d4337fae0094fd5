"""What it means that an arm reads, holds or looks at less of the image; a sentence for each.

One function for one kind of sentence; None where there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from mvw_cli.bench.documents import Arm
from mvw_cli.bench.stats import Ratio
from mvw_cli.text import factor, percent, readable_bytes

_SAME = 1e-9
"""Relative difference up to which means of counts are the same."""


def acts(arm: Arm, baseline: Arm) -> bool:
    """Whether an arm has withdrawn anything, or looked at less than all."""
    if arm.withdrawn_after is not None:
        return True
    if arm.vision is None or baseline.vision is None:
        return False
    return arm.vision.withdrawals > 0 or reads_less(arm, baseline) or _looks_less(arm, baseline)


def reads_less(arm: Arm, baseline: Arm) -> bool:
    """Whether vision tokens have gone in an arm's prefill."""
    if arm.vision is None or baseline.vision is None:
        return False
    return arm.vision.entries_held < baseline.vision.entries_held * (1 - _SAME)


def vision_verdicts(where: str, arm: Arm, baseline: Arm, room: float) -> Iterator[str | None]:
    """Say what an arm does otherwise than take all vision at once while decoding.

    Args:
        where: how a sentence names the arm.
        room: relative, for rounding and calibration, before two figures contradict.
    """
    if reads_less(arm, baseline):
        yield _prefill(where, arm, baseline, room)
        yield _held(where, arm, baseline)
    yield _kept(where, arm, baseline)
    yield _offloaded(where, arm)


def _looks_less(arm: Arm, baseline: Arm) -> bool:
    assert arm.vision is not None and baseline.vision is not None
    return arm.vision.attended < baseline.vision.attended * (1 - _SAME)


def _prefill(where: str, arm: Arm, baseline: Arm, room: float) -> str:
    assert arm.vision is not None and baseline.vision is not None
    fewer = 1 - arm.vision.entries_held / baseline.vision.entries_held
    said = f"{where}: the prefill reads {percent(fewer)} fewer vision entries over its layers"
    bound = arm.bound.prefill if arm.bound else None
    ratio = arm.ratios.get("ttft")
    if bound is not None:
        said += (
            f" and computes {percent(1 - bound.share)} fewer FLOPs: expect the first token at most "
            f"{factor(bound.speedup)} as fast"
        )
    if ratio is None:
        return f"{said}."
    said += f"; measured are {factor(ratio.median, ratio.interval_95)}"
    # Kernels below the device's rates may still profit from all FLOPs that are saved.
    if bound is not None and _exceeds(ratio, max(bound.speedup, 1 / bound.share) * (1 + room)):
        return f"{said}, which exceeds the bound: suspect the measurement."
    return f"{said}, {ratio.shown}."


def _exceeds(ratio: Ratio, most: float) -> bool:
    return ratio.interval_95[0] > most


def _held(where: str, arm: Arm, baseline: Arm) -> str | None:
    mine, theirs = arm.memory.kv_bytes_prefilled, baseline.memory.kv_bytes_prefilled
    if not mine or not theirs or mine >= theirs:
        return None
    return (
        f"{where} has {percent(1 - mine / theirs)} less in the KV cache from the first token on: "
        f"{readable_bytes(mine)} instead of {readable_bytes(theirs)}."
    )


def _kept(where: str, arm: Arm, baseline: Arm) -> str | None:
    """Say of an arm that only looks away that nothing is freed by that."""
    if arm.vision is None or baseline.vision is None or arm.vision.withdrawals:
        return None
    if reads_less(arm, baseline) or not _looks_less(arm, baseline):
        return None
    mine, theirs = arm.vision.attended, baseline.vision.attended
    return (
        f"{where} attends to {percent(mine / theirs)} of the vision tokens in a step, mean over "
        "the layers, and frees nothing: what it does not look at stays in the KV cache."
    )


def _offloaded(where: str, arm: Arm) -> str | None:
    offloaded = arm.memory.host_offloaded_peak_bytes
    if not offloaded:
        return None
    looks = arm.vision.look_backs if arm.vision else 0.0
    how = f"{looks:.2f} times an answer, on average" if looks else "in no answer"
    return f"{where} looks back {how}; up to {readable_bytes(offloaded)} wait for that on the host."
