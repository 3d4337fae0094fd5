"""One search of `mvw calibrate` from the command line to its files, whatever the method."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store.fingerprint import fingerprint
from mvw_cli.bench.measure.items import QUESTION, Items, generated_items, own_items
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.bench.verdict.derived_profile import check_no_part, write_derived
from mvw_cli.cli.process import exit_on_interrupt, finish_on_interrupt, mute_libraries
from mvw_cli.cli.stderr_view import ProgressView
from mvw_cli.console import deliver
from mvw_cli.environment import describe_environment
from mvw_cli.errors import ExitCode, MvwError, UsageProblem
from mvw_cli.files import check_writable
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, resolve
from mvw_cli.render.sections import Section, Sentence
from mvw_cli.render.svg import write_charts
from mvw_cli.render.terminal import show

if TYPE_CHECKING:
    from mvw_cli.calibrate.search import CalibrationReport, Search, SearchRun

REPORT, SAMPLES = ".report.json", ".samples.jsonl"


@dataclass(frozen=True, slots=True)
class CalibrateTask:
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
    verbose: bool
    allow_pickle: bool
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=perf_counter)

    @property
    def command(self) -> list[str]:
        """The command as it was typed."""
        return ["mvw", "calibrate", self.method, *self.words]

    @property
    def help(self) -> str:
        """What to type where nothing better can be told."""
        return f"mvw calibrate {self.method} --help"

    @property
    def elsewhere(self) -> str:
        """What to type where the output can't be what it is."""
        return f"mvw calibrate {self.method} -o other.yaml"

    @property
    def seed(self) -> int:
        """Seed of the pictures that are drawn, of sampling, of training and of the intervals."""
        seed = self.flags.get("generation.seed")
        return seed if isinstance(seed, int) else 0

    def sibling(self, ending: str) -> Path:
        """Name a file next to the profile: `vtw.yaml` has `vtw.report.json`."""
        output = Path(self.output)
        return output.with_name(output.stem + ending)


def run(task: CalibrateTask, search_target: str, options: Mapping[str, object]) -> int:
    """Search, write everything, and return the exit code.

    Args:
        search_target: module below `mvw_cli.calibrate` and class, imported once what is cheap to
            check has been checked.
        options: fields of the search.

    Raises:
        MvwError: something is missing or wrong, or nothing can be suggested; what was measured is
            in the store.
    """
    view = ProgressView()
    with TemporaryDirectory(prefix="mvw-calibrate-") as scratch, ExitStack() as stack:
        with exit_on_interrupt(view.on_interrupt):
            view.progress("Preparing …")
            resolved = _resolved(task)
            items = _items(task, resolved, Path(scratch))
            module, name = search_target.split(":")
            kind = getattr(import_module(f"mvw_cli.calibrate.{module}"), name)
            search: Search = kind.for_output(Path(task.output), **options)
            search.check_items(items.items)
            running = _begun(task, resolved, items, search, view, stack)
        with finish_on_interrupt(view.on_interrupt) as shutdown:
            running.stopping = lambda: shutdown.requested
            try:
                report = _searched(task, search, running, view)
            finally:
                view.done()
    return ExitCode.INTERRUPTED if report is None else _delivered(task, search, report)


def _resolved(task: CalibrateTask) -> Resolved:
    """Resolve the profile, and refuse files that could not be written later."""
    if Path(task.output).suffix.lower() not in (".yaml", ".yml"):
        raise UsageProblem(
            f"-o {task.output}: what is found is written as a profile",
            cause="its name does not end with .yaml",
            hint=f"mvw calibrate {task.method} -o {task.method}.yaml",
        )
    for path in (task.output, str(task.sibling(REPORT)), str(task.sibling(SAMPLES))):
        check_writable(path)

    mute_libraries()
    # What is measured is the model that keeps its vision; the profile's own withdrawal goes.
    resolved = resolve(task.profile, {**task.flags, "withdrawal.policy": "none"})
    check_no_part(resolved.to_dict(), Path(task.output), task.elsewhere)
    return resolved


