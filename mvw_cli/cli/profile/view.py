"""What a person sees on stderr while measurements run: one line that is redrawn, and remarks."""

from __future__ import annotations

from mvw_cli.cli.stderr_view import DIM, ERASE, StderrView, terminal_width
from mvw_cli.text import one_line


class ProfileView(StderrView):
    """Stderr during one `mvw profile`."""

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
        width = terminal_width(self._stream.fileno()) - 1
        line = f"{one_line(text)}{count}"[: max(1, width)]
        self._write(ERASE + self._styled(line, DIM))
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
