"""What a search of `mvw calibrate` is asked for, and what is known of it before loading a model."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable

if TYPE_CHECKING:
    from mvw_cli.bench.measure.items import Items
    from mvw_cli.profiles.resolution import Resolved
    from mvw_cli.session import Session


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for, whatever the method."""

    method: str
    words: tuple[str, ...]
    profile: str | None
    flags: Mapping[str, object]
    question: str | None
    folder: str | None
    questions: str | None
    limit: int
    output: str
    as_json: bool
    allow_pickle: bool

    @property
    def command(self) -> list[str]:
        """The command as it was typed."""
        return ["mvw", "calibrate", self.method, *self.words]

    @property
    def help(self) -> str:
        """What to type where nothing better can be told."""
        return f"mvw calibrate {self.method} --help"

    @property
    def seed(self) -> int:
        """Seed of the pictures that are drawn, of sampling and of the intervals."""
        seed = self.flags.get("generation.seed")
        return seed if isinstance(seed, int) else 0

    def beside(self, ending: str) -> Path:
        """Name a file beside the profile: `vtw.yaml` has `vtw.report.json`."""
        output = Path(self.output)
        return output.with_name(output.stem + ending)


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known before a model is loaded."""

    resolved: Resolved
    items: Items
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.perf_counter)


def begin(task: Task, scratch: Path) -> Begun:
    """Resolve the profile and find the items; everything that is cheaply found to be wrong is.

    Args:
        scratch: a folder for pictures that are drawn.

    Raises:
        MvwError: a wrong profile, no items, or a file that can't be written.
    """
    if Path(task.output).suffix.lower() not in (".yaml", ".yml"):
        raise UsageProblem(
            f"-o {task.output}: what is found is written as a profile",
            cause="its name does not end with .yaml",
            hint=f"mvw calibrate {task.method} -o {task.method}.yaml",
        )
    for path in (task.output, *map(str, map(task.beside, (".report.json", ".samples.jsonl")))):
        check_writable(path, task.help)
    from mvw_cli.bench.verdict.derived_profile import check_no_part
    from mvw_cli.cli.process import mute_libraries
    from mvw_cli.profiles.resolution import resolve

    mute_libraries(progress=False)
    # What is measured is the model that keeps its vision; the profile's own withdrawal goes.
    resolved = resolve(task.profile, {**task.flags, "withdrawal.policy": "none"})
    check_no_part(
        resolved.to_dict(), Path(task.output), f"mvw calibrate {task.method} -o other.yaml"
    )
    return Begun(resolved, _items(task, resolved, scratch))


def _items(task: Task, resolved: Resolved, scratch: Path) -> Items:
    from mvw_cli.batch.source.spec import Source
    from mvw_cli.bench.measure.items import QUESTION, generated_items, own_items
    from mvw_cli.plugins.lookup import load_adapter

    question = task.question or resolved.profile.prompt.question
    if task.folder is not None or task.questions is not None:
        paths = () if task.folder is None else (task.folder,)
        source = Source(
            paths,
            question=question or QUESTION,
            questions=task.questions,
            command=("mvw", "calibrate", task.method, "--images"),
        )
        items = own_items(source, task.limit, one=False)
    else:
        items = generated_items(
            load_adapter(resolved.profile.adapter),
            scratch / "images",
            task.limit,
            size=(64, 64),
            seed=task.seed,
            question=question or QUESTION,
        )
        if not items.meaningful:
            raise UsageProblem(
                "There are no images to calibrate on",
                cause=f"adapter `{resolved.profile.adapter}` can't draw any that its model reads",
                hint=shlex.join(["mvw", "calibrate", task.method, "--images", "DIR"]),
            )
    if not items.items:
        raise UsageProblem(
            "There are no images to calibrate on",
            cause="none was found where they should be",
            hint=task.help,
        )
    return items


def identity(session: Session, begun: Begun, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say what the figures of a sample depend on, apart from the sample."""
    from mvw_cli.batch.store.fingerprint import fingerprint

    found = fingerprint(begun.resolved, random_weights=False)
    settled = found.with_revision(session.loaded.revision)
    held = str(session.loaded.model.dtype)
    return {**settled.to_dict(), "dtype": held, "method": dict(settings)}
