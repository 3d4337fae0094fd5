"""Items read, decoded and encoded ahead in the background, within bounds of number and memory.

Threads suffice: Pillow and tokenizers let go of the interpreter lock where they work. A reader
that hangs is given up and replaced. What is done with the results is the scheduler's concern.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.source import reading
from mvw_cli.images.footprint import pixel_bytes, tensor_bytes

if TYPE_CHECKING:
    from mvw_cli.images.reading import ImageFile

_WAIT_S = 0.2
"""How long `take` waits: whoever takes has wishes of the user's to look after."""
_GRACE_S = 2.0
"""How long the end waits for readers: to leave one in native code can abort the interpreter."""


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


@dataclass(slots=True, eq=False)
class _Job:
    """One item in the hands of one reader."""

    thread: threading.Thread
    item: Item | None = None
    images: list[ImageFile] = field(default_factory=list)
    deadline: float | None = None
    """Of the reading alone, on the monotonic clock."""
    abandoned: bool = False


class Prefetcher:
    """Readers and what they have ready. A context manager; one thread takes."""

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
        """Say what is read, and how far ahead.

        Args:
            items: taken one by one, from the readers' threads, when there is room for the result.
            encode: called for one item at a time, since fast tokenizers are not to be shared.
            threads: that many items are read at the same time, at most.
            ahead: that many items are read or ready at any time, at most.
            ahead_bytes: of pixels and tensors. Reading stops when it is reached, so that it is
                exceeded by no more than one item for each thread.
            timeout_s: an item whose images take longer to read is given up.
            max_pixels: larger images are scaled down.
        """
        if min(threads, ahead) < 1:
            raise ValueError("threads and ahead are at least 1")
        self._items, self._encode, self._max_pixels = items, encode, max_pixels
        self._ahead, self._ahead_bytes, self._timeout_s = ahead, ahead_bytes, timeout_s
        self._threads = [self._reader() for _ in range(threads)]
        self._items_lock, self._encode_lock = threading.Lock(), threading.Lock()
        # Re-entrant: a signal handler may call stop() in the midst of take().
        self._changed = threading.Condition(threading.RLock())
        self._jobs: set[_Job] = set()
        self._ready: deque[tuple[Ready | Unreadable, int]] = deque()
        self._held_bytes = 0
        self._typical_bytes = 0.0
        self._ended = self._stopped = False
        self._fault: BaseException | None = None

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing more to take."""
        with self._changed:
            return self._stopped or (self._is_over() and self._fault is None)

    @property
    def waiting(self) -> int:
        """How many results can be taken at once."""
        return 0 if self._stopped else len(self._ready)

    def take(self, wait: bool) -> Ready | Unreadable | None:
        """Return the next result, roughly in the order of the items.

        None: nothing is ready, with `wait` not within a fifth of a second either; `exhausted`
        says whether anything will be.

        Raises:
            Exception: what `items` raised, once all results from before have been taken.
        """
        end = time.monotonic() + (_WAIT_S if wait else 0.0)
        with self._changed:
            while not self._stopped:
                self._abandon_overdue()
                if self._ready:
                    result, size = self._ready.popleft()
                    self._held_bytes -= size
                    self._changed.notify_all()
                    return result
                if self._is_over() and self._fault is not None:
                    raise self._fault
                rest = end - time.monotonic()
                if self._is_over() or rest <= 0:
                    return None
                self._changed.wait(min(rest, self._patience_s()))
            return None

    def stop(self) -> None:
        """Read nothing more and drop what was read ahead. May be called by a signal handler."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        end = time.monotonic() + _GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            self._ready.clear()

    # -- in the readers' threads, apart from what holds the condition --------------------------

    def _reader(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="mvw-reader", daemon=True)

    def _run(self) -> None:
        while (job := self._begin()) is not None:
            done = self._work(job)
            if done is None or not self._finish(job, *done):
                return

    def _begin(self) -> _Job | None:
        """Wait for room, and take the next item."""
        with self._items_lock:
            job = _Job(threading.current_thread())
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._ended or self._has_room())
                if self._stopped or self._ended:
                    return None
                self._jobs.add(job)  # before there is an item: it is not over while one is fetched
            try:
                job.item = next(self._items, None)
            except BaseException as error:
                self._fault = error
            with self._changed:
                if job.item is None or self._stopped:
                    self._ended = True
                    self._jobs.discard(job)
                    self._changed.notify_all()
                    return None
                job.deadline = time.monotonic() + self._timeout_s
                return job

    def _work(self, job: _Job) -> tuple[Ready | Unreadable, int] | None:
        """Read and encode an item, and say how much memory that takes; None if it was too slow."""
        assert job.item is not None
        begin = time.perf_counter()
        try:
            for image in job.item.images:
                job.images.append(reading.read_image(image, self._max_pixels))
            read_ms = _ms_since(begin)
            with self._changed:
                if job.abandoned:
                    return None
                job.deadline = None
            with self._encode_lock:
                begin = time.perf_counter()
                value = self._encode(job.item, job.images)
                ready = Ready(job.item, job.images, value, read_ms, _ms_since(begin))
            return ready, pixel_bytes(ready.images) + tensor_bytes(value)
        except BaseException as error:  # else the reader would die, and its item with it
            if not isinstance(error, Exception):
                error = RuntimeError(f"{type(error).__name__}: {error}")
            return Unreadable(job.item, job.images, error), pixel_bytes(job.images)

    def _finish(self, job: _Job, result: Ready | Unreadable, size: int) -> bool:
        """Hand over a result, unless it comes too late."""
        with self._changed:
            if job.abandoned:
                return False
            self._jobs.discard(job)
            self._hand_over(result, size)
            self._typical_bytes += (size - self._typical_bytes) / 8
            return True

    # -- holding the condition ----------------------------------------------------------------

    def _hand_over(self, result: Ready | Unreadable, size: int) -> None:
        if self._stopped:
            return
        self._ready.append((result, size))
        self._held_bytes += size
        self._changed.notify_all()

    def _has_room(self) -> bool:
        held = len(self._ready) + len(self._jobs)
        expected = self._held_bytes + len(self._jobs) * self._typical_bytes
        return held < self._ahead and (held == 0 or expected < self._ahead_bytes)

    def _is_over(self) -> bool:
        return self._ended and not self._jobs and not self._ready

    def _patience_s(self) -> float:
        """How long until a reader may be overdue, of those at work."""
        deadlines = [job.deadline for job in self._jobs if job.deadline is not None]
        return max(0.0, min(deadlines, default=math.inf) - time.monotonic())

    def _abandon_overdue(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs if job.deadline is not None and job.deadline < now]:
            assert job.item is not None
            images = list(job.images)
            if len(images) == len(job.item.images):
                continue  # it has just been done
            job.abandoned = True
            self._jobs.discard(job)
            error = reading.too_slow(job.item.images[len(images)], self._timeout_s)
            late = Unreadable(job.item, images, error)
            self._hand_over(late, pixel_bytes(images))
            self._threads.remove(job.thread)
            self._threads.append(self._reader())
            self._threads[-1].start()


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000
