"""The samples of a search, one after the other: read, encoded, measured, and kept at once.

A sample that is in the log is not measured again; one whose image can't be read is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvw_cli.cli.calibrate.task import Begun, Task, begin, identity
from mvw_cli.cli.process import ShutdownRequest, exit_on_interrupt, finish_on_interrupt
from mvw_cli.cli.profile.view import ProfileView
from mvw_cli.errors import BadImage, OutOfMemory

if TYPE_CHECKING:
    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.calibrate.report import Outcome, Report
    from mvw_cli.calibrate.sample_log import SampleLog
    from mvw_cli.engine.types import Request
    from mvw_cli.session import Session

Tick = Callable[[], None]
Measure = Callable[["Request", "ItemSpec", Tick], Mapping[str, Any]]
"""Measures one encoded sample; calls the tick now and then, which ends it by raising."""


class Stopped(Exception):
    """The user has had enough."""


@dataclass(slots=True)
class Work:
    """A search under way: the model is loaded, the log open."""

    task: Task
    begun: Begun
    session: Session
    log: SampleLog
    view: ProfileView
    shutdown: ShutdownRequest
    failed: list[str] = field(default_factory=list)
    """Items that were left out, and why."""
    first_error: Exception | None = None

    def tick(self) -> None:
        """End what is under way where the user has asked for it."""
        if self.shutdown.requested:
            raise Stopped

    def on_interrupt(self) -> str:
        """Say what an interrupt leaves behind."""
        again = "the same command goes on"
        return f"Interrupted: {len(self.log)} samples are in {self.log.name}; {again}."


@contextmanager
def working(task: Task, settings: Mapping[str, Any]) -> Iterator[Work]:
    """Prepare a search: items, model and log.

    Args:
        settings: those of the method that a sample's figures depend on.

    Raises:
        MvwError: anything that a user can do something about.
    """
    from mvw_cli.calibrate.sample_log import open_log

    view = ProfileView()
    with TemporaryDirectory(prefix="mvw-calibrate-") as scratch:
        with exit_on_interrupt(view.on_interrupt):
            view.progress("Preparing …")
            begun = begin(task, Path(scratch))
            session = _session(task, begun, view)
        run = identity(session, begun, settings)
        with (
            open_log(task.beside(".samples.jsonl"), run) as log,
            finish_on_interrupt(view.on_interrupt) as shutdown,
        ):
            if log.others:
                view.note(f"{log.name}: {log.others} samples of other settings are left alone.")
            try:
                yield Work(task, begun, session, log, view, shutdown)
            finally:
                view.done()


def searched(
    task: Task, settings: Mapping[str, Any], search: Callable[[Work], Report]
) -> Report | None:
    """Run a search; None where the user has interrupted it, which is said.

    Raises:
        MvwError: as `working` and `measured`.
    """
    with working(task, settings) as work:
        try:
            return search(work)
        except Stopped:
            work.view.done()
            work.view.note(work.on_interrupt())
            return None


def _session(task: Task, begun: Begun, view: ProfileView) -> Session:
    from mvw_cli.session import open_session

    profile = begun.resolved.profile
    view.stage(f"Loading {profile.model or profile.adapter}")
    return open_session(profile, allow_pickle=task.allow_pickle)


def measured(work: Work, what: str, measure: Measure) -> list[dict[str, Any]]:
    """Go through the items; return what is known of each, in their order, with its `number`.

    Raises:
        Stopped: the user has asked for it; what was measured is in the log.
        MvwError: the model can't be run, the log not written, or no item could be measured.
    """
    items = work.begun.items.items
    found: list[dict[str, Any]] = []
    for number, item in enumerate(items, start=1):
        work.tick()
        work.view.progress(f"{what}, sample", number, len(items))
        try:
            found.append({"number": number, **_one(work, item, measure)})
        except (BadImage, OutOfMemory) as error:
            _leave_out(work, error, error.message, error.cause)
        except ValueError as error:  # nothing to measure in it, as without vision tokens
            _leave_out(work, error, f"{', '.join(item.images)} is left out", str(error))
    if not found and work.first_error is not None:
        raise work.first_error
    return found


def report_of(
    work: Work,
    settings: Mapping[str, Any],
    samples: list[dict[str, Any]],
    outcome: Outcome,
) -> Report:
    """Put a report together.

    Args:
        settings: of the method, with those that decide only what is made of the samples.
    """
    from mvw_cli.calibrate.report import Report
    from mvw_cli.environment import describe_environment

    return Report(
        method=work.task.method,
        environment=describe_environment(str(work.session.loaded.model.device)),
        model=work.session.facts(),
        profile=work.begun.resolved.to_dict(),
        command=work.task.command,
        started=work.begun.started,
        seconds=perf_counter() - work.begun.clock,
        settings={**settings, "seed": work.task.seed},
        samples=samples,
        failed=work.failed,
        outcome=outcome,
    )


def opened(session: Session, item: ItemSpec) -> tuple[str, Callable[[], Request]]:
    """Read an item's images; return its key, and what encodes it.

    Raises:
        BadImage: an image can't be read.
    """
    from mvw_cli.batch.items import item_key
    from mvw_cli.images.reading import open_image

    limit = session.loaded.spec.max_pixels
    files = [open_image(path, max_pixels=limit) for path in item.images]
    key = item_key([file.sha256 for file in files], item.question)
    return key, lambda: session.request([file.image for file in files], item.question)


def _one(work: Work, item: ItemSpec, measure: Measure) -> dict[str, Any]:
    key, encode = opened(work.session, item)
    known = work.log.get(key)
    if known is None:
        request = encode()
        start = perf_counter()
        values = measure(request, item, work.tick)
        names = [Path(path).name for path in item.images]
        asked = {"images": names, "question": item.question}
        work.log.put(key, {**asked, "seconds": perf_counter() - start, **values})
        known = work.log.get(key)
        assert known is not None
    return {name: value for name, value in known.items() if name not in ("run", "schema_version")}


def _leave_out(work: Work, error: Exception, message: str, cause: str | None) -> None:
    from mvw_cli.engine.memory import relieve

    reason = f"{message} ({cause})" if cause else message
    work.failed.append(reason)
    work.first_error = work.first_error or error
    work.view.warn(f"Left out: {reason}")
    relieve(work.session.loaded.model.device)
