"""What a person sees on stderr while a question is answered.

Writes as the events come: on a terminal the text in dim, the mark where the vision tokens go, the
figures at the end; elsewhere plain lines. It computes no figure and knows nothing of profiles.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mvw_cli import console
from mvw_cli.cli.loading_line import ERASE, LoadingLine, terminal_width
from mvw_cli.engine.completion import Completion
from mvw_cli.engine.types import Event, Finished, Token, Withdrawn
from mvw_cli.printable import one_line, printable

_DIM, _BOLD, _WARN, _PLAIN = "\x1b[2m", "\x1b[1;36m", "\x1b[33m", "\x1b[0m"


class View:
    """Stderr during one `mvw infer`. A stderr that breaks never costs the answer.

    Args:
        show_text: whether the text is shown as it comes; None: on a terminal.
        ticking: whether the loading line counts; not where others write to the terminal as well.
    """

    def __init__(self, *, show_text: bool | None, ticking: bool = True) -> None:
        self._stream = sys.stderr
        self._live = console.is_terminal(self._stream)
        self._color = console.has_color(self._stream)
        self._quiet = console.settings.quiet
        self._drawn = (self._stream.encoding or "").lower().startswith("utf")
        self._show = not self._quiet and (self._live if show_text is None else show_text)
        self._pieces: list[str] = []
        self._loading = ""
        self._line_open = False
        self._line = LoadingLine(
            self._write,
            style=lambda text: self._styled(text, _DIM),
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
        self._put_line(one_line(text), _WARN)

    def show(self, event: Event) -> None:
        """Show what one event brings."""
        match event:
            case Token():
                self._pieces.append(event.text)
                if self._show:
                    self._put_text(event.text)
            case Withdrawn():
                mark, rule = withdrawal_line(event), "──" if self._drawn else "--"
                self._put_line(f"{rule} {mark} {rule}" if self._live else mark, _BOLD)
            case Finished():
                self._close_line()

    def figures(self, completion: Completion, policy: str) -> None:
        """Write the last line."""
        self._put_line(figures_line(completion, policy), _DIM)

    def last_words(self) -> str:
        """Say what is left to say when the user interrupts: the text, unless it was shown."""
        if self._quiet:
            return ""
        self._line.silence()
        start = ERASE if self._loading else ""
        text = printable("".join(self._pieces))
        if self._show:
            text = "\n" if self._line_open else ""
        elif text:
            text += "\n"
        return f"{start}{text}Interrupted.\n"

    def _put_text(self, text: str) -> None:
        if not self._line_open:
            text = text.lstrip(" ")  # of a word that starts a line
        if text:
            self.loaded()
            self._write(self._styled(printable(text), _DIM))
            self._line_open = not text.endswith("\n")

    def _put_line(self, text: str, style: str = "") -> None:
        if self._quiet:
            return
        loading = self._loading
        self.loaded()
        self._close_line()
        self._write(self._styled(text, style) + "\n")
        if loading:
            self.loading(loading)

    def _close_line(self) -> None:
        if self._line_open:
            self._line_open = False
            self._write("\n")

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{_PLAIN}" if self._color and style else text

    def _write(self, text: str) -> None:
        # A reader of stderr that has gone must not take the answer with it.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def withdrawal_line(event: Withdrawn) -> str:
    """Say what was withdrawn, when, and what it freed."""
    freed = event.kv_bytes_before - event.kv_bytes_after
    return (
        f"vision withdrawn after token {event.step}: {event.vision_tokens} vision tokens "
        f"({event.entries} cache entries), {size(freed)} of {size(event.kv_bytes_before)} freed"
    )


def figures_line(completion: Completion, policy: str) -> str:
    """Put time to first token, rates and KV bytes into one line."""
    timings, withdrawal = completion.timings, completion.withdrawal
    parts = [f"TTFT {timings.ttft_ms:.0f} ms"]
    if withdrawal is None:
        parts.append(f"{_rate(timings.tokens_per_s)}, vision kept to the end ({policy})")
        end = size(completion.kv_bytes_end)
        parts.append(f"KV cache {size(completion.kv_bytes_prefill)} after the prompt, {end} at end")
    else:
        before, after = timings.tokens_per_s_before, timings.tokens_per_s_after
        parts.append(f"{_rate(before)} before the withdrawal, {_rate(after)} after")
        parts.append(
            f"KV cache {size(withdrawal.kv_bytes_before)} before, "
            f"{size(withdrawal.kv_bytes_after)} after"
        )
    return " | ".join(parts)


def size(count: int) -> str:
    """Write a number of bytes with the unit that suits it."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def _rate(tokens_per_s: float | None) -> str:
    return "too few tokens for a rate" if tokens_per_s is None else f"{tokens_per_s:.1f} tokens/s"
