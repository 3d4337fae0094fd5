"""Who serves the items: this process, several on this machine, or a cluster.

All take the same items and yield the same records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State


class Executor(Protocol):
    """A context manager; entering it loads the model, or what will load it."""

    @property
    def revision(self) -> str | None:
        """The commit of the weights that were loaded, where the hub told it."""

    @property
    def state(self) -> State:
        """How things stand, all workers together."""

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """Serve items; yield one record for each, as they end.

        Args:
            run: short hash of the fingerprint, for the records.
            draining: once it says true, nothing more is begun; what decodes is finished.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...
