"""A server over a scripted feed and a tiny model; what it does to its slots is noted."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from mvw_hf.model import HuggingFace
from PIL import Image

from mvw_cli.adapter import LoadedModel
from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.serve.capacity import Limits
from mvw_cli.batch.serve.prefetch import Encoded, Encoder, Ready, Unreadable
from mvw_cli.batch.serve.server import Record, Server, State
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.slots import Observe, Slots
from mvw_cli.engine.types import Event, GenerationSettings, summarise
from mvw_cli.images.reading import ImageFile
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session

SIZE = (8, 6)
Thing = Item | Ready | Unreadable | None


def item(name: str, tokens: int, images: int = 1) -> Item:
    """An item whose answer has so many tokens: `Lengths` reads it off the question."""
    paths = tuple(ImageRef(f"{name}-{number}.png") for number in range(images))
    return Item(name, paths, f"w1 w{tokens}")


def pictures(item: Item, size: tuple[int, int] = SIZE) -> list[ImageFile]:
    """The images of an item, as if they had been read."""
    files = []
    for ref in item.images:
        pixels = random.Random(ref.path).randbytes(3 * size[0] * size[1])
        digest = hashlib.sha256(pixels).hexdigest()
        image = Image.frombytes("RGB", size, pixels)
        files.append(ImageFile(image, ref.path, digest, size, size))
    return files


@dataclass(frozen=True, slots=True)
class Lengths(Encoder):
    """Lets each question say how long its answer is; fails where a test wants it to."""

    fails: dict[str, Callable[[Sequence[ImageFile]], Exception | None]] = field(
        default_factory=dict
    )
    """By the item's id: what is wrong with these images, if anything."""

    def __call__(self, item: Item, images: Sequence[ImageFile]) -> Encoded:
        if item.id in self.fails and (error := self.fails[item.id](images)) is not None:
            raise error
        encoded = Encoder.__call__(self, item, images)
        settings = replace(
            encoded.request.settings, max_new_tokens=int(item.question.rpartition("w")[2])
        )
        return replace(encoded, request=replace(encoded.request, settings=settings))


class Scripted:
    """A feed that hands out what it was given; None stands for "nothing is ready yet"."""

    def __init__(self, things: Iterable[Ready | Unreadable | None]) -> None:
        self._things = deque(things)

    @property
    def exhausted(self) -> bool:
        return not self._things

    def take(self, wait: bool) -> Ready | Unreadable | None:
        while self._things:
            thing = self._things.popleft()
            if thing is not None or not wait:
                return thing
        return None


@dataclass
class Did:
    """One thing that was done to the slots, and how they were afterwards."""

    what: str
    """`admit` or `step`."""
    active: list[str]
    kv_allocated_bytes: int
    request: str | None = None


@dataclass
class Bench:
    """A tiny model, and how it is to be served."""

    loaded: LoadedModel
    policy: WithdrawalPolicy = field(default_factory=lambda: Mvw(m=4))
    did: list[Did] = field(default_factory=list)
    before_step: Callable[[Slots], None] = lambda slots: None
    before_admit: Callable[[Any], None] = lambda request: None
    encoder: Lengths = field(init=False)
    state: State = field(init=False)
    """Of the latest `serve`."""
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        engine = Engine(self.loaded)
        settings = GenerationSettings(temperature=0, ignore_eos=True)
        adapter = HuggingFace()
        self.session = Session(adapter, self.loaded, engine, self.policy, settings)
        self.encoder = Lengths(self.session)
        serving = engine.serving

        @contextmanager
        def watched(*, observe: Observe | None = None) -> Iterator[Slots]:
            with serving(observe=observe) as slots:
                self._watch(slots)
                yield slots

        engine.serving = watched  # type: ignore[method-assign]

    def _watch(self, slots: Slots) -> None:
        step, admit = slots.step, slots.admit

        def note(what: str, request: str | None = None) -> None:
            self.did.append(Did(what, slots.active, slots.kv_allocated_bytes, request))

        def noted_step() -> list[Event]:
            self.before_step(slots)
            events = step()
            note("step")
            return events

        def noted_admit(request: Any) -> list[Event]:
            self.before_admit(request)
            events = admit(request)
            note("admit", request.id)
            return events

        slots.step, slots.admit = noted_step, noted_admit  # type: ignore[method-assign]

    def ready(self, item: Item, size: tuple[int, int] = SIZE) -> Ready:
        """An item as the prefetcher hands it over."""
        files = pictures(item, size)
        return Ready(item, files, self.encoder(item, files), read_ms=2.0, preprocess_ms=3.0)

    def unreadable(self, item: Item, error: Exception, *, read: bool = False) -> Unreadable:
        return Unreadable(item, pictures(item) if read else [], error)

    def server(self, things: Iterable[Thing], limits: Limits, **options: Any) -> Server:
        feed = Scripted(self.ready(one) if isinstance(one, Item) else one for one in things)
        return Server(self.session, feed, self.encoder, lambda first: limits, run="r", **options)

    def serve(self, things: Iterable[Thing], limits: Limits, **options: Any) -> dict[str, Record]:
        """Serve with nothing going wrong but what was set; afterwards nothing does."""
        server = self.server(things, limits, **options)
        self.state = server.state
        records = by_id(server.records())
        self.before_step = self.before_admit = lambda _: None
        self.encoder = replace(self.encoder, fails={})
        return records

    def alone(self, items: Iterable[Item]) -> dict[str, Any]:
        """What the engine itself answers, each item by itself."""
        found = {}
        for one in items:
            request = self.encoder(one, pictures(one)).request
            done = summarise(self.session.engine.run([request]))
            step = done.withdrawal and done.withdrawal.step
            found[one.id] = (done.text, done.finish_reason, done.generated_tokens, step)
        self.did.clear()
        return found

    def check(self, records: dict[str, Record], items: Sequence[Item], *failed: str) -> None:
        """See that each item has its record, and that answers are those of one at a time."""
        assert records.keys() == {one.id for one in items}
        assert {id for id, record in records.items() if record["status"] != "ok"} == set(failed)
        good = [one for one in items if one.id not in failed]
        assert answers({one.id: records[one.id] for one in good}) == self.alone(good)

    @property
    def steps(self) -> list[Did]:
        return [did for did in self.did if did.what == "step"]

    @property
    def most_at_once(self) -> int:
        return max(len(did.active) for did in self.did)


def by_id(records: Iterable[Record]) -> dict[str, Record]:
    """Records by their ids; one that comes twice is an error."""
    found: dict[str, Record] = {}
    for record in records:
        assert record["id"] not in found, f"{record['id']} twice"
        found[record["id"]] = record
    return found


def answers(records: dict[str, Record]) -> dict[str, tuple[str, str, int | None, Any]]:
    """What must not depend on neighbours, number of slots or memory."""
    keys = ("text", "finish_reason", "generated_tokens")
    return {
        name: (
            *(record[key] for key in keys),
            record["withdrawal"] and record["withdrawal"]["step"],
        )
        for name, record in records.items()
    }
