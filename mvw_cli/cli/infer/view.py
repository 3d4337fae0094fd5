"""What a person sees on stderr while a question is answered.

Writes as the events come: on a terminal the text in dim, the mark where the vision tokens go, the
figures at the end; elsewhere plain lines.
"""

from __future__ import annotations

from mvw_cli.cli.stderr_view import BOLD, DIM, StderrView
from mvw_cli.engine.types import Completion, Event, Finished, Restored, Token, Withdrawn
from mvw_cli.text import plural, printable, readable_bytes


class View(StderrView):
    """Stderr during one `mvw infer`.

    Args:
        show_text: whether the text is shown as it comes; None: on a terminal.
        ticking: as in `StderrView`.
    """

    def __init__(self, *, show_text: bool | None, ticking: bool = True) -> None:
        super().__init__(ticking=ticking)
        self._show = not self._quiet and (self._live if show_text is None else show_text)
        self._pieces: list[str] = []
        self._line_open = False

    def show(self, event: Event) -> None:
        """Show what one event brings."""
        match event:
            case Token():
                self._pieces.append(event.text)
                if self._show:
                    self._put_text(event.text)
            case Withdrawn():
                self._put_mark(withdrawal_line(event))
            case Restored():
                self._put_mark(restored_line(event))
            case Finished():
                self._close_line()

    def _put_mark(self, mark: str) -> None:
        rule = "──" if self._drawn else "--"
        self._put_line(f"{rule} {mark} {rule}" if self._live else mark, BOLD)

    def figures(self, completion: Completion, policy: str) -> None:
        """Write the last line."""
        self._put_line(figures_line(completion, policy), DIM)

    def _unsaid(self) -> str:
        """The text, unless it was shown."""
        if self._show:
            return "\n" if self._line_open else ""
        text = printable("".join(self._pieces))
        return f"{text}\n" if text else ""

    def _put_text(self, text: str) -> None:
        if not self._line_open:
            text = text.lstrip(" ")  # of a word that starts a line
        if text:
            self.clear()
            self._write(self._styled(printable(text), DIM))
            self._line_open = not text.endswith("\n")

    def _close_line(self) -> None:
        if self._line_open:
            self._line_open = False
            self._write("\n")


def withdrawal_line(event: Withdrawn) -> str:
    """Write what was withdrawn, when, and what it freed."""
    freed = event.kv_bytes_before - event.kv_bytes_after
    before = readable_bytes(event.kv_bytes_before)
    gone = f"{event.entries} cache entries), {readable_bytes(freed)} of {before} freed"
    if not event.complete:
        return f"vision thinned out after token {event.step} ({gone}"
    size = readable_bytes(event.offloaded_bytes)
    offloaded = f", {size} offloaded" if event.offloaded_bytes else ""
    kept = ""
    if event.recurrent_layers:
        kept = f"; the states of {plural(event.recurrent_layers, 'recurrent layer')} stay"
    return (
        f"vision withdrawn after token {event.step}: {event.vision_tokens} vision tokens "
        f"({gone}{offloaded}{kept}"
    )


def restored_line(event: Restored) -> str:
    """Write what has come back, and when."""
    back = readable_bytes(event.kv_bytes_after - event.kv_bytes_before)
    return f"vision back after token {event.step}: {event.entries} cache entries, {back}"


def figures_line(completion: Completion, policy: str) -> str:
    """Put time to first token, rates and KV bytes into one line."""
    timings, withdrawal = completion.timings, completion.withdrawal
    parts = [f"TTFT {timings.ttft_ms:.0f} ms"]
    if withdrawal is None:
        parts.append(f"{_rate(timings.tokens_per_s)}, {_kept(completion)} ({policy})")
        end = readable_bytes(completion.kv_bytes_end)
        start = readable_bytes(completion.kv_bytes_prefill)
        parts.append(f"KV cache {start} after the prompt, {end} at end")
    else:
        before, after = timings.tokens_per_s_before, timings.tokens_per_s_after
        parts.append(f"{_rate(before)} before the withdrawal, {_rate(after)} after")
        parts.append(
            f"KV cache {readable_bytes(withdrawal.kv_bytes_before)} before, "
            f"{readable_bytes(withdrawal.kv_bytes_after)} after"
        )
    return " | ".join(parts)


def _kept(completion: Completion) -> str:
    """Write what a token attended to where nothing was withdrawn while decoding."""
    seen, whole = completion.vision.attended_per_token, completion.vision_tokens
    if seen >= whole:
        return "vision kept to the end"
    return f"a token attended to {seen:.1f} of {whole} vision tokens, mean over the layers"


def _rate(tokens_per_s: float | None) -> str:
    return "too few tokens for a rate" if tokens_per_s is None else f"{tokens_per_s:.1f} tokens/s"
