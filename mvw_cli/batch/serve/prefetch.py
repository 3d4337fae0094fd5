"""Items read, decoded and encoded ahead; scaled down where memory asks for it.

Threads suffice: Pillow and tokenizers let go of the interpreter lock where they work. A thread that
hangs on an image is abandoned and replaced, which no pool of the library does: one that hangs there
would hold up the end of the process.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.source import reading
from mvw_cli.engine.types import Request
from mvw_cli.images.problems import PIXEL_LIMIT
from mvw_cli.images.reading import ImageFile, fit
from mvw_cli.session import Session

WAIT_S = 0.2
"""How long `take` waits at most: whoever takes has to notice Ctrl-C meanwhile."""
GRACE_S = 2.0
"""How long the end waits for threads: to leave one in native code can abort the interpreter."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request for the engine, and the adapter's remarks on it."""

    request: Request
    remarks: list[str]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that the model gets."""
        return sum(getattr(value, "nbytes", 0) for value in self.request.inputs.values())


@dataclass(frozen=True, slots=True)
class Ready:
    """An item that can be served."""

    item: Item
    images: list[ImageFile]
    encoded: Encoded | None
    """None: memory did not suffice to encode it ahead, or it has been scaled down since."""
    read_ms: float
    preprocess_ms: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item whose images could not be read or encoded."""

    item: Item
    images: list[ImageFile]
    """Those that were read before."""
    error: Exception


@dataclass(slots=True, eq=False)
class _Task:
    """One item that a thread works on."""

    item: Item
    deadline: float
    """On the monotonic clock, for reading; infinite once that is done."""
    images: list[ImageFile] = field(default_factory=list)
    abandoned: bool = False


