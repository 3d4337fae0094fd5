"""One line on a terminal while a model is loaded: its name, what is fetched, the seconds gone.

Redrawn by a thread of its own, since the main one is inside PyTorch or a download. What has been
fetched is read off the hub's cache on disk, whoever writes there and with whatever library. It
knows no command; off a terminal nobody should start it.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

from mvw_cli.text import one_line, readable_bytes

ERASE = "\r\x1b[K"
_FEW_BYTES = 2**20
"""Configuration and tokenizer alone; below that, a fetch is over before it is read of."""


class LoadingLine:
    """A line that says what is being loaded, until `stop` takes it away.

    Args:
        write: takes the text to a terminal; called from another thread, too, until `stop` returns.
        width: columns of the terminal; a line that wraps could not be taken away.
        style: puts colour around the text.
        dots: what follows the name.
        every_s: seconds from one redrawing to the next; None never redraws.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        width: Callable[[], int],
        style: Callable[[str], str] = str,
        dots: str = "…",
        every_s: float | None = 1.0,
    ) -> None:
        self._write = write
        self._width = width
        self._style = style
        self._dots = dots
        self._every_s = every_s
        self._name = ""
        self._began: float | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.about: Callable[[], str] = str
        """Says more about the loading, in a few words; called about once a second."""

    def start(self, name: str) -> None:
        """Draw the line, and keep it up to date. The seconds count from the first start."""
        self._name = one_line(name)
        elapsed = self._began is not None
        self._began = monotonic() if self._began is None else self._began
        self._write(self._text(elapsed))
        if self._every_s is not None:
            self._stopped = threading.Event()
            self._thread = threading.Thread(
                target=self._keep, args=(self._stopped,), name="mvw-loading", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Take the line away; nothing is written after that."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._write(ERASE)

    def silence(self) -> None:
        """Write nothing any more, without waiting: for whoever ends the process."""
        self._stopped.set()

    def _keep(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._every_s):
            text = self._text(elapsed=True)
            if not stopped.is_set():
                self._write(ERASE + text)

    def _text(self, elapsed: bool) -> str:
        words = [f"Loading {self._name} {self._dots}"]
        if elapsed and self._began is not None:
            seconds = int(monotonic() - self._began)
            words += [about] if (about := self.about()) else []
            words += [f"{seconds} s"] if seconds else []
        return self._style(" ".join(words)[: max(1, self._width() - 1)])


def terminal_width(descriptor: int) -> int:
    """Say how many columns a terminal has; 80 where it does not tell."""
    with suppress(OSError):
        return os.get_terminal_size(descriptor).columns or 80
    return 80


def progress(model: str, revision: str | None = None) -> Callable[[], str]:
    """Make what tells how loading a model goes: bytes fetched so far, or what is to be read.

    Args:
        model: hub id or folder.
    """
    from mvw_cli.machine.facts import hub_cache
    from mvw_cli.machine.weights import locate_weights, on_the_hub

    held = locate_weights(model, revision)
    size = f"{readable_bytes(held.size_bytes)}," if held.size_bytes else ""
    if not on_the_hub(model):
        return lambda: size
    repository = hub_cache() / f"models--{model.replace('/', '--')}"
    before = _bytes_in(repository / "blobs")

    def told() -> str:
        now = _bytes_in(repository / "blobs")
        if now - before < _FEW_BYTES:
            return size
        total = _total(repository) if before < _FEW_BYTES else None
        of = "" if total is None or total < now else f" of {readable_bytes(total)}"
        return f"{readable_bytes(now - before)}{of} fetched,"

    return told


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # renamed once it is whole
                total += entry.stat().st_size
    return total


def _total(repository: Path) -> int | None:
    """Read how large all shards are off the index, once that has been fetched."""
    for index in repository.glob("snapshots/*/model.safetensors.index.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(index.read_text("utf-8"))["metadata"]["total_size"])
    return None
