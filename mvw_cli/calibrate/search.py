"""What every search of `mvw calibrate` is: a protocol, one loop over the samples, and one report.

A search measures each item by itself, then chooses among its candidates. A sample that is in the
store is not measured again; one whose image can't be read is left out.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Self

from mvw_cli.batch.items import item_key
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.bench.quality.answers import Comparing
from mvw_cli.calibrate.store import SampleStore
from mvw_cli.engine.memory import relieve
from mvw_cli.engine.types import Finished, Request
from mvw_cli.environment import Environment
from mvw_cli.errors import BadImage, MvwError, OutOfMemory
from mvw_cli.images.reading import open_image
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.session import Session
from mvw_cli.text import plural

SCHEMA_VERSION = 2
_SAMPLES = "samples stand here"
_HEAD = ("run", "schema_version")
"""Of a line of the store, what the report does not repeat."""
_SHOWN = 16
"""Candidates that a table on one screen has."""

Column = tuple[str, Callable[[Mapping[str, Any]], str]]
"""Of a table of the curve: its head, and what it says of a candidate."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search makes of its samples."""

    curve: list[dict[str, Any]]
    """One entry for each candidate, in order."""
    withdrawal: dict[str, Any] | None
    """The `withdrawal` of the profile that is suggested; None where no candidate qualifies."""
    reason: str
    """Why this one, or why none."""
    remarks: list[str] = field(default_factory=list)
    """What speaks against it, or has to be known about it."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else was found."""


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """One run of `mvw calibrate`, as it is in the JSON file. Units are in the names."""

    method: str
    environment: Environment
    model: dict[str, Any]
    """As `Session.facts` tells it."""
    profile: dict[str, Any]
    """As `Resolved.to_dict` tells it."""
    command: list[str]
    started: str
    seconds: float
    """Of this run; samples of earlier ones are not in it."""
    settings: dict[str, Any]
    """Of the method."""
    samples: list[dict[str, Any]]
    """In the order of the items."""
    left_out: list[str]
    """Items that could not be measured, and why."""
    outcome: Outcome

    def to_json(self) -> str:
        """Write it as JSON, each sample on a line of its own."""
        document = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        lines = [json.dumps(one, ensure_ascii=False) for one in document["samples"]]
        document["samples"] = [_SAMPLES]
        whole = json.dumps(document, indent=2, ensure_ascii=False, default=str)
        return whole.replace(f'"{_SAMPLES}"', ",\n    ".join(lines), 1)


