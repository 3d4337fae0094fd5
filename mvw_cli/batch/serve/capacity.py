"""How many requests decode at the same time: the number of slots, and the bytes of their cache.

The bytes are what counts; the number is an upper limit. `survey` estimates them for a dry run, from
image headers and the model's configuration alone; no pixel is decoded and no weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from math import ceil
from typing import Any

from mvw_cli.adapter import Adapter, ModelSpec
from mvw_cli.batch.items import Item
from mvw_cli.batch.source.reading import image_size
from mvw_cli.batch.store.worklist import WorkList
from mvw_cli.cost.shape import BITS, DTYPE_BYTES, Shape, on_meta, shape_of_model
from mvw_cli.errors import BadImage, MvwError
from mvw_cli.images.reading import fit
from mvw_cli.machine.facts import free_memory, gather
from mvw_cli.plugins import load_adapter
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.resolution import generation_settings, model_spec
from mvw_cli.profiles.schema import Profile
from mvw_cli.profiles.withdrawal import withdrawal_policy
from mvw_cli.session import context_of, ends_at_context, without_placeholder
from mvw_cli.text import readable_bytes

MARGIN = 0.2
"""Part of the free memory that the cache leaves alone, for activations and the allocator."""
MAX_SLOTS = {"cpu": 16, "mps": 32, "cuda": 256}
"""Slots beyond which a step is taken to cost about as much more as it serves more: on a CPU, where
arithmetic limits early, few; a GPU has room for more rows than memory for their caches. Estimates;
`benchmarks/batch.py --sweep` measures them."""
SAMPLE = 256
"""Items whose images a survey reads the headers of."""
CHARACTERS_PER_TOKEN = 4
"""Of a question: a rule of thumb for English, where no tokenizer is loaded."""
TEMPLATE_TOKENS = 1000
"""More than any chat template writes around a question."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be in use at the same time."""

    slots: int
    kv_bytes: int | None = None
    """That the cache may take; None: no limit."""
    reason: str = ""
    """Why, in one line for the user."""
    strict: bool = False
    """Whether one request alone has to keep to the bytes: the user has set them."""


def slot_bytes(
    shape: Shape,
    dtype: str,
    *,
    text_tokens: int,
    vision_tokens: int,
    new_tokens: int,
    withdrawn_after: int | None,
) -> tuple[int, int]:
    """Bytes of one request's cache at their most: while vision is there, and afterwards.

    Args:
        text_tokens: the prompt without vision tokens.
        vision_tokens: in the sequence or in cross-attention.
        new_tokens: at most.
        withdrawn_after: tokens after which vision is withdrawn; None where that is not known
            beforehand, so that the first figure is the most that it can be.
    """
    size = DTYPE_BYTES.get(dtype, DTYPE_BYTES["float32"])
    seen = new_tokens if withdrawn_after is None else min(withdrawn_after, new_tokens)
    copied = shape.state_bytes(size)  # before each step
    before = shape.cache_bytes(text_tokens + seen, vision_tokens, size) + copied
    return before, shape.cache_bytes(text_tokens + new_tokens, 0, size) + copied


