"""One search of `mvw calibrate` from the command line to its files, whatever the method."""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store.fingerprint import files_of, fingerprint
from mvw_cli.bench.measure.items import QUESTION, own_files, own_items
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.calibrate.profile import beside, write_derived
from mvw_cli.cli.process import exit_on_interrupt, finish_on_interrupt, mute_libraries
from mvw_cli.cli.stderr_view import StderrView
from mvw_cli.console import deliver
from mvw_cli.environment import describe_environment
from mvw_cli.errors import ExitCode, MvwError, UsageProblem
from mvw_cli.files import check_not_input, check_writable, free_name
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, resolve
from mvw_cli.render.sections import Section, Sentence
from mvw_cli.render.svg import write_charts
from mvw_cli.render.terminal import show
from mvw_cli.text import check_paths, escaped

if TYPE_CHECKING:
    from mvw_cli.calibrate.search import Outcome, Search

SCHEMA_VERSION = 3
"""Of the report."""
REPORT, SAMPLES = ".report.json", ".samples.jsonl"
_SAMPLES = "samples stand here"


def run(
    method: str,
    words: Sequence[str],
    search_target: str,
    *,
    profile: str | None,
    flags: Mapping[str, object],
    question: str | None,
    folder: str | None,
    questions: str | None,
    limit: int,
    output: str,
    as_json: bool,
    allow_pickle: bool,
    **options: object,
) -> int:
    """Search, write everything, and return the exit code.

    Args:
        words: as they were typed after the method.
        search_target: module below `mvw_cli.calibrate` and class, imported once what is cheap to
            check has been checked.
        options: fields of the search.

    Raises:
        MvwError: something is missing or wrong, or nothing can be suggested; what was measured is
            in the store.
    """
    check_paths((folder, questions))
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), perf_counter()
    given = flags.get("generation.seed")
    seed = given if isinstance(given, int) else 0  # of pictures, sampling, training and intervals
    view, path = StderrView(ticking=False), Path(output)
    with TemporaryDirectory(prefix="mvw-calibrate-") as scratch, ExitStack() as stack:
        with exit_on_interrupt(view.on_interrupt), view.making_room():
            view.progress("Preparing …")
            resolved = _resolved(method, path, profile, flags)
            source = _source(method, resolved, scratch, question, folder, questions, limit, seed)
            items = own_items(source, limit, one=False).items
            module, name = search_target.split(":")
            search: Search = getattr(import_module(f"mvw_cli.calibrate.{module}"), name)(**options)
            for ending in search.files:
                check_writable(str(beside(path, ending)))
            endings = (REPORT, SAMPLES, *search.files)
            charts = path.parent.glob(f"{glob.escape(path.stem)}.*.svg")
            written = map(str, (path, *(beside(path, ending) for ending in endings), *charts))
            check_not_input(written, chain(own_files(source), files_of(resolved)))

            from mvw_cli.calibrate.search import SearchRun, measure_all
            from mvw_cli.calibrate.store import SampleStore
            from mvw_cli.session import open_session

            view.stage(f"Loading {resolved.profile.model or resolved.profile.adapter}")
            session = open_session(
                resolved.profile,
                slots=search.together,
                allow_pickle=allow_pickle,
                looking_inside=True,
            )
            model = fingerprint(resolved, random_weights=False)
            settings = search.settings()
            identity = {
                **model.with_revision(session.loaded.revision).to_dict(),
                "dtype": str(session.loaded.model.dtype),
                "method": {name: settings[name] for name in search.measured_by},
            }
            store = stack.enter_context(SampleStore(beside(path, SAMPLES), identity))
            if store.others:
                view.note(f"{store.name}: {store.others} samples of other settings are left alone.")
            running = SearchRun(
                session,
                items,
                store,
                path,
                profile=resolved.to_dict(),
                seed=seed,
                progress=view.progress,
                warn=view.warn,
            )
            search.check(running)
        with finish_on_interrupt(view.on_interrupt) as shutdown:
            running.stopping = shutdown.is_set
            try:
                samples = measure_all(search, running)
                outcome = search.choose(running, samples)
            except Stopped:
                view.clear()
                done = f"{len(store)} samples are in {store.name}"
                view.note(f"Interrupted: {done}; the same command goes on.")
                return ExitCode.INTERRUPTED
            finally:
                view.clear()
    document = {
        "schema_version": SCHEMA_VERSION,
        "method": method,
        "environment": asdict(describe_environment(str(running.device))),
        "model": running.facts,
        "profile": running.profile,
        "command": ["mvw", "calibrate", method, *words],
        "started": started,
        "seconds": perf_counter() - clock,  # of this run; samples of earlier ones are not in it
        "settings": {**search.settings(), "seed": seed},
        "samples": [search.told(sample) for sample in samples],
        "left_out": running.left_out,
        "outcome": asdict(outcome),
    }
    _deliver(method, search, outcome, document, path, as_json=as_json)
    return ExitCode.ITEMS_FAILED if running.left_out else ExitCode.OK


