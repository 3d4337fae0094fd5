"""What is said between the process that has the items and those that have the model.

Whatever carries it (pipes, Ray) carries these objects, whole and in order.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State
from mvw_cli.errors import MvwError


@dataclass(frozen=True, slots=True)
class Begin:
    """Serve the items that follow."""

    run: str
    """Short hash of the fingerprint, for the records."""


@dataclass(frozen=True, slots=True)
class Give:
    """One item, to a worker that has said that it wants one."""

    item: Item


@dataclass(frozen=True, slots=True)
class End:
    """There are no more items."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what decodes, begin nothing more."""


Order = Begin | Give | End | Drain
"""To a worker."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is there."""

    revision: str | None


@dataclass(frozen=True, slots=True)
class Wants:
    """There is room for so many more items."""

    count: int


@dataclass(frozen=True, slots=True)
class Done:
    """What came of one item."""

    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stands:
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
class Died:
    """The worker is no more, or of no more use; what it held has to be done by another."""

    reason: str


Report = Loaded | Wants | Done | Stands | Ended | Broken | Died
"""From a worker, or from whoever notices its death."""


def portable(error: Exception) -> Exception:
    """Make an error one that another process can raise, with its traceback as a note.

    Of those that can't be sent, what a user is told remains.
    """
    trace = "".join(traceback.format_exception(error)).rstrip()
    try:
        error.add_note(f"In the worker:\n{trace}")
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # whatever their __reduce__ or __init__ raises
        pass
    if isinstance(error, MvwError):
        told = MvwError(error.message, cause=error.cause, hint=error.hint)
        told.exit_code = error.exit_code
        return told
    return RuntimeError(f"{type(error).__name__}: {error}")
