"""Stderr while a model is loaded and runs: notes, warnings, and one line that is redrawn.

What breaks stderr never costs a result. The line is drawn by hand and not by Rich: it comes before
any import that takes time, and it must fall silent at once where Ctrl-C ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from mvw_cli import console
from mvw_cli.profiles.store import DEFAULT
from mvw_cli.text import one_line, printable, readable_bytes

DIM, BOLD, WARN, PLAIN = "\x1b[2m", "\x1b[1;36m", "\x1b[33m", "\x1b[0m"
ERASE = "\r\x1b[K"
REDRAW_S = 1.0


class StderrView:
    """What every view on stderr can do.

    Args:
        ticking: whether the line that is redrawn counts seconds; not where others write to the
            terminal as well, nor while time is measured.
    """

    def __init__(self, *, ticking: bool = True) -> None:
        self._stream = sys.stderr
        self._live = console.is_terminal(self._stream)
        self._color = console.has_color(self._stream)
        self._quiet = console.settings.quiet
        self._drawn = (self._stream.encoding or "").lower().startswith("utf")
        self._ticking = ticking
        self._line = ""
        """What stands in the line that is redrawn; empty while there is none."""
        self._began = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def live(self) -> bool:
        """Whether a person watches, and has not asked for silence."""
        return self._live and not self._quiet

    def progress(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show what is being done, in the line that is redrawn.

        The seconds in it count from the first call.
        """
        if not self.live:
            return
        erase = ERASE if self._line else ""
        self._line = one_line(text) + (f" {done} of {total}" if total else "")
        self._began = self._began or monotonic()
        self._write(erase + self._drawn_line())
        if self._ticking and self._thread is None:
            self._stopped = threading.Event()
            self._thread = threading.Thread(
                target=self._tick, args=(self._stopped,), name="mvw-progress", daemon=True
            )
            self._thread.start()

    def stage(self, text: str) -> None:
        """Write what begins: a line of its own where nothing is redrawn."""
        if self._live:
            self.progress(text)
        else:
            self.note(text)

    def loading(self, name: str) -> None:
        """Show what is being loaded."""
        self.progress(f"Loading {name} {'…' if self._drawn else '...'}")

    def loading_model(self, model: str, revision: str | None) -> None:
        """Show that a model is loaded, and its size where its weights are here.

        Args:
            model: hub id or folder.
        """
        if self.live:
            from mvw_cli.machine.checkpoint import locate_weights

            size = locate_weights(model, revision).size_bytes
            self.loading(f"{model}, {readable_bytes(size)}" if size else model)

    def clear(self) -> None:
        """Take the line that is redrawn away; nothing is written there after that."""
        if self._line:
            self._stopped.set()
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            self._line = ""
            self._write(ERASE)

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """Keep the warnings of others out of the line that is redrawn, and clear it at the end."""
        show = warnings.showwarning

        def shown_apart(*arguments: Any, **more: Any) -> None:
            with self._line_apart():
                show(*arguments, **more)

        warnings.showwarning = shown_apart
        try:
            yield
        finally:
            warnings.showwarning = show
            self.clear()

    def note_embedded(self) -> None:
        """Tell that nobody has named a model, and what answers instead."""
        self.note(
            f"No profile or model is named: the embedded `{DEFAULT}` answers, which reads only "
            "scenes of coloured shapes. A real one: --model ORG/NAME or --profile NAME."
        )

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
        return f"{ERASE if self._line else ''}{self._unsaid()}Interrupted.\n"

    def _unsaid(self) -> str:
        """Return what a view still has to write when it is interrupted."""
        return ""

    def _close_line(self) -> None:
        """End a line that a view has left open."""

    def _put_line(self, text: str, style: str = "") -> None:
        if self._quiet:
            return
        with self._line_apart():
            self._close_line()
            self._write(self._styled(text, style) + "\n")

    @contextmanager
    def _line_apart(self) -> Iterator[None]:
        """Take the line that is redrawn away for as long as something else is written."""
        line = self._line
        self.clear()
        yield
        if line:
            self.progress(line)

    def _tick(self, stopped: threading.Event) -> None:
        while not stopped.wait(REDRAW_S):
            line = self._drawn_line()
            if not stopped.is_set():
                self._write(ERASE + line)

    def _drawn_line(self) -> str:
        """Cut the line that is redrawn to the terminal: one that wraps could not be taken away."""
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            width = 80
        seconds = int(monotonic() - self._began) if self._ticking else 0
        line = f"{self._line} {seconds} s" if seconds else self._line
        return self._styled(line[: max(1, width - 1)], DIM)

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{PLAIN}" if self._color and style else text

    def _write(self, text: str) -> None:
        # A reader of stderr that has gone must not take the answer with it.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