class Prefetcher:
    """Reads and encodes items ahead. A context manager; one thread takes.

    Args:
        items: taken one by one, from the threads, when there is room for the result.
        encode: called for one item at a time, since fast tokenizers are not to be shared.
        threads: that many items are worked on at the same time, at most.
        ahead: that many items are worked on or ready at any time, at most.
        ahead_bytes: that pixels and tensors may hold; exceeded by no more than one item for each
            thread.
        timeout_s: an item whose images take longer to read is given up.
        max_pixels, max_decoded_pixels: as of `open_image`.
    """

    def __init__(
        self,
        items: Iterator[Item],
        *,
        encode: Callable[[Item, list[ImageFile]], Encoded],
        threads: int,
        ahead: int,
        ahead_bytes: int,
        timeout_s: float,
        max_pixels: int | None,
        max_decoded_pixels: int = PIXEL_LIMIT,
    ) -> None:
        self._items, self._encode = items, encode
        self._ahead, self._ahead_bytes = ahead, ahead_bytes
        self._timeout_s = timeout_s
        self._limits = max_pixels, max_decoded_pixels
        self._items_lock, self._encode_lock = threading.Lock(), threading.Lock()
        self._changed = threading.Condition()
        self._count = threads
        self._threads: list[threading.Thread] = []
        self._tasks: set[_Task] = set()
        self._ready: deque[Ready | Unreadable] = deque()
        self._held_bytes = 0
        self._ended = self._stopped = False
        self._fault: BaseException | None = None

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing more to take."""
        with self._changed:
            return self._stopped or (self._is_over() and self._fault is None)

    def take(self, wait: bool) -> Ready | Unreadable | None:
        """Return the next result, roughly in the order of the items.

        None: nothing is ready, with `wait` not within a fifth of a second either; `exhausted`
        says whether anything will be.

        Raises:
            Exception: what `items` raised, once all results from before have been taken.
        """
        end = time.monotonic() + (WAIT_S if wait else 0.0)
        with self._changed:
            while not self._stopped:
                self._abandon_overdue()
                if self._ready:
                    result = self._ready.popleft()
                    self._held_bytes -= _bytes_of(result)
                    self._changed.notify_all()
                    return result
                if self._is_over() and self._fault is not None:
                    raise self._fault
                now = time.monotonic()
                if self._is_over() or now >= end:
                    return None
                next_deadline = min((task.deadline for task in self._tasks), default=end)
                self._changed.wait(max(0.0, min(end, next_deadline) - now))
            return None

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._start_thread()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        end = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._ready.clear()

    # -- in the threads ------------------------------------------------------------------------

    def _start_thread(self) -> None:
        self._threads.append(threading.Thread(target=self._run, name="mvw-reader", daemon=True))
        self._threads[-1].start()

    def _run(self) -> None:
        task = None
        try:
            while (task := self._begin()) is not None:
                result = self._prepare(task)
                with self._changed:
                    if task.abandoned:
                        return
                    self._finish(task, result)
        except BaseException as error:  # raised by `take`, or it would wait for ever
            with self._changed:
                self._fault = self._fault or error
                self._ended = True
                self._finish(task, None)

    def _begin(self) -> _Task | None:
        """Wait for room, and take the next item."""
        with self._items_lock:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._ended or self._has_room())
                if self._stopped or self._ended:
                    return None
            item = next(self._items, None)
            with self._changed:
                if item is None or self._stopped:
                    self._ended = True
                    self._changed.notify_all()
                    return None
                task = _Task(item, time.monotonic() + self._timeout_s)
                self._tasks.add(task)
                return task

    def _prepare(self, task: _Task) -> Ready | Unreadable:
        """Read and encode an item; whatever goes wrong is that item's failure."""
        begin = time.perf_counter()
        try:
            for image in task.item.images:
                task.images.append(reading.read_image(image, *self._limits))
            read_ms = _ms_since(begin)
            with self._changed:
                task.deadline = math.inf  # from here on, it may take its time
                if task.abandoned:
                    raise TimeoutError
            with self._encode_lock:
                begin = time.perf_counter()
                encoded = self._encode(task.item, task.images)
                return Ready(task.item, task.images, encoded, read_ms, _ms_since(begin))
        except Exception as error:
            return Unreadable(task.item, task.images, error)

    # -- holding the condition -----------------------------------------------------------------

    def _finish(self, task: _Task | None, result: Ready | Unreadable | None) -> None:
        if task is not None:
            self._tasks.discard(task)
        if result is not None and not self._stopped:
            self._ready.append(result)
            self._held_bytes += _bytes_of(result)
        self._changed.notify_all()

    def _has_room(self) -> bool:
        held = len(self._ready) + len(self._tasks)
        return held < self._ahead and (not self._ready or self._held_bytes < self._ahead_bytes)

    def _is_over(self) -> bool:
        return self._ended and not self._tasks and not self._ready

    def _abandon_overdue(self) -> None:
        now = time.monotonic()
        for task in [task for task in self._tasks if task.item.images and task.deadline < now]:
            images = list(task.images)  # its thread may add to them yet
            task.abandoned = True
            hung = task.item.images[min(len(images), len(task.item.images) - 1)]
            error = reading.too_slow(hung, self._timeout_s)
            self._finish(task, Unreadable(task.item, images, error))
            self._start_thread()


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes items for one session."""

    session: Session
    min_pixels: int | None = None
    """Images may be scaled down to no fewer pixels than this; None: not at all."""

    def __call__(self, item: Item, images: Sequence[ImageFile]) -> Encoded:
        """Encode an item."""
        pictures = [file.image for file in images]
        request = self.session.request(pictures, item.question, id=item.id)
        remarks = [file.remark for file in images if file.remark]
        return Encoded(request, remarks + self.session.remarks(pictures, item.question, request))

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
        return replace(ready, images=images, encoded=None), remark


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000


def _bytes_of(result: Ready | Unreadable) -> int:
    """Bytes of the decoded images, in RGB, and of what was made of them."""
    pixels = sum(3 * file.size[0] * file.size[1] for file in result.images)
    encoded = result.encoded if isinstance(result, Ready) else None
    return pixels + (encoded.nbytes if encoded is not None else 0)
