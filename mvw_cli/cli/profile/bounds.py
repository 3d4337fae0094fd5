"""From what `mvw profile` is asked for, or has measured, to their bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mvw_cli.cli.profile.task import Begun, Task

if TYPE_CHECKING:
    from mvw_cli.bench.documents import Cell, Workload
    from mvw_cli.cost.bounds import Plan
    from mvw_cli.cost.case import Case

CHARACTERS_PER_TOKEN = 4
"""Of a question: a rule of thumb for English, where nothing has been run."""


def bounded_case(
    task: Task, begun: Begun, stage: Callable[[str], None], found: Workload | None
) -> Case:
    """Describe model, workload and device for the bounds.

    Args:
        stage: told what begins, which may take seconds.
        found: what was measured; without it the workload is counted from the first image.
    """
    from mvw_cli.bench.measure.device_peaks import calibrate
    from mvw_cli.cost.gpus import named_gpu

    case = _case(task, begun) if found is None else _measured_case(begun, found)
    if task.gpu is not None:
        return replace(case, device=named_gpu(task.gpu, case.dtype))
    stage("Measuring the device's bandwidth and matrix rate")
    device = calibrate(begun.resolved.profile.device, case.dtype)
    return replace(case, device=device)


def plan_for(task: Task, begun: Begun, case: Case) -> Plan:
    """Bound the batch sizes that are asked for."""
    from mvw_cli.bench.verdict.plan_verdict import plan_verdicts
    from mvw_cli.cost.bounds import make_plan

    plan = make_plan(case, task.batches, _usual_moment(begun))
    return replace(plan, verdicts=plan_verdicts(plan))


def _case(task: Task, begun: Begun) -> Case:
    """Count from the configuration and the first image alone."""
    from mvw_cli.images.reading import open_image
    from mvw_cli.profiles.resolution import model_spec

    profile = begun.resolved.profile
    config = begun.adapter.shape(model_spec(profile))
    first = begun.items.items[0]
    sizes = [open_image(path, max_pixels=profile.images.max_pixels).size for path in first.images]
    return _case_of(
        begun,
        config,
        question_tokens=max(1, len(first.question) // CHARACTERS_PER_TOKEN),
        vision_tokens=sum(begun.adapter.image_tokens(config, *size) for size in sizes),
        new_tokens=task.new_tokens,
    )


def _measured_case(begun: Begun, found: Workload) -> Case:
    """Take the tokens that were really there."""
    from mvw_cli.profiles.resolution import model_spec

    config = begun.adapter.shape(model_spec(begun.resolved.profile))
    case = _case_of(
        begun,
        config,
        question_tokens=found.prompt_tokens,
        vision_tokens=found.vision_tokens,
        new_tokens=found.new_tokens,
    )
    cross_attention = any(layer.cross for layer in case.shape.layers)
    inside = 0 if cross_attention else found.vision_tokens
    return replace(case, question_tokens=max(1, found.prompt_tokens - inside))


def _case_of(
    begun: Begun, config: Any, *, question_tokens: int, vision_tokens: int, new_tokens: int
) -> Case:
    from mvw_cli.cost.case import Case
    from mvw_cli.cost.flops import flops_of

    profile = begun.resolved.profile
    flops = flops_of(begun.adapter, config)
    return Case(
        flops=flops,
        dtype=flops.shape.dtype if profile.dtype == "auto" else profile.dtype,
        keep_mlp=profile.cross_attention == "mlp",
        bits=_bits(begun),
        question_tokens=question_tokens,
        vision_tokens=vision_tokens,
        new_tokens=new_tokens,
    )


def _usual_moment(begun: Begun) -> int:
    """Say after how many tokens the first arm withdraws, or what is usual where it can't tell."""
    from mvw_cli.bench.measure.arms import USUAL_M

    for arm in begun.arms[1:]:
        for _, fields in arm.profile.withdrawal.steps:
            if isinstance(m := fields.get("m"), int):
                return m
    return USUAL_M


def _bits(begun: Begun) -> int | None:
    from mvw_cli.cost.shape import BITS

    return BITS[begun.resolved.profile.quantization]


def with_bounds(cell: Cell, case: Case) -> Cell:
    """Put its bound cross_attention each arm of a cell."""
    from mvw_cli.bench.documents import BASELINE
    from mvw_cli.bench.measure.events import vision_share
    from mvw_cli.cost.bounds import arm_bound

    baseline = next((arm.vision for arm in cell.arms if arm.name == BASELINE), None)
    arms = []
    for arm in cell.arms:
        share = vision_share(arm.vision, baseline) if arm.vision and baseline else None
        bound = arm_bound(case, cell.batch, arm.withdrawn_after, share)
        arms.append(replace(arm, bound=bound))
    return replace(cell, arms=arms)
