"""What every search of `mvw calibrate` is: a protocol, one loop over the samples, and one table.

A search measures each item by itself, then chooses among its candidates. A sample that is in the
store is not measured again; one whose image can't be read is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from mvw_cli.batch.items import item_key
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.bench.measure.run import Stopped
from mvw_cli.calibrate.store import SampleStore
from mvw_cli.engine.memory import relieve
from mvw_cli.engine.types import Finished, Request
from mvw_cli.errors import BadImage, MvwError, OutOfMemory
from mvw_cli.images.reading import open_image
from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.session import Session
from mvw_cli.text import MISSING, plural

_SHOWN = 16
"""Candidates that the table has: as many as a screen holds."""

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


@dataclass
class SearchRun:
    """A search under way: the model is loaded, the store open."""

    session: Session
    items: Sequence[ItemSpec]
    store: SampleStore
    output: Path
    """The profile that is to be written; other files lie beside it."""
    profile: dict[str, Any] = field(default_factory=dict)
    """As `Resolved.to_dict` tells it."""
    seed: int = 0
    """Of intervals, of training, and of whatever else is drawn."""
    progress: Callable[[str, int, int], None] = lambda doing, done, total: None
    """Called with what is done, and how much of how many."""
    warn: Callable[[str], None] = lambda text: None
    stopping: Callable[[], bool] = lambda: False
    """Whether the user has asked to stop."""
    left_out: list[str] = field(default_factory=list)
    """Items that could not be measured, and why."""
    first_error: MvwError | None = None

    def __post_init__(self) -> None:
        self.facts, self.device = self.session.facts(), self.session.loaded.model.device

    def release_model(self) -> None:
        """Make room for what comes after the samples; there is no session any more."""
        del self.session
        relieve(self.device)

    def tick(self) -> None:
        """Raise `Stopped` where the user has asked for it."""
        if self.stopping():
            raise Stopped

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Go on without an item that can't be measured, and remember why."""
        try:
            yield
        except (BadImage, OutOfMemory) as error:
            self.first_error = self.first_error or error
            reason = f"{error.message} ({error.cause})" if error.cause else error.message
            self.left_out.append(reason)
            self.warn(f"Left out: {reason}")
            relieve(self.device)


class Search(ABC):
    """How one method is calibrated. A subclass is a dataclass whose fields are its options."""

    doing: ClassVar[str]
    """What is shown while samples are measured."""
    files: ClassVar[tuple[str, ...]] = ()
    """Endings of files that are written beside the profile, apart from what all searches write."""
    measured_by: ClassVar[tuple[str, ...]] = ()
    """Options on which a sample's figures depend: under others it is measured again."""
    title: ClassVar[str] = ""
    """Of the table of the curve."""
    columns: ClassVar[Sequence[Column]] = ()

    @property
    def together(self) -> int:
        """Items that are encoded, and handed to `prepare`, at a time."""
        return 1

    def settings(self) -> dict[str, Any]:
        """Return the options by name."""
        names = [one.name for one in fields(self) if not one.name.startswith("_")]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names}

    def check(self, run: SearchRun) -> None:
        """Refuse, with a UsageProblem, items or a model that the options don't suit."""
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

        The entry of the curve that is chosen has `chosen`.

        Raises:
            Stopped: the user has asked to stop.
            MvwError: the model can't be run.
        """

    def told(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return what of a sample the report has."""
        return sample

    @abstractmethod
    def charts(self, outcome: Outcome) -> list[Chart]:
        """Draw the curve."""

    def tables(self, outcome: Outcome, samples: int) -> list[Section]:
        """Put the curve into a table that fits a screen."""
        shown = _around_the_chosen(outcome.curve)
        rows = [[*(write(point) for _, write in self.columns), _mark(point)] for point in shown]
        said = f"Over {plural(samples, 'sample')}."
        if len(shown) < len(outcome.curve):
            said += f" {len(shown)} of {len(outcome.curve)} rows."
        table = Table([*(head for head, _ in self.columns), ""], rows)
        return [Section("curve", self.title, [table, Sentence(said)])]


def _mark(point: Mapping[str, Any]) -> str:
    return "chosen" if point.get("chosen") else "within" if point.get("within") else ""


def _around_the_chosen(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose what a screen holds: the first, those around the chosen one, and the last."""
    if len(points) <= _SHOWN:
        return points
    places = (place for place, one in enumerate(points) if one.get("chosen"))
    first = min(max(1, next(places, len(points)) - _SHOWN // 2), len(points) - _SHOWN + 1)
    return [points[0], *points[first : first + _SHOWN - 2], points[-1]]


def cell(key: str, write: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str]:
    """Make a column's function: the value under a key as it is written, a dash where it is None."""
    return lambda point: MISSING if point[key] is None else write(point[key])


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
    numbered = list(enumerate(run.items, start=1))
    for first in range(0, len(numbered), search.together):
        opened: list[tuple[int, dict[str, Any], Request | None]] = []
        for number, item in numbered[first : first + search.together]:
            run.tick()
            run.progress(search.doing, number, len(numbered))
            with run.leaving_out():
                opened.append((number, *_opened(search, run, item)))
        fresh = {request.id: request for *_, request in opened if request is not None}
        if fresh:
            search.prepare(run, list(fresh.values()))
        for number, asked, request in opened:
            run.tick()
            with run.leaving_out():
                known = search.known(run, asked["key"])
                if known is None:
                    assert request is not None
                    start = perf_counter()
                    values = search.measure(run, run.items[number - 1], request)
                    known = run.store.put(**asked, seconds=perf_counter() - start, **values)
                found.append({"number": number, **known})
    if not found and run.first_error is not None:
        raise run.first_error
    return found


def _opened(
    search: Search, run: SearchRun, item: ItemSpec
) -> tuple[dict[str, Any], Request | None]:
    """Read an item's images: what names the sample, and the request where it is to be measured."""
    spec = run.session.loaded.spec
    files = [
        open_image(path, max_pixels=spec.max_pixels, max_decoded_pixels=spec.max_decoded_pixels)
        for path in item.images
    ]
    digests = [file.sha256 for file in files]
    asked: dict[str, Any] = {
        "key": search.key_of(item, item_key(digests, item.question)),
        "images": [Path(path).name for path in item.images],
        "sha256": digests,
        "question": item.question,
    }
    if search.known(run, asked["key"]) is not None:
        return asked, None
    request = run.session.request([file.image for file in files], item.question, id=asked["key"])
    if not request.layout.vision_tokens:
        raise BadImage(
            f"{', '.join(item.images)} can't be measured",
            cause="it holds no vision tokens",
            hint="mvw list adapters",
        )
    return asked, request
