"""What `mvw profile` is asked for, and what is known of it before a model is loaded."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from mvw_cli.adapter import Adapter
    from mvw_cli.bench.measure.arms import NamedArm
    from mvw_cli.bench.measure.items import Items
    from mvw_cli.profiles.resolution import Resolved


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    image: str | None
    question: str | None
    moments: tuple[int | str, ...] | None
    until: tuple[str, ...]
    policies: tuple[tuple[str, ...], ...]
    """Compositions, by option."""
    profile: str | None
    flags: Mapping[str, object]
    folder: str | None
    questions: str | None
    limit: int
    batches: tuple[int, ...]
    new_tokens: int
    natural: bool
    runs: int
    min_time: float
    warmup: int
    in_process: bool
    answers: bool | None
    attention_mass: bool | None
    suggest: str | None
    tolerance: float
    plan: bool
    gpu: str | None
    image_size: str
    allow_pickle: bool
    random_weights: bool
    plot: str | None
    html: str | None
    output: str | None
    source: str | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known before a model is loaded."""

    resolved: Resolved
    adapter: Adapter
    arms: list[NamedArm]
    items: Items
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.perf_counter)


def check(task: Task) -> None:
    """Refuse what contradicts itself.

    Raises:
        UsageProblem: it does.
    """
    given = [
        name
        for name, value in (
            ("IMAGE", task.image),
            ("--images", task.folder),
            ("--questions", task.questions),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise UsageProblem(
            f"{' and '.join(given)} contradict each other",
            cause="images come from one place",
            hint="mvw profile --help",
        )
    if task.image is not None and task.question is None and not os.path.exists(task.image):
        raise UsageProblem(
            f"There is no image {task.image}",
            cause="no such file",
            hint=f"ls {shlex.quote(os.path.dirname(task.image) or '.')}",
        )
    if task.gpu is not None and not task.plan:
        raise UsageProblem(
            "--gpu goes with --plan",
            cause="what is measured is measured on the device that is here",
            hint=shlex.join(["mvw", "profile", *task.words, "--plan"]),
        )
    if task.suggest is not None and (task.random_weights or task.answers is False):
        raise UsageProblem(
            "--suggest needs answers",
            cause="with random weights there are none"
            if task.random_weights
            else "--no-answers leaves them out",
            hint="mvw profile --help",
        )
