"""Items read, decoded and encoded ahead; scaled down where memory asks for it.

`Reader` works on items in threads, within bounds of number and memory. Threads suffice: Pillow and
tokenizers let go of the interpreter lock where they work. A thread that hangs on an item is
abandoned and replaced.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, Self, TypeVar

from mvw_cli.batch.items import Item
from mvw_cli.batch.source import reading
from mvw_cli.engine.types import Request
from mvw_cli.images.reading import ImageFile, fit
from mvw_cli.session import Session

Result = TypeVar("Result")

WAIT_S = 0.2
"""How long `take` waits at most: whoever takes has to notice Ctrl-C meanwhile."""
GRACE_S = 2.0
"""How long the end waits for threads: to leave one in native code can abort the interpreter."""


@dataclass(slots=True, eq=False)
class Task:
    """One item that a thread works on."""

    thread: threading.Thread
    item: Item | None = None
    deadline: float | None = None
    """On the monotonic clock. Work that may take its time sets it to None, under `Reader.changed`;
    it has come too late where `abandoned` is set by then."""
    abandoned: bool = False
    progress: Any = None
    """Whatever the work has found so far, for what is made of it when it is abandoned."""


class Reader(Generic[Result]):
    """Threads and the results that they have ready. A context manager; one thread takes.

    Args:
        items: taken one by one, from the threads, when there is room for the result.
        work: makes a result of an item, and says how many bytes it holds; whatever it raises is
            raised by `take`.
        give_up: the same for an item whose work takes longer than `timeout_s`; None where it turns
            out to be done.
        threads: that many items are worked on at the same time, at most.
        ahead: that many items are worked on or ready at any time, at most.
        ahead_bytes: that results may hold; exceeded by no more than one item for each thread.
    """

    def __init__(
        self,
        items: Iterator[Item],
        work: Callable[[Task], tuple[Result, int]],
        *,
        threads: int,
        ahead: int,
        ahead_bytes: float = math.inf,
        timeout_s: float = math.inf,
        give_up: Callable[[Task], tuple[Result, int] | None] = lambda task: None,
        name: str = "mvw-reader",
    ) -> None:
        if min(threads, ahead) < 1:
            raise ValueError("threads and ahead are at least 1")
        self._items, self._work, self._give_up = items, work, give_up
        self._ahead, self._ahead_bytes, self._timeout_s = ahead, ahead_bytes, timeout_s
        self._name = name
        self._threads = [self._thread() for _ in range(threads)]
        self._items_lock = threading.Lock()
        # Re-entrant: a signal handler may call stop() in the midst of take().
        self.changed = threading.Condition(threading.RLock())
        self._tasks: set[Task] = set()
        self._ready: deque[tuple[Result, int]] = deque()
        self._held_bytes = 0
        self._typical_bytes = 0.0
        self._ended = self._stopped = False
        self._fault: BaseException | None = None

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing more to take."""
        with self.changed:
            return self._stopped or (self._is_over() and self._fault is None)

    @property
    def waiting(self) -> int:
        """How many results can be taken at once."""
        return 0 if self._stopped else len(self._ready)

    def take(self, wait: bool) -> Result | None:
        """Return the next result, roughly in the order of the items.

        None: nothing is ready, with `wait` not within a fifth of a second either; `exhausted`
        says whether anything will be.

        Raises:
            Exception: what `items` or `work` raised, once all results from before have been taken.
        """
        end = time.monotonic() + (WAIT_S if wait else 0.0)
        with self.changed:
            while not self._stopped:
                self._abandon_overdue()
                if self._ready:
                    result, size = self._ready.popleft()
                    self._held_bytes -= size
                    self.changed.notify_all()
                    return result
                if self._is_over() and self._fault is not None:
                    raise self._fault
                rest = end - time.monotonic()
                if self._is_over() or rest <= 0:
                    return None
                self.changed.wait(min(rest, self._until_overdue_s()))
            return None

    def stop(self) -> None:
        """Begin nothing more and drop what is ready. May be called by a signal handler."""
        with self.changed:
            self._stopped = True
            self.changed.notify_all()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        end = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self.changed:
            self._ready.clear()

    # -- in the threads, apart from what holds the condition -----------------------------------

    def _thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=self._name, daemon=True)

    def _run(self) -> None:
        while (task := self._begin()) is not None:
            try:
                result, size = self._work(task)
            except BaseException as error:  # else the thread would die, and its item with it
                self._fail(task, error)
                return
            with self.changed:
                if task.abandoned:
                    return
                self._tasks.discard(task)
                self._hand_over(result, size)
                self._typical_bytes += (size - self._typical_bytes) / 8

    def _begin(self) -> Task | None:
        """Wait for room, and take the next item."""
        with self._items_lock:
            task = Task(threading.current_thread())
            with self.changed:
                self.changed.wait_for(lambda: self._stopped or self._ended or self._has_room())
                if self._stopped or self._ended:
                    return None
                self._tasks.add(task)  # before there is an item: it is not over during a fetch
            try:
                task.item = next(self._items, None)
            except BaseException as error:
                self._fail(task, error)
                return None
            with self.changed:
                if task.item is None or self._stopped:
                    self._ended = True
                    self._tasks.discard(task)
                    self.changed.notify_all()
                    return None
                task.deadline = time.monotonic() + self._timeout_s
                return task

    def _fail(self, task: Task, error: BaseException) -> None:
        with self.changed:
            if task.abandoned:
                return
            self._fault = self._fault or error
            self._ended = True
            self._tasks.discard(task)
            self.changed.notify_all()

    # -- holding the condition -----------------------------------------------------------------

    def _hand_over(self, result: Result, size: int) -> None:
        if not self._stopped:
            self._ready.append((result, size))
            self._held_bytes += size
            self.changed.notify_all()

    def _has_room(self) -> bool:
        held = len(self._ready) + len(self._tasks)
        expected = self._held_bytes + len(self._tasks) * self._typical_bytes
        return held < self._ahead and (held == 0 or expected < self._ahead_bytes)

    def _is_over(self) -> bool:
        return self._ended and not self._tasks and not self._ready

    def _until_overdue_s(self) -> float:
        deadlines = [task.deadline for task in self._tasks if task.deadline is not None]
        return max(0.0, min(deadlines, default=math.inf) - time.monotonic())

    def _abandon_overdue(self) -> None:
        now = time.monotonic()
        for task in [one for one in self._tasks if one.deadline is not None and one.deadline < now]:
            given_up = self._give_up(task)
            if given_up is None:
                continue  # it has just been done
            task.abandoned = True
            self._tasks.discard(task)
            self._hand_over(*given_up)
            self._threads.remove(task.thread)
            self._threads.append(self._thread())
            self._threads[-1].start()


