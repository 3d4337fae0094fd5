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
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from mvw_cli.batch.items import item_key
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.calibrate.store import SampleStore
from mvw_cli.engine.memory import relieve
from mvw_cli.engine.types import Finished, Request
from mvw_cli.environment import Environment
from mvw_cli.errors import BadImage, MvwError, OutOfMemory
from mvw_cli.images.reading import open_image
from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Section, Sentence
from mvw_cli.session import Session

SCHEMA_VERSION = 2
_SAMPLES = "samples stand here"
_HEAD = ("run", "schema_version")
"""Of a line of the store, what the report does not repeat."""


class Interrupted(Exception):
    """The user has asked to stop."""


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
        """End what is under way where the user has asked for it.

        Raises:
            Interrupted: the user has.
        """
        if self.stopping():
            raise Interrupted

    def kept(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the store has under a key; measure it first where it has nothing."""
        known = self.store.get(key)
        return self.store.put(key, measure()) if known is None else known

    def request(self, item: ItemSpec, key: str = "0") -> Request:
        """Encode an item."""
        limit = self.session.loaded.spec.max_pixels
        images = [open_image(path, max_pixels=limit).image for path in item.images]
        return self.session.request(images, item.question, id=key)

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

    method: ClassVar[str]
    doing: ClassVar[str]
    """What is shown while samples are measured."""

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
        """Refuse items that can't be measured, before the model is loaded.

        Raises:
            UsageProblem: something is missing.
        """
        return

    def check_model(self, session: Session) -> None:
        """Refuse a model that the options don't suit.

        Raises:
            UsageProblem: they don't.
        """
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
            Interrupted: the user has asked to stop.
            OutOfMemory: the device has too little memory for this one.
            MvwError: the model can't be run.
        """

    @abstractmethod
    def choose(self, run: SearchRun, samples: list[dict[str, Any]]) -> Outcome:
        """Choose among the candidates; what needs the model for it is kept in the store, too.

        Raises:
            Interrupted: the user has asked to stop.
            MvwError: the model can't be run, or a file not written.
        """

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return what of a sample the report has."""
        return sample

    @abstractmethod
    def describe(self, withdrawal: Mapping[str, Any]) -> str:
        """Describe what is suggested, in a few words."""

    @abstractmethod
    def tables(self, report: CalibrationReport, *, whole: bool) -> list[Section]:
        """Put the curve into words: a table that fits a screen, or all of them."""

    def hidden(self, report: CalibrationReport) -> str:
        """Name what `tables` has only with `whole`; empty where it has all of it anyway."""
        return ""

    @abstractmethod
    def charts(self, report: CalibrationReport) -> list[Chart]:
        """Draw the curve."""

    def sections(self, report: CalibrationReport, *, whole: bool) -> list[Section]:
        """Put a report into words, the verdict first."""
        verdict = Sentence(report.outcome.reason, "verdict")
        return [Section("outcome", "Outcome", [verdict]), *self.tables(report, whole=whole)]


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
        Interrupted: the user has asked to stop; what was measured is in the store.
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
