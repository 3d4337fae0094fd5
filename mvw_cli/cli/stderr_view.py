"""Stderr while a model is loaded and runs: notes, warnings, and a line that shows the loading.

What breaks stderr never costs a result. It knows no command and no event.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mvw_cli import console
from mvw_cli.cli.loading_line import ERASE, LoadingLine, terminal_width
from mvw_cli.text import one_line, printable

DIM, BOLD, WARN, PLAIN = "\x1b[2m", "\x1b[1;36m", "\x1b[33m", "\x1b[0m"


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
        self._loading = ""
        self._line = LoadingLine(
            self._write,
            style=lambda text: self._styled(text, DIM),
            width=lambda: terminal_width(self._stream.fileno()),
            dots="…" if self._drawn else "...",
            every_s=1.0 if ticking else None,
        )

    @property
    def live(self) -> bool:
        """Whether a person watches, and has not asked for silence."""
        return self._live and not self._quiet

    def loading(self, name: str) -> None:
        """Say what is being loaded, in a line that `loaded` takes away."""
        if self.live:
            self._loading = name
            self._line.start(name)

    def loading_tells(self, about: Callable[[], str]) -> None:
        """Let the loading line say more than a name and the seconds."""
        self._line.about = about

    def loaded(self) -> None:
        """Take the loading line away."""
        if self._loading:
            self._loading = ""
            self._line.stop()

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """Keep the warnings of others out of the loading line."""
        show = warnings.showwarning

        def shown_apart(*arguments: Any, **more: Any) -> None:
            loading = self._loading
            self.loaded()
            show(*arguments, **more)
            if loading:
                self.loading(loading)

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
        """Say what is left to say when the user interrupts."""
        if self._quiet:
            return ""
        self._line.silence()
        return f"{ERASE if self._loading else ''}{self._unsaid()}Interrupted.\n"

    def _unsaid(self) -> str:
        """What a view still has to say when it is interrupted."""
        return ""

    def _close_line(self) -> None:
        """End a line that a view has left open."""

    def _put_line(self, text: str, style: str = "") -> None:
        if self._quiet:
            return
        loading = self._loading
        self.loaded()
        self._close_line()
        self._write(self._styled(text, style) + "\n")
        if loading:
            self.loading(loading)

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{PLAIN}" if self._color and style else text

    def _write(self, text: str) -> None:
        # A reader of stderr that has gone must not take the answer with it.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
