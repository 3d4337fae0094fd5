"""Work on items ahead of whoever needs it, in threads, within bounds of number and memory.

Threads suffice: Pillow, tokenizers and hashing let go of the interpreter lock where they work. A
thread that hangs on an item is abandoned and replaced.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from mvw_cli.batch.items import Item

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
