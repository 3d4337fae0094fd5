"""What the dispatcher and its workers send each other, whole and in order, by pipe or by Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State


@dataclass(frozen=True, slots=True)
class Begin:
    """Serve the items that follow."""

    run: str
    """Short hash of the fingerprint, for the records."""


@dataclass(frozen=True, slots=True)
class Assign:
    """One item, to a worker that has requested one."""

    item: Item


@dataclass(frozen=True, slots=True)
class End:
    """There are no more items."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what decodes, begin nothing more."""


Order = Begin | Assign | End | Drain
"""To a worker."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is loaded."""

    revision: str | None


@dataclass(frozen=True, slots=True)
class RequestItems:
    """There is room for so many more items."""

    count: int


@dataclass(frozen=True, slots=True)
class Done:
    """What came of one item."""

    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Status:
    """How things stand since `Begin`; notes are only in one of these."""

    state: State


@dataclass(frozen=True, slots=True)
class Ended:
    """After `End` or `Drain`: nothing is held any more."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An error that another try would meet again; the worker does nothing more."""

    error: Exception
    loading: bool


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker is no more, or of no more use; what it held has to be done by another."""

    reason: str


Report = Loaded | RequestItems | Done | Status | Ended | Broken | Exited
"""From a worker, or from the launcher that notices its death."""
