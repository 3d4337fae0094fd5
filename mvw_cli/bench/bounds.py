"""The bounds beside a measurement: profile, items and device described as one `Case`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mvw_cli.adapter import Adapter
from mvw_cli.bench.documents import BASELINE, Cell, Workload
from mvw_cli.bench.measure.arms import USUAL_M, ArmSpec
from mvw_cli.bench.measure.events import vision_share
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.verdict.verdict import plan_verdicts
from mvw_cli.cost.bounds import Plan, arm_bound, make_plan
from mvw_cli.cost.case import Case
from mvw_cli.cost.flops import flops_of
from mvw_cli.cost.shape import BITS
from mvw_cli.images.reading import open_image
from mvw_cli.profiles.resolution import model_spec
from mvw_cli.profiles.schema import Profile

CHARACTERS_PER_TOKEN = 4
"""Of a question: a rule of thumb for English, where nothing has been run."""


def planned_case(adapter: Adapter, profile: Profile, item: ItemSpec, new_tokens: int) -> Case:
    """Count from the configuration and an item's images alone."""
    spec = model_spec(profile)
    config = adapter.shape(spec)
    sizes = [
        open_image(
            path, max_pixels=spec.max_pixels, max_decoded_pixels=spec.max_decoded_pixels
        ).size
        for path in item.images
    ]
    vision = sum(adapter.image_tokens(config, *size) for size in sizes)
    question = max(1, len(item.question) // CHARACTERS_PER_TOKEN)
    return _case(adapter, profile, config, question, vision, new_tokens)


def measured_case(adapter: Adapter, profile: Profile, found: Workload) -> Case:
    """Take the tokens that were really there."""
    config = adapter.shape(model_spec(profile))
    prompt, vision = found.prompt_tokens, found.vision_tokens
    case = _case(adapter, profile, config, prompt, vision, found.new_tokens)
    cross_attention = any(layer.cross for layer in case.shape.layers)
    in_sequence = 0 if cross_attention else vision
    return replace(case, question_tokens=max(1, prompt - in_sequence))


def _case(
    adapter: Adapter, profile: Profile, config: Any, question: int, vision: int, new_tokens: int
) -> Case:
    flops = flops_of(adapter, config)
    return Case(
        flops=flops,
        dtype=flops.shape.dtype if profile.dtype == "auto" else profile.dtype,
        keep_mlp=profile.cross_attention == "mlp",
        bits=BITS[profile.quantization],
        question_tokens=question,
        vision_tokens=vision,
        new_tokens=new_tokens,
    )


def plan_for(case: Case, batches: Sequence[int], arms: Sequence[ArmSpec]) -> Plan:
    """Bound the batch sizes, withdrawn when the first arm does, or when it is usual."""
    steps = [fields for arm in arms[1:] for _, fields in arm.profile.withdrawal.steps]
    given = (m for fields in steps if isinstance(m := fields.get("m"), int))
    plan = make_plan(case, batches, next(given, USUAL_M))
    return replace(plan, verdicts=plan_verdicts(plan))


def with_bounds(cell: Cell, case: Case) -> Cell:
    """Put its bound to each arm of a cell."""
    baseline = next((arm.vision for arm in cell.arms if arm.name == BASELINE), None)
    arms = []
    for arm in cell.arms:
        share = vision_share(arm.vision, baseline) if arm.vision and baseline else None
        bound = arm_bound(case, cell.batch, arm.withdrawn_after, share)
        arms.append(replace(arm, bound=bound))
    return replace(cell, arms=arms)