def _resolved(
    method: str, output: Path, profile: str | None, flags: Mapping[str, object]
) -> Resolved:
    """Resolve the profile, and refuse files that could not be written later."""
    if output.suffix.lower() not in (".yaml", ".yml"):
        raise UsageProblem(
            f"-o {output}: what is found is written as a profile",
            cause="its name does not end with .yaml",
            hint=f"mvw calibrate {method} -o {free_name(f'{method}.yaml')}",
        )
    for path in (output, beside(output, REPORT), beside(output, SAMPLES)):
        check_writable(str(path))
    mute_libraries()
    # What is measured is the model that keeps its vision; the profile's own withdrawal goes.
    return resolve(profile, {**flags, "withdrawal.policy": "none"})


def _source(
    method: str,
    resolved: Resolved,
    scratch: str,
    question: str | None,
    folder: str | None,
    questions: str | None,
    limit: int,
    seed: int,
) -> Source:
    """Say where the user's items are, or let the adapter draw some into a folder."""
    if folder is None and questions is None:
        adapter = resolved.profile.adapter
        drawn = load_adapter(adapter).samples(Path(scratch), limit, seed)
        if drawn is None:
            raise UsageProblem(
                "There are no images to calibrate on",
                cause=f"adapter `{adapter}` can't draw any that its model reads",
                hint=f"mvw calibrate {method} --images DIR",
            )
        questions = str(drawn)
    return Source(
        () if folder is None else (folder,),
        question=question or resolved.profile.prompt.question or QUESTION,
        questions=questions,
        command=("mvw", "calibrate", method, "--images"),
    )


def to_json(document: Mapping[str, Any]) -> str:
    """Write a report as JSON, each sample on a line of its own."""
    lines = [json.dumps(one, ensure_ascii=False) for one in document["samples"]]
    framed = {**document, "samples": [_SAMPLES]}
    whole = json.dumps(framed, indent=2, ensure_ascii=False, default=str)
    return escaped(whole.replace(f'"{_SAMPLES}"', ",\n    ".join(lines), 1))


def _deliver(
    method: str,
    search: Search,
    outcome: Outcome,
    document: Mapping[str, Any],
    output: Path,
    *,
    as_json: bool,
) -> None:
    """Write everything, files first.

    Raises:
        MvwError: a file can't be written, or no candidate qualifies: after all else is there.
    """
    text, report, samples = to_json(document), beside(output, REPORT), len(document["samples"])
    deliver(text, str(report))
    charts = {beside(output, f".{chart.name}.svg"): chart for chart in search.charts(outcome)}
    written = [str(report), *map(str, write_charts(charts))]
    if outcome.withdrawal is not None:
        found = f"Found by: {shlex.join(document['command'])}."
        fields = [f"{name} = {value}" for name, value in outcome.withdrawal.items()][1:]
        write_derived(
            document["profile"],
            output,
            withdrawal=outcome.withdrawal,
            description=f"{method} with {', '.join(fields)}, by mvw calibrate on {samples} samples",
            reason=" ".join([found, outcome.reason, *outcome.remarks]),
        )
        written.insert(0, str(output))
    if as_json:
        console.write(text)
    else:
        verdict = Section("outcome", "Outcome", [Sentence(outcome.reason, "verdict")])
        more = Section("more", "More", [Sentence(f"{report} has every sample and every row.")])
        show(f"mvw calibrate {method}", [verdict, *search.tables(outcome, samples), more])
    for path in written:
        console.note(f"wrote {path}")
    for remark in outcome.remarks:
        console.warn(remark)
    if outcome.withdrawal is None:
        hint = f"mvw calibrate {method} --help"
        raise MvwError("Nothing is suggested", cause=outcome.reason, hint=hint)
