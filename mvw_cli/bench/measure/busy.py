"""How long the device really computes in a decode step: the time that kernels ran, from a trace.

A trace slows what starts kernels, and not the kernels. So it is made in a run of its own, and what
it shows is held against steps that were timed without it. It does not know what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.bench.measure.run import Runner
    from mvw_cli.policy import WithdrawalPolicy

MOST_STEPS = 32
"""Steps that are traced at most: a trace holds each kernel in memory."""
Span = tuple[float, float]
"""Start and end of a kernel, in microseconds."""


def kernel_seconds(
    runner: Runner, items: Sequence[ItemSpec], policy: WithdrawalPolicy | None
) -> float | None:
    """Say how long kernels run in a decode step, on average over the first steps of a run.

    Returns:
        None without a policy, where the device can't be traced, or where nothing was decoded.
    """
    device = runner.session.loaded.model.device
    if policy is None or not traceable(device):
        return None
    steps = 0
    requests = runner.encode(items, runner.read(items), policy)
    with runner.session.serving() as slots:
        for request in requests:
            slots.admit(request)

        def decode() -> None:
            nonlocal steps
            while slots.active and steps < MOST_STEPS:
                slots.step()
                steps += 1

        spans = trace(decode, device)
        for request in requests:
            if request.id in slots.active:
                slots.drop(request.id)
    return covered(spans) / 1e6 / steps if spans and steps else None


def traceable(device: torch.device) -> bool:
    """Say whether kernels of a device can be told one by one."""
    return device.type == "cuda"


def trace(work: Callable[[], None], device: torch.device) -> list[Span]:
    """Do some work on a CUDA device and tell when its kernels ran."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    return [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type.name == "CUDA"
    ]


def covered(spans: Sequence[Span]) -> float:
    """Add up spans, what lies in several of them once."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