def _items(task: CalibrateTask, resolved: Resolved, scratch: Path) -> Items:
    """Find the items, or draw some into a folder."""
    question = task.question or resolved.profile.prompt.question or QUESTION
    if task.folder is not None or task.questions is not None:
        source = Source(
            () if task.folder is None else (task.folder,),
            question=question,
            questions=task.questions,
            command=("mvw", "calibrate", task.method, "--images"),
        )
        items = own_items(source, task.limit, one=False)
        cause = "none was found where they should be"
    else:
        items = generated_items(
            load_adapter(resolved.profile.adapter),
            scratch / "images",
            task.limit,
            size=(64, 64),
            seed=task.seed,
            question=question,
        )
        cause = f"adapter `{resolved.profile.adapter}` can't draw any that its model reads"
    if not items.meaningful or not items.items:
        raise UsageProblem(
            "There are no images to calibrate on",
            cause=cause,
            hint=f"mvw calibrate {task.method} --images DIR",
        )
    return items


def _begun(
    task: CalibrateTask,
    resolved: Resolved,
    items: Items,
    search: Search,
    view: ProgressView,
    stack: ExitStack,
) -> SearchRun:
    """Load the model and open the store."""
    from mvw_cli.calibrate.search import SearchRun
    from mvw_cli.calibrate.store import SampleStore
    from mvw_cli.session import open_session

    profile = resolved.profile
    view.stage(f"Loading {profile.model or profile.adapter}")
    session = open_session(profile, slots=search.together, allow_pickle=task.allow_pickle)
    search.check_model(session)
    model = fingerprint(resolved, random_weights=False).with_revision(session.loaded.revision)
    identity = {
        **model.to_dict(),
        "dtype": str(session.loaded.model.dtype),
        "method": search.sample_settings(),
    }
    store = stack.enter_context(SampleStore(task.sibling(SAMPLES), identity))
    if store.others:
        view.note(f"{store.name}: {store.others} samples of other settings are left alone.")
    return SearchRun(
        session,
        items.items,
        store,
        profile=resolved.to_dict(),
        seed=task.seed,
        progress=view.progress,
        warn=view.warn,
    )


def _searched(
    task: CalibrateTask, search: Search, running: SearchRun, view: ProgressView
) -> CalibrationReport | None:
    """Measure and choose; None where the user has interrupted it, which is said."""
    from mvw_cli.calibrate.search import CalibrationReport, measure_all

    try:
        samples = measure_all(search, running)
        outcome = search.choose(running, samples)
    except Stopped:
        view.done()
        store = running.store
        again = "the same command goes on"
        view.note(f"Interrupted: {len(store)} samples are in {store.name}; {again}.")
        return None
    return CalibrationReport(
        method=task.method,
        environment=describe_environment(str(running.device)),
        model=running.facts,
        profile=running.profile,
        command=task.command,
        started=task.started,
        seconds=perf_counter() - task.clock,
        settings={**search.settings(), "seed": task.seed},
        samples=[search.told(sample) for sample in samples],
        left_out=running.left_out,
        outcome=outcome,
    )


def _delivered(task: CalibrateTask, search: Search, report: CalibrationReport) -> int:
    """Write everything, files first.

    Raises:
        MvwError: a file can't be written, or no candidate qualifies: after all else is there.
    """
    outcome, document = report.outcome, report.to_json()
    deliver(document, str(task.sibling(REPORT)))
    charts = {task.sibling(f".{chart.name}.svg"): chart for chart in search.charts(report)}
    written = [str(task.sibling(REPORT)), *map(str, write_charts(charts))]
    if outcome.withdrawal is not None:
        found = f"Found by: {shlex.join(report.command)}."
        write_derived(
            report.profile,
            Path(task.output),
            withdrawal=outcome.withdrawal,
            description=f"{search.describe(outcome.withdrawal)}, by mvw calibrate on "
            f"{len(report.samples)} samples",
            reason=" ".join([found, outcome.reason, *outcome.remarks]),
            hint=task.elsewhere,
        )
        written.insert(0, task.output)
    if task.as_json:
        console.write(document)
    else:
        parts = search.sections(report, whole=task.verbose)
        hidden = "" if task.verbose else search.hidden(report)
        rest = f"{task.sibling(REPORT)} has every sample{hidden and f'; -v shows {hidden}'}."
        more = Section("more", "More", [Sentence(rest)])
        show(f"mvw calibrate {task.method}", [*parts, more])
    for path in written:
        console.note(f"wrote {path}")
    for remark in outcome.remarks:
        console.warn(remark)
    if outcome.withdrawal is None:
        raise MvwError("Nothing is suggested", cause=outcome.reason, hint=task.help)
    return ExitCode.ITEMS_FAILED if report.left_out else ExitCode.OK
