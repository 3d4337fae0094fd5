"""A model whose costs are planned: it sleeps, allocates and frees where it is told to."""

from __future__ import annotations

import functools
import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mvw_hf.model import HuggingFace
from PIL.Image import Image

from mvw_cli.adapter import LoadedModel
from mvw_cli.bench.measure import items
from mvw_cli.bench.measure.arms import ArmSpec, Job
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.engine.cache import SlotCache
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.oracle.equivalence import noise
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import resolve
from mvw_cli.session import Session

MIB = 1 << 20


def fresh(size: int) -> mmap.mmap | None:
    """Take memory from the system and touch it; gone with the last reference.

    An allocator would hand out again what others in this process have given back.
    """
    if not size:
        return None
    region = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        region[start] = 1
    return region


@dataclass
class Plan:
    """Seconds of each part, and bytes."""

    read: float = 0.0
    preprocess: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    """Of the language model, on top of the vision encoder."""
    before: float = 0.0
    """Of each step over a batch in which somebody still sees."""
    withdrawal: float = 0.0
    after: float = 0.0
    transient: int = 0
    """Bytes that the vision encoder takes, and gives back."""
    jitter: Sequence[float] = (0.0,)
    """Seconds on top of each prefill, in turn."""


class Planted(HuggingFace):
    """The adapter; encoding is its own."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def encode(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> Any:
        time.sleep(self._plan.preprocess)
        return super().encode(loaded, images, question)


class Costs:
    """Puts the plan into a model."""

    def __init__(self, plan: Plan, model: Any) -> None:
        self._plan, self._prefills = plan, 0
        self._around(model, self._language)
        self._around(model.model.vision_tower, self._look)

    @staticmethod
    def _around(module: Any, cost: Callable[..., None]) -> None:
        plain = module.forward

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            cost(**kwargs)
            return plain(*args, **kwargs)

        module.forward = forward

    def _look(self, **_: Any) -> None:
        taken = fresh(self._plan.transient)
        time.sleep(self._plan.vision)
        del taken

    def _language(self, **given: Any) -> None:
        cache = given.get("cache", given.get("past_key_values"))
        if not isinstance(cache, SlotCache):
            jitter = self._plan.jitter[self._prefills % len(self._plan.jitter)]
            self._prefills += 1
            time.sleep(self._plan.prefill + jitter)
            return
        time.sleep(self._plan.before if cache._slots[True] else self._plan.after)


def planted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Open a session on the planned model."""
    adapter = Planted(plan)
    loaded = adapter.tiny()
    loaded.model.generation_config.suppress_tokens = [loaded.model.config.image_token_id]
    Costs(plan, loaded.model)
    read, withdraw = items.open_image, SlotCache.withdraw

    def slow_read(path: str, **options: Any) -> Any:
        time.sleep(plan.read)
        return read(path, **options)

    def slow_withdraw(*arguments: Any, **options: Any) -> int:
        time.sleep(plan.withdrawal)
        return withdraw(*arguments, **options)

    monkeypatch.setattr(items, "open_image", slow_read)
    monkeypatch.setattr(SlotCache, "withdraw", slow_withdraw)
    return Session(adapter, loaded, Engine(loaded), NoWithdrawal(), GenerationSettings())


def arm_spec(name: str, withdrawal: Mapping[str, Any]) -> ArmSpec:
    """An arm of the default profile, greedy."""
    flags = {f"withdrawal.{key}": value for key, value in withdrawal.items()}
    return ArmSpec(name, resolve(None, {"generation.temperature": 0.0, **flags}, env={}).profile)


def job(folder: Path, moments: Sequence[int] = (4,), items: int = 1, **given: Any) -> Job:
    """A job on pictures of noise: `baseline`, and withdrawal at each of the moments."""
    paths = [folder / f"{number}.png" for number in range(items)]
    for path in paths:
        noise(40, 30).save(path)
    profile = resolve(None, {"generation.temperature": 0.0}, env={}).profile
    arms = [arm_spec("baseline", {"policy": "none"})]
    arms += [arm_spec(f"m={m}", {"policy": "mvw", "m": m}) for m in moments]
    asked = tuple(ItemSpec((str(path),), "w1 w2 w3") for path in paths)
    options = {"runs": 3, "min_time_s": 0.0, "warm_up": 0, "new_tokens": 12, **given}
    return Job(profile=profile, arms=tuple(arms), items=asked, **options)
