"""What a person sees on stderr while a batch runs, and when it ends.

A bar with figures on a terminal, a line every few seconds elsewhere. A thread of its own draws,
from numbers that others count: it computes none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.batch.store.tally import Tally
from mvw_cli.cli.batch.summary import Summary, rate, readable_time
from mvw_cli.cli.stderr_view import BOLD, StderrView
from mvw_cli.text import one_line, printable, readable_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from mvw_cli.batch.serve.server import State

EVERY_S = 10.0
"""Seconds from one line to the next, where nobody redraws them."""
_REDRAWS_PER_S = 4
_SHOWN = 10
"""Failures that are told one by one."""
_SHOW_CURSOR = "\x1b[?25h"


class BatchView(StderrView):
    """Stderr during one `mvw batch`."""

    def __init__(self) -> None:
        super().__init__()
        self._leaving: Callable[[], None] | None = None
        self._bar: Live | None = None
        self._told = 0
        self._lock = threading.Lock()

    def leaving(self, clean_up: Callable[[], None]) -> None:
        """Call this before the last words, if there are any."""
        self._leaving = clean_up

    def listing(self, name: str) -> None:
        """Say that items are listed, in a line that `listed` takes away."""
        self.loading(f"the list of items from {name}" if name else "the list of items")

    def listed(self) -> None:
        """Take that line away."""
        self.loaded()

    def loading(self, name: str, about: Callable[[], str] | None = None) -> None:
        """Say what is being loaded, and with `about` how that goes."""
        if about is not None:
            self.loading_tells(about)
        super().loading(name)

    def show(self, record: Mapping[str, Any]) -> None:
        """Tell of a failure; what is answered only moves the bar."""
        if record["status"] == "ok":
            return
        self._told += 1
        if self._told <= _SHOWN:
            error = record["error"]
            cause = f": {error['cause']}" if error["cause"] else ""
            self.warn(f"failed: {record['id']}: {error['message']}{cause}")
        if self._told == _SHOWN:
            self.note("Further failures are counted; the records say what they are.")

    @contextmanager
    def following(
        self, tally: Tally, state: Callable[[], State], finishing: Callable[[], bool]
    ) -> Iterator[None]:
        """Show how things go, until the end of the block.

        Args:
            finishing: whether the user has asked to finish what is begun.
        """
        over = threading.Event()
        drawing = self._drawing(tally, state, finishing)
        every = 1 / _REDRAWS_PER_S if self.live else EVERY_S

        def follow() -> None:
            told, last = False, 0.0
            while not over.wait(1 / _REDRAWS_PER_S):
                self._tell_notes(state())
                if finishing() and not told:
                    told = True
                    self.note(_finishing(state()))
                last += 1 / _REDRAWS_PER_S
                if not self.live and last >= every:
                    last = 0.0
                    self.note(progress_line(tally, state()))

        thread = threading.Thread(target=follow, name="mvw-progress", daemon=True)
        with drawing:
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                self._tell_notes(state())

    def summary(self, summary: Summary) -> None:
        """Write how it went."""
        lines = summary.lines()
        width = max(len(label) for label, _ in lines)
        for label, text in lines:
            self._put_line(f"{self._styled(label.ljust(width), BOLD)}  {printable(text)}")

    def _unsaid(self) -> str:
        """What the end of the process must not leave behind."""
        if self._leaving is not None:
            with suppress(Exception):
                self._leaving()
        return f"{_SHOW_CURSOR}\n" if self._bar is not None else ""

    def _tell_notes(self, state: State) -> None:
        while state.notes:
            with suppress(IndexError):  # another thread has told it
                self.note(state.notes.popleft())

    def _put_line(self, text: str, style: str = "") -> None:
        if self._bar is None or self._quiet:
            super()._put_line(text, style)
            return
        from rich.text import Text

        line = Text.from_ansi(self._styled(text, style))
        with suppress(OSError, ValueError):
            self._bar.console.print(line, soft_wrap=True)

    @contextmanager
    def _drawing(
        self, tally: Tally, state: Callable[[], State], finishing: Callable[[], bool]
    ) -> Iterator[None]:
        if not self.live:
            yield
            return
        from rich.live import Live

        def draw() -> RenderableType:
            return _renderable(tally, state(), finishing())

        with Live(
            console=console.err(),
            get_renderable=draw,
            refresh_per_second=_REDRAWS_PER_S,
            transient=True,
        ) as self._bar:
            try:
                yield
            finally:
                bar, self._bar = self._bar, None
                del bar


def progress_line(tally: Tally, state: State) -> str:
    """Say how things stand, in one line."""
    done = tally.skipped + tally.served
    return ", ".join([f"{done:,} of {tally.listed:,}", *_figures(tally, state)])


def _figures(tally: Tally, state: State) -> list[str]:
    parts = [f"{tally.failed:,} failed"] if tally.failed else []
    if tally.items_per_s is not None:
        parts.append(f"{rate(tally.items_per_s)} items/s")
    if state.generated_tokens and tally.elapsed_s:
        parts.append(f"{rate(state.generated_tokens / tally.elapsed_s)} tokens/s")
    parts.append(f"slots {state.slots}/{state.max_slots}")
    if state.kv_allocated_bytes:
        parts.append(f"KV cache {readable_bytes(state.kv_allocated_bytes)}")
    if tally.left_s is not None:
        parts.append(f"{readable_time(tally.left_s)} left")
    return parts


def _finishing(state: State) -> str:
    begun = f"{state.slots} answers that are" if state.slots != 1 else "the answer that is"
    return one_line(f"Finishing {begun} begun; Ctrl-C again leaves at once.")


def _renderable(tally: Tally, state: State, finishing: bool) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = tally.skipped + tally.served
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column()
    bar.add_column(ratio=1)
    bar.add_column(justify="right")
    bar.add_row(
        Text("Finishing" if finishing else "Answering", style="bold"),
        ProgressBar(total=max(1, tally.listed), completed=done),
        Text(f"{done:,} of {tally.listed:,}"),
    )
    return Group(bar, Text("  ".join(_figures(tally, state)), style="dim"))
