"""What a run would ask of the machine, from image headers and the model's configuration alone.

No pixel is decoded and no weight is read. What can't be told is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.capacity import Limits, Load, choose_limits, slot_bytes
from mvw_cli.batch.source.reading import image_size
from mvw_cli.errors import BadImage, MvwError

if TYPE_CHECKING:
    from mvw_cli.adapter import Adapter
    from mvw_cli.profiles.schema import Profile

SAMPLE = 256
"""Items whose images are looked at."""
CHARACTERS_PER_TOKEN = 4
"""Of a question: a rule of thumb for English, since no tokenizer is loaded for it."""


@dataclass(frozen=True, slots=True)
class Survey:
    """An estimate, of a sample of the items."""

    looked_at: int
    """Items whose images were looked at, spread evenly."""
    unreadable: int
    """Those of them that would fail."""
    vision_tokens: tuple[int, int] | None
    """Of one item: the median and the largest."""
    weight_bytes: int | None
    slot_bytes: tuple[int, int] | None
    """KV cache of a typical item at its most: with its vision tokens, and once withdrawn."""
    free_bytes: int | None
    limits: Limits | None
    """What `--slots auto` would choose."""


def survey(
    items: Sequence[Item], profile: Profile, *, slots: int | None, kv_bytes: int | None
) -> Survey:
    """Estimate tokens and memory.

    Args:
        items: a sample.
        slots, kv_bytes: what the user has said, if anything.

    Raises:
        UsageProblem: no model is named.
    """
    from mvw_cli.cost.shape import BITS, DTYPE_BYTES, shape_of, weight_bytes
    from mvw_cli.machine.facts import free_memory, gather
    from mvw_cli.plugins.lookup import load_adapter
    from mvw_cli.policies.none import NoWithdrawal
    from mvw_cli.profiles.resolution import generation_settings, model_spec
    from mvw_cli.profiles.withdrawal import withdrawal_policy

    policy, spec = withdrawal_policy(profile), model_spec(profile)
    adapter = load_adapter(profile.adapter)
    sizes = [found for item in items if (found := _sizes(item, profile)) is not None]
    try:
        config = adapter.shape(spec)
        shape = shape_of(adapter, config)
        counted = [_tokens(adapter, config, one) for one in sizes]
    except MvwError:
        return Survey(len(items), len(items) - len(sizes), None, None, None, None, None)
    tokens = sorted(one for one in counted if one is not None)
    unreadable = len(items) - len(tokens)
    dtype = shape.dtype if profile.dtype == "auto" else profile.dtype
    weights = weight_bytes(shape.weights, dtype, BITS[profile.quantization])
    free = free_memory(profile.device) if profile.device_map is None else None
    held = None if free is None else max(0, free - int(weights))
    if not tokens:
        return Survey(len(items), unreadable, None, int(weights), None, free, None)
    median = tokens[len(tokens) // 2]
    question = max((len(item.question) for item in items), default=0) // CHARACTERS_PER_TOKEN
    each = slot_bytes(
        shape,
        Load(
            text_tokens=question,
            vision_tokens=median,
            new_tokens=generation_settings(profile).max_new_tokens,
            withdrawn_after=policy.withdrawal_step(),
        ),
        dtype if dtype in DTYPE_BYTES else "float32",
    )
    kind = gather().device if profile.device == "auto" else profile.device.partition(":")[0]
    limits = choose_limits(
        held if kv_bytes is None else kv_bytes,
        kind,
        before=each[0],
        after=each[1],
        withdraws=not isinstance(policy, NoWithdrawal),
        given=kv_bytes is not None,
    )
    if slots is not None:
        limits = Limits(slots, limits.kv_bytes, limits.strict)
    return Survey(
        looked_at=len(items),
        unreadable=unreadable,
        vision_tokens=(median, tokens[-1]),
        weight_bytes=int(weights),
        slot_bytes=each,
        free_bytes=free,
        limits=limits,
    )


def sample(items: Iterator[Item], count: int, size: int = SAMPLE) -> list[Item]:
    """Take every n-th of `count` items, `size` of them at most."""
    stride = max(1, -(-count // size))
    return [item for place, item in enumerate(items) if place % stride == 0]


def _sizes(item: Item, profile: Profile) -> list[tuple[int, int]] | None:
    """Width and height of each image as the processor gets it; None if one can't be read."""
    from mvw_cli.images.pixels import fit

    try:
        return [fit(image_size(image), profile.images.max_pixels) for image in item.images]
    except BadImage:
        return None


def _tokens(adapter: Adapter, config: Any, sizes: list[tuple[int, int]]) -> int | None:
    """Count the vision tokens of one item; None if the model refuses one of its images."""
    try:
        return sum(adapter.image_tokens(config, width, height) for width, height in sizes)
    except BadImage:
        return None