@dataclass(frozen=True, slots=True)
class Ready:
    """An item that can be served."""

    item: Item
    images: list[ImageFile]
    value: Any
    """What `encode` returned."""
    read_ms: float
    preprocess_ms: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item whose images could not be read or encoded."""

    item: Item
    images: list[ImageFile]
    """Those that were read before."""
    error: Exception


class Prefetcher(Reader[Ready | Unreadable]):
    """Reads and encodes items ahead. A context manager; one thread takes.

    Args:
        items, threads, ahead, ahead_bytes: as `Reader`; the bytes are those of pixels and tensors.
        encode: called for one item at a time, since fast tokenizers are not to be shared.
        timeout_s: an item whose images take longer to read is given up.
        max_pixels: larger images are scaled down.
    """

    def __init__(
        self,
        items: Iterator[Item],
        *,
        encode: Callable[[Item, list[ImageFile]], Any],
        threads: int,
        ahead: int,
        ahead_bytes: int,
        timeout_s: float,
        max_pixels: int | None,
    ) -> None:
        self._encode, self._max_pixels = encode, max_pixels
        self._encode_lock = threading.Lock()
        super().__init__(
            items,
            self._prepare,
            threads=threads,
            ahead=ahead,
            ahead_bytes=ahead_bytes,
            timeout_s=timeout_s,
            give_up=self._too_slow,
        )

    def _prepare(self, task: Task) -> tuple[Ready | Unreadable, int]:
        """Read and encode an item; whatever goes wrong is that item's failure."""
        assert task.item is not None
        images: list[ImageFile] = []
        task.progress = images
        begin = time.perf_counter()
        try:
            for image in task.item.images:
                images.append(reading.read_image(image, self._max_pixels))
            read_ms = _ms_since(begin)
            with self.changed:
                task.deadline = None  # from here on, it may take its time
            if task.abandoned:
                raise TimeoutError
            with self._encode_lock:
                begin = time.perf_counter()
                value = self._encode(task.item, images)
                ready = Ready(task.item, images, value, read_ms, _ms_since(begin))
            return ready, _pixel_bytes(images) + _tensor_bytes(value)
        except BaseException as error:
            if not isinstance(error, Exception):
                error = RuntimeError(f"{type(error).__name__}: {error}")
            return Unreadable(task.item, images, error), _pixel_bytes(images)

    def _too_slow(self, task: Task) -> tuple[Unreadable, int] | None:
        assert task.item is not None
        images = list(task.progress or ())
        if len(images) == len(task.item.images):
            return None
        error = reading.too_slow(task.item.images[len(images)], self._timeout_s)
        return Unreadable(task.item, images, error), _pixel_bytes(images)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request for the engine, and the adapter's remarks on it."""

    request: Request
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes items for one session."""

    session: Session
    min_pixels: int | None = None
    """Images may be scaled down to no fewer pixels than this; None: not at all."""

    def __call__(self, item: Item, images: Sequence[ImageFile]) -> Encoded:
        """Encode an item."""
        pictures = [file.image for file in images]
        remarks = list(self.session.adapter.remarks(self.session.loaded, pictures, item.question))
        return Encoded(self.session.request(pictures, item.question, id=item.id), remarks)

    def scaled_down(self, ready: Ready) -> tuple[Ready, str] | None:
        """Halve the pixels of an item's largest image, to be encoded again; None: too few are left.

        The second is a remark on what was done.
        """
        if self.min_pixels is None or not ready.images:
            return None
        from PIL import Image

        pixels = [file.size[0] * file.size[1] for file in ready.images]
        largest = pixels.index(max(pixels))
        file = ready.images[largest]
        size = fit(file.size, max(self.min_pixels, pixels[largest] // 2))
        if size == file.size:
            return None
        images = [*ready.images]
        smaller = file.image.resize(size, Image.Resampling.LANCZOS)
        images[largest] = replace(file, image=smaller, size=size)
        before, now = "×".join(map(str, file.size)), "×".join(map(str, size))
        remark = f"memory ran out, so {file.path} was scaled from {before} to {now} pixels"
        return replace(ready, images=images, value=None), remark


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000


def _pixel_bytes(images: Iterable[ImageFile]) -> int:
    """Bytes of decoded images, in RGB."""
    return sum(3 * file.size[0] * file.size[1] for file in images)


def _tensor_bytes(value: Any, depth: int = 5) -> int:
    """Bytes of all tensors or arrays in a value, nested in dictionaries, lists and dataclasses."""
    with suppress(Exception):  # no attribute, or a tensor of a layout that has no such number
        return int(value.nbytes)
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    elif is_dataclass(value):
        parts = [getattr(value, part.name) for part in fields(value)]
    return sum(_tensor_bytes(part, depth - 1) for part in parts) if depth else 0