def choose_limits(
    free_bytes: int | None,
    device: str,
    each: tuple[int, int] | None,
    policy: WithdrawalPolicy,
    *,
    slots: int | None = None,
    kv_bytes: int | None = None,
) -> Limits:
    """Choose what the user has not said from the memory that is free with the weights loaded.

    Args:
        free_bytes: of the device; None where it can't be told.
        device: `cpu`, `mps` or `cuda`.
        each: what `slot_bytes` returns; None where it can't be told.
        slots, kv_bytes: as the user has said.
    """
    most = MAX_SLOTS.get(device, MAX_SLOTS["cpu"])
    budget, told, strict = kv_bytes, "", kv_bytes is not None
    if kv_bytes is not None:
        told = f"{readable_bytes(kv_bytes)} for the KV cache"
    elif free_bytes is not None and each is not None:
        budget = int(free_bytes * (1 - MARGIN))
        told = f"{readable_bytes(free_bytes)} free after the weights, {MARGIN:.0%} kept back"
    if slots is not None:
        return Limits(slots, budget, strict=strict)
    if budget is None or each is None:
        reason = f"{most} slots, the most for {device}: its memory is not told"
        return Limits(most, budget, reason, strict)
    before, after = each
    withdraws = not isinstance(policy, NoWithdrawal)
    fitting = max(1, budget // max(1, min(before, after) if withdraws else before))
    told += f"; a slot takes up to {readable_bytes(before)}"
    if withdraws:
        told += f", {readable_bytes(after)} once vision is withdrawn"
    if fitting > most:
        told += f"; {fitting:,} would fit, {device} gains nothing beyond {most}"
    slots = min(most, fitting)
    return Limits(slots, budget, f"{slots} slots: {told}", strict)


@dataclass(frozen=True, slots=True)
class Survey:
    """An estimate of what a run would ask of the machine; what can't be told is None.

    By the keys that `--dry-run --json` writes; docs/json.md describes them.
    """

    images_looked_at: int
    max_new_tokens: int
    images_unreadable: int | None = None
    vision_tokens_median: int | None = None
    vision_tokens_max: int | None = None
    weight_bytes: int | None = None
    kv_bytes_per_slot_before: int | None = None
    kv_bytes_per_slot_after: int | None = None
    memory_free_bytes: int | None = None
    context_tokens: int | None = None
    """Positions that the model was trained for."""
    prompts_too_long: int | None = None
    """Items of the list whose prompts leave no position for an answer."""
    first_too_long: str | None = None
    prompts_refused: bool = False
    """Whether they would fail: the model has no positions beyond."""
    limits: Limits | None = None
    """What the run would choose."""


def survey(
    listed: WorkList | Sequence[Item], profile: Profile, *, slots: int | None, kv_bytes: int | None
) -> Survey:
    """Estimate tokens and memory from a sample of the items, spread evenly."""
    items = list(islice(listed, 0, None, max(1, ceil(len(listed) / SAMPLE))))
    policy, spec = withdrawal_policy(profile), model_spec(profile)
    new_tokens = generation_settings(profile).max_new_tokens
    adapter = load_adapter(profile.adapter)
    try:
        config = adapter.shape(spec)
        model = on_meta(adapter, config)
        shape = shape_of_model(model)
        counted = [_vision_tokens(adapter, config, item, profile) for item in items]
    except MvwError:
        return Survey(len(items), new_tokens)
    tokens = sorted(one for one in counted if one is not None)
    dtype = shape.dtype if profile.dtype == "auto" else profile.dtype
    weights = int(shape.weights.total.bytes(dtype, BITS[profile.quantization]))
    free = free_memory(profile.device) if profile.device_map is None else None
    found = Survey(
        len(items),
        new_tokens,
        images_unreadable=len(items) - len(tokens),
        weight_bytes=weights,
        memory_free_bytes=free,
    )
    if not tokens:
        return found
    median = tokens[len(tokens) // 2]
    context, refuses = context_of(config), ends_at_context(model)
    too_long: list[str] | None = None
    if context is not None:
        seen = {item.id: one for item, one in zip(items, counted, strict=True) if one is not None}

        def in_sequence(item: Item) -> int:
            # Where vision lies beside the sequence, each image has one token in it.
            crossed = shape.has_cross_attention
            return len(item.images) if crossed else seen.get(item.id, median)

        # A table has a position for a whole context; what others have no room for is the answer.
        too_long = _too_long(listed, adapter, spec, config, in_sequence, context + refuses)
    each = slot_bytes(
        shape,
        dtype,
        text_tokens=max(len(item.question) for item in items) // CHARACTERS_PER_TOKEN,
        vision_tokens=median,
        new_tokens=new_tokens,
        withdrawn_after=policy.withdrawal_step(),
    )
    device = gather().device if profile.device == "auto" else profile.device.partition(":")[0]
    left = None if free is None else max(0, free - weights)
    return replace(
        found,
        vision_tokens_median=median,
        vision_tokens_max=tokens[-1],
        context_tokens=context,
        prompts_too_long=None if too_long is None else len(too_long),
        first_too_long=too_long[0] if too_long else None,
        prompts_refused=bool(too_long) and refuses,
        kv_bytes_per_slot_before=each[0],
        kv_bytes_per_slot_after=each[1],
        limits=choose_limits(left, device, each, policy, slots=slots, kv_bytes=kv_bytes),
    )


def _too_long(
    listed: WorkList | Sequence[Item],
    adapter: Adapter,
    spec: ModelSpec,
    config: Any,
    vision: Callable[[Item], int],
    least: int,
) -> list[str] | None:
    """List the items whose prompts have so many tokens at least, by id; None: not known.

    A token of text has a byte at least: the tokenizer is loaded where that leaves a doubt.
    """
    around = len(f"{spec.template}{spec.system or ''}".encode()) + TEMPLATE_TOKENS
    found, count = [], None
    for item in listed:
        question = without_placeholder(item.question)
        if vision(item) + len(question.encode()) + around < least:
            continue
        try:
            count = count or cache(adapter.text_tokens(spec, config))
            if vision(item) + count(question, len(item.images)) >= least:
                found.append(item.id)
        except Exception:  # of adapters by others; and a hub that is out of reach
            return None
    return found


def _vision_tokens(adapter: Adapter, config: Any, item: Item, profile: Profile) -> int | None:
    """Count the vision tokens of one item; None if it would fail."""
    try:
        most, limit = profile.images.max_pixels, profile.images.max_decoded_pixels
        sizes = [fit(image_size(image, most, limit), most) for image in item.images]
        return sum(adapter.image_tokens(config, width, height) for width, height in sizes)
    except BadImage:
        return None
