"""The model in this very process: one GPU, or the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.workers.worker import Job, Worker


class Here:
    """Serves items in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None

    def __enter__(self) -> Self:
        self._worker = Worker(self._job)
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker = None

    @property
    def revision(self) -> str | None:
        return self._loaded.revision

    @property
    def state(self) -> State:
        return State() if self._worker is None else self._worker.state

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        return self._loaded.records(items, run=run, draining=draining)

    @property
    def _loaded(self) -> Worker:
        assert self._worker is not None
        return self._worker