class SearchRun:
    """A search under way: the model is loaded, the store open.

    Args:
        profile: as `Resolved.to_dict` tells it.
        seed: of intervals, of training, and of whatever else is drawn.
        progress: called with what is done, and how much of how many.
        stopping: whether the user has asked to stop.
    """

    def __init__(
        self,
        session: Session,
        items: Sequence[ItemSpec],
        store: SampleStore,
        *,
        profile: dict[str, Any] | None = None,
        seed: int = 0,
        progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
        warn: Callable[[str], None] = lambda text: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._session: Session | None = session
        self.items, self.store, self.seed = items, store, seed
        self.profile = profile or {}
        self.progress, self.warn, self.stopping = progress, warn, stopping
        self.facts, self.device = session.facts(), session.loaded.model.device
        self.left_out: list[str] = []
        self.first_error: MvwError | None = None

    @property
    def session(self) -> Session:
        """The loaded model."""
        assert self._session is not None, "the model has been released"
        return self._session

    def release_model(self) -> None:
        """Make room for what comes after the samples."""
        self._session = None
        relieve(self.device)

    def tick(self) -> None:
        """Raise `Stopped` where the user has asked for it."""
        if self.stopping():
            raise Stopped

    def comparing(self, policies: dict[str, WithdrawalPolicy]) -> Comparing:
        """Begin to answer items under some policies, to the end of each answer."""
        return Comparing(
            self.session,
            policies,
            replace(self.session.settings, ignore_eos=False),
            progress=lambda place, arm: self.progress(f"Item {place}: {arm}", 0, 0),
            stopping=lambda: self.stopping(),
        )

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Go on without an item that can't be measured, and remember why."""
        try:
            yield
        except (BadImage, OutOfMemory) as error:
            reason = f"{error.message} ({error.cause})" if error.cause else error.message
            self.left_out.append(reason)
            self.first_error = self.first_error or error
            self.warn(f"Left out: {reason}")
            relieve(self.device)


class Search(ABC):
    """How one method is calibrated. A subclass is a dataclass whose fields are its options."""

    doing: ClassVar[str]
    """What is shown while samples are measured."""
    title: ClassVar[str] = ""
    """Of the table of the curve."""
    key: ClassVar[str] = ""
    """What names a candidate in the curve."""
    columns: ClassVar[Sequence[Column]] = ()

    @classmethod
    def for_output(cls, output: Path, **options: Any) -> Self:
        """Make a search of options of the command line, and of the profile that it is to write."""
        return cls(**options)

    @property
    def together(self) -> int:
        """Items that are encoded, and handed to `prepare`, at a time."""
        return 1

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the options, as the report has them."""

    @abstractmethod
    def sample_settings(self) -> dict[str, Any]:
        """Return those that a sample's figures depend on: under others it is measured again."""

    def check_items(self, items: Sequence[ItemSpec]) -> None:
        """Refuse, with a UsageProblem, items that can't be measured: before the model is loaded."""
        return

    def check_model(self, session: Session) -> None:
        """Refuse, with a UsageProblem, a model that the options don't suit."""
        return

    def key_of(self, item: ItemSpec, key: str) -> str:
        """Name a sample, given the name of its images and question."""
        return key

    def known(self, run: SearchRun, key: str) -> dict[str, Any] | None:
        """Return what has been measured of a sample, or None."""
        return run.store.get(key)

    def prepare(self, run: SearchRun, requests: Sequence[Request]) -> None:
        """Do for several samples at once what is faster so; each is measured after it."""
        return

    @abstractmethod
    def measure(self, run: SearchRun, item: ItemSpec, request: Request) -> Mapping[str, Any]:
        """Measure one sample.

        Args:
            request: the item, encoded; it holds vision tokens.

        Raises:
            Stopped: the user has asked to stop.
            OutOfMemory: the device has too little memory for this one.
            MvwError: the model can't be run.
        """

    @abstractmethod
    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        """Choose among the candidates; what needs the model for it is kept in the store, too.

        Raises:
            Stopped: the user has asked to stop.
            MvwError: the model can't be run, or a file not written.
        """

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return what of a sample the report has."""
        return sample

    @abstractmethod
    def describe(self, withdrawal: Mapping[str, Any]) -> str:
        """Describe what is suggested, in a few words."""

    @abstractmethod
    def charts(self, report: CalibrationReport) -> list[Chart]:
        """Draw the curve."""

    def mark(self, point: Mapping[str, Any], outcome: Outcome) -> str:
        """Return what the last column of the table says of a candidate."""
        return "within" if point["within"] else ""

    def chosen(self, withdrawal: Mapping[str, Any]) -> object:
        """Return what the chosen candidate has under `key`."""
        return withdrawal.get(self.key)

    def remark(self, report: CalibrationReport) -> str:
        """Return what is to be said under the table."""
        return ""

    def tables(self, report: CalibrationReport, *, whole: bool) -> list[Section]:
        """Put the curve into a table: one that fits a screen, or all of it."""
        outcome = report.outcome
        shown = outcome.curve if whole else self._around(outcome)
        rows = [
            [*(write(point) for _, write in self.columns), self.mark(point, outcome)]
            for point in shown
        ]
        said = [f"Over {plural(len(report.samples), 'sample')}.", self.remark(report)]
        if len(shown) < len(outcome.curve):
            said.append(f"{len(shown)} of {len(outcome.curve)} rows.")
        table = Table([*(head for head, _ in self.columns), ""], rows)
        return [Section("curve", self.title, [table, Sentence(" ".join(filter(None, said)))])]

    def _around(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Choose what a screen holds: the first, those around the chosen one, and the last."""
        points, chosen = outcome.curve, self.chosen(outcome.withdrawal or {})
        if len(points) <= _SHOWN:
            return points
        places = (place for place, one in enumerate(points) if one[self.key] == chosen)
        first = min(max(1, next(places, len(points)) - _SHOWN // 2), len(points) - _SHOWN + 1)
        return [points[0], *points[first : first + _SHOWN - 2], points[-1]]

    def hidden(self, report: CalibrationReport) -> str:
        """Name what `tables` has only with `whole`; empty where it has all of it anyway."""
        return "every row" if len(report.outcome.curve) > _SHOWN else ""

    def sections(self, report: CalibrationReport, *, whole: bool) -> list[Section]:
        """Put a report into words, the verdict first."""
        verdict = Sentence(report.outcome.reason, "verdict")
        return [Section("outcome", "Outcome", [verdict]), *self.tables(report, whole=whole)]


def cell(key: str, write: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str]:
    """Make a column's function: the value under a key as it is written, a dash where it is None."""
    return lambda point: "-" if point[key] is None else write(point[key])


def answered(session: Session, request: Request, tick: Callable[[], None]) -> Finished:
    """Answer one request to its end.

    Args:
        tick: called before every token; what it raises ends the answer.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
    """
    for event in session.run([request]):
        tick()
        if isinstance(event, Finished):
            return event
    raise AssertionError("the engine ended without an answer")


def measure_all(search: Search, run: SearchRun) -> list[dict[str, Any]]:
    """Measure what the store lacks; return all samples in the order of the items.

    Raises:
        Stopped: the user has asked to stop; what was measured is in the store.
        MvwError: the model can't be run, the store not written, or no item could be measured.
    """
    found: list[dict[str, Any]] = []
    total = len(run.items)
    for first in range(0, total, search.together):
        group: list[_Opened] = []
        for number in range(first + 1, min(first + search.together, total) + 1):
            run.tick()
            run.progress(search.doing, number, total)
            with run.leaving_out():
                group.append(_opened(search, run, number))
        fresh = {one.key: one.request for one in group if one.request is not None}
        if fresh:
            search.prepare(run, list(fresh.values()))
        for one in group:
            run.tick()
            with run.leaving_out():
                known = search.known(run, one.key) or _measured(search, run, one)
                shown = {name: known[name] for name in known if name not in _HEAD}
                found.append({"number": one.number, **shown})
    if not found and run.first_error is not None:
        raise run.first_error
    return found


@dataclass(frozen=True, slots=True)
class _Opened:
    """An item whose images have been read."""

    number: int
    """From 1."""
    key: str
    sha256: list[str]
    request: Request | None
    """None where the sample has been measured."""


def _opened(search: Search, run: SearchRun, number: int) -> _Opened:
    """Read an item's images and name the sample; encode it where it is still to be measured."""
    item, limit = run.items[number - 1], run.session.loaded.spec.max_pixels
    files = [open_image(path, max_pixels=limit) for path in item.images]
    digests = [file.sha256 for file in files]
    key = search.key_of(item, item_key(digests, item.question))
    if search.known(run, key) is not None:
        return _Opened(number, key, digests, None)
    request = run.session.request([file.image for file in files], item.question, id=key)
    if not request.layout.vision_tokens:
        raise BadImage(
            f"{', '.join(item.images)} can't be measured",
            cause="it holds no vision tokens",
            hint="mvw list adapters",
        )
    return _Opened(number, key, digests, request)


def _measured(search: Search, run: SearchRun, opened: _Opened) -> dict[str, Any]:
    item, start = run.items[opened.number - 1], perf_counter()
    assert opened.request is not None
    values = search.measure(run, item, opened.request)
    asked = {
        "images": [Path(path).name for path in item.images],
        "sha256": opened.sha256,
        "question": item.question,
        "seconds": perf_counter() - start,
    }
    return run.store.put(opened.key, {**asked, **values})
