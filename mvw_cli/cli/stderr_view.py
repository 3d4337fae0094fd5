"""Stderr while a model is loaded and runs: notes, warnings, and a line that shows the loading.

What breaks stderr never costs a result. The line is drawn by hand and not by Rich: it comes before
any import that takes time, and it must fall silent at once where Ctrl-C ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from mvw_cli import console
from mvw_cli.text import one_line, printable, readable_bytes

DIM, BOLD, WARN, PLAIN = "\x1b[2m", "\x1b[1;36m", "\x1b[33m", "\x1b[0m"
ERASE = "\r\x1b[K"
REDRAW_S = 1.0
_FEW_BYTES = 2**20
"""Configuration and tokenizer alone; below that, a fetch is over before it is read of."""


class StderrView:
    """What every view on stderr can do.

    Args:
        ticking: whether the loading line counts; not where others write to the terminal as well.
    """

    def __init__(self, *, ticking: bool = True) -> None:
        self._stream = sys.stderr
        self._live = console.is_terminal(self._stream)
        self._color = console.has_color(self._stream)
        self._quiet = console.settings.quiet
        self._drawn = (self._stream.encoding or "").lower().startswith("utf")
        self._ticking = ticking
        self._loading = ""
        self._began: float | None = None
        self._progress: Callable[[], str] = str
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def live(self) -> bool:
        """Whether a person watches, and has not asked for silence."""
        return self._live and not self._quiet

    def loading(self, name: str) -> None:
        """Show what is being loaded, in a line that `loaded` takes away.

        The seconds in it count from the first call.
        """
        if not self.live:
            return
        self._loading = one_line(name)
        self._write(self._loading_line())
        self._began = self._began or monotonic()
        if self._ticking:
            self._stopped = threading.Event()
            self._thread = threading.Thread(
                target=self._redraw, args=(self._stopped,), name="mvw-loading", daemon=True
            )
            self._thread.start()

    def loading_tells(self, progress: Callable[[], str]) -> None:
        """Let the loading line say more than a name and the seconds, in a few words."""
        self._progress = progress

    def loaded(self) -> None:
        """Take the loading line away; nothing is written there after that."""
        if self._loading:
            self._stopped.set()
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            self._loading = ""
            self._write(ERASE)

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """Keep the warnings of others out of the loading line."""
        show = warnings.showwarning

        def shown_apart(*arguments: Any, **more: Any) -> None:
            with self._without_loading_line():
                show(*arguments, **more)

        warnings.showwarning = shown_apart
        try:
            yield
        finally:
            warnings.showwarning = show

    def note(self, text: str) -> None:
        """Write one line."""
        self._put_line(printable(text))

    def warn(self, text: str) -> None:
        """Write one line that the user should not miss."""
        self._put_line(one_line(text), WARN)

    def on_interrupt(self) -> str:
        """Return what is left to write when the user interrupts."""
        if self._quiet:
            return ""
        self._stopped.set()  # without waiting: the process ends
        return f"{ERASE if self._loading else ''}{self._unsaid()}Interrupted.\n"

    def _unsaid(self) -> str:
        """Return what a view still has to write when it is interrupted."""
        return ""

    def _close_line(self) -> None:
        """End a line that a view has left open."""

    def _put_line(self, text: str, style: str = "") -> None:
        if self._quiet:
            return
        with self._without_loading_line():
            self._close_line()
            self._write(self._styled(text, style) + "\n")

    @contextmanager
    def _without_loading_line(self) -> Iterator[None]:
        name = self._loading
        self.loaded()
        yield
        if name:
            self.loading(name)

    def _redraw(self, stopped: threading.Event) -> None:
        while not stopped.wait(REDRAW_S):
            text = self._loading_line()
            if not stopped.is_set():
                self._write(ERASE + text)

    def _loading_line(self) -> str:
        words = [f"Loading {self._loading} {'…' if self._drawn else '...'}"]
        if self._began is not None:
            seconds = int(monotonic() - self._began)
            words += [progress] if (progress := self._progress()) else []
            words += [f"{seconds} s"] if seconds else []
        return self._one_row(" ".join(words))

    def _one_row(self, text: str) -> str:
        """Cut a line that is to be redrawn: one that wraps could not be taken away."""
        width = terminal_width(self._stream.fileno())
        return self._styled(text[: max(1, width - 1)], DIM)

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{PLAIN}" if self._color and style else text

    def _write(self, text: str) -> None:
        # A reader of stderr that has gone must not take the answer with it.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


class ProgressView(StderrView):
    """Stderr while measurements run: one line that is redrawn, and remarks."""

    def __init__(self) -> None:
        super().__init__()
        self._open = False

    def stage(self, text: str) -> None:
        """Write what begins: a line of its own where nothing is redrawn."""
        if self._live:
            self.progress(text)
        elif not self._quiet:
            self.note(text)

    def progress(self, text: str, done: int = 0, total: int = 0) -> None:
        """Write how far it is, in the line that is redrawn."""
        if not self.live:
            return
        self.loaded()
        count = f" {done} of {total}" if total else ""
        self._write(ERASE + self._one_row(f"{one_line(text)}{count}"))
        self._open = True

    def done(self) -> None:
        """Take the line away."""
        self._close_line()

    def _close_line(self) -> None:
        if self._open:
            self._open = False
            self._write(ERASE)

    def _unsaid(self) -> str:
        return ERASE if self._open else ""


def terminal_width(descriptor: int) -> int:
    """Return how many columns a terminal has; 80 where it does not tell."""
    with suppress(OSError):
        return os.get_terminal_size(descriptor).columns or 80
    return 80


def loading_progress(model: str, revision: str | None = None) -> Callable[[], str]:
    """Make what tells how loading a model goes: bytes fetched so far, or what is to be read.

    What has been fetched is read off the hub's cache on disk, whoever writes there.

    Args:
        model: hub id or folder.
    """
    from mvw_cli.machine.facts import hub_cache, locate_weights, on_the_hub

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
