"""What a person sees on stderr while a batch runs, and when it ends.

A bar with figures on a terminal, a line every few seconds elsewhere, from numbers that others
count; at the end a summary, which `--json` writes as well.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.batch.store.output import Output
from mvw_cli.batch.store.tally import Tally
from mvw_cli.cli.stderr_view import BOLD, StderrView
from mvw_cli.text import number, one_line, printable, readable_bytes

if TYPE_CHECKING:  # neither is imported before it is needed
    from rich.progress import Progress

    from mvw_cli.batch.serve.server import State

SCHEMA_VERSION = 1
EVERY_S = 10.0
"""Seconds from one line to the next, where nobody redraws them."""
_REDRAWS_PER_S = 4
_SHOWN = 10
"""Failures that are told one by one."""
_SHOW_CURSOR = "\x1b[?25h"
_ONCE = ("--overwrite", "--retry-failed", "--dry-run", "--json")
"""Switches that are about one run, not about what is asked."""


class BatchView(StderrView):
    """Stderr during one `mvw batch`."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._failures = 0
        self.clean_up: Callable[[], None] = lambda: None
        """Called when the user interrupts and nothing else is left to be done."""

    def show(self, record: Mapping[str, Any]) -> None:
        """Tell of a failure; what is answered only moves the bar."""
        if record["status"] == "ok":
            return
        self._failures += 1
        if self._failures <= _SHOWN:
            error = record["error"]
            cause = f": {error['cause']}" if error["cause"] else ""
            self.warn(f"failed: {record['id']}: {error['message']}{cause}")
        if self._failures == _SHOWN:
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

        def follow() -> None:
            told, waited_s = False, 0.0
            while not over.wait(1 / _REDRAWS_PER_S):
                self._write_notes(state())
                if finishing() and not told:
                    told = True
                    self.note(_finishing(state()))
                waited_s += 1 / _REDRAWS_PER_S
                if not self.live and waited_s >= EVERY_S:
                    waited_s = 0.0
                    self.note(progress_line(tally, state()))

        thread = threading.Thread(target=follow, name="mvw-progress", daemon=True)
        with self._drawing(tally, state, finishing):
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                self._write_notes(state())

    def summary(self, summary: Summary) -> None:
        """Write how it went; under -q one line, where it did not go well."""
        if self._quiet:
            if line := summary.complaint():
                self._write(f"{one_line(line)}\n")
            return
        lines = summary.lines()
        width = max(len(label) for label, _ in lines)
        for label, text in lines:
            self._put_line(f"{self._styled(label.ljust(width), BOLD)}  {printable(text)}")

    def _unsaid(self) -> str:
        with suppress(Exception):
            self.clean_up()
        return f"{_SHOW_CURSOR}\n" if self._bar is not None else ""

    def _write_notes(self, state: State) -> None:
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
        from rich.console import RenderableType
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.text import Text

        class Bar(Progress):
            """A bar, and the figures below it; drawn by Rich's thread."""

            def get_renderables(self) -> Iterator[RenderableType]:
                for task in self.tasks:
                    task.description = "Finishing" if finishing() else "Answering"
                    task.completed = tally.skipped + tally.served
                yield self.make_tasks_table(self.tasks)
                yield Text("  ".join(_figures(tally, state())), style="dim")

        with Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(separator=" of "),
            console=console.err(),
            refresh_per_second=_REDRAWS_PER_S,
            transient=True,
            expand=True,
        ) as bar:
            bar.add_task("", total=max(1, tally.listed))
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None


def progress_line(tally: Tally, state: State) -> str:
    """Write how things stand, in one line."""
    done = tally.skipped + tally.served
    return ", ".join([f"{done:,} of {tally.listed:,}", *_figures(tally, state)])


def _figures(tally: Tally, state: State) -> list[str]:
    parts = [f"{tally.failed:,} failed"] if tally.failed else []
    if tally.items_per_s is not None:
        parts.append(f"{number(tally.items_per_s)} items/s")
    if state.generated_tokens and tally.elapsed_s:
        parts.append(f"{number(state.generated_tokens / tally.elapsed_s)} tokens/s")
    parts.append(f"slots {state.slots}/{state.max_slots}")
    if state.kv_allocated_bytes:
        parts.append(f"KV cache {readable_bytes(state.kv_allocated_bytes)}")
    if tally.left_s is not None:
        parts.append(f"{duration(tally.left_s)} left")
    return parts


def _finishing(state: State) -> str:
    begun = f"{state.slots} answers that are" if state.slots != 1 else "the answer that is"
    return f"Finishing {begun} begun; Ctrl-C again leaves at once."


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run, by the keys that `--json` writes; docs/json.md describes them."""

    output: str
    log: str
    listed: int
    skipped: int
    """Items that had a record before."""
    answered: int
    failed: int
    remaining: int
    failed_in_log: int
    """Failed items of the log, those of earlier runs included."""
    errors: dict[str, int]
    """Failed items of this run, by the type of what went wrong."""
    interrupted: bool
    elapsed_s: float
    """From the moment that the model was loaded."""
    items_per_s: float | None
    tokens_per_s: float | None
    generated_tokens: int
    latency_ms: dict[str, float] | None
    withdrawal: dict[str, int]
    kv_allocated_bytes_peak: int | None
    restarts: int
    """Times that an item was begun again, for want of memory or next to a failing one."""
    retry: str | None
    """Command that tries again what failed."""
    go_on: str | None
    """Command that does the rest."""

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def lines(self) -> list[tuple[str, str]]:
        """Write it for people: a label and a text each."""
        counts = [f"{self.answered:,} answered"]
        if self.failed:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.errors.items())
            counts.append(f"{self.failed:,} failed ({kinds})")
        if self.skipped:
            counts.append(f"{self.skipped:,} had their record before")
        if self.remaining:
            counts.append(f"{self.remaining:,} left")
        lines = [("Items", ", ".join(counts))]
        if self.answered + self.failed:
            rates = [duration(self.elapsed_s)]
            rates += [] if self.items_per_s is None else [f"{number(self.items_per_s)} items/s"]
            rates += [] if self.tokens_per_s is None else [f"{number(self.tokens_per_s)} tokens/s"]
            lines.append(("Time", ", ".join(rates)))
        if self.latency_ms is not None:
            median, p90 = (duration(self.latency_ms[key] / 1e3) for key in ("median", "p90"))
            lines.append(("Latency", f"median {median}, p90 {p90}"))
        if self.withdrawal["withdrawals"]:
            freed = self.withdrawal["kv_bytes_freed"]
            share = freed / max(1, self.withdrawal["kv_bytes_before"])
            text = (
                f"{self.withdrawal['withdrawals']:,} times, {readable_bytes(freed)} of cache "
                f"entries freed, {share:.0%} of what was there"
            )
            lines.append(("Withdrawal", text))
        if self.kv_allocated_bytes_peak:
            lines.append(("KV cache", f"{readable_bytes(self.kv_allocated_bytes_peak)} at most"))
        lines.append(("Records", self.output))
        if self.go_on is not None:
            lines.append(("Go on", self.go_on))
        if self.retry is not None:
            lines.append(("Retry failed", self.retry))
        return lines

    def complaint(self) -> str:
        """Write in one line what did not go well; empty where all did."""
        if self.interrupted and self.go_on is not None:
            return f"Interrupted, {self.remaining:,} of {self.listed:,} items left: {self.go_on}"
        if self.retry is not None:
            return f"{self.failed_in_log:,} of {self.listed:,} items failed: {self.retry}"
        return ""


def summarise(
    tally: Tally,
    state: State | None,
    *,
    output: Output,
    failed_in_log: int,
    interrupted: bool,
    words: Sequence[str],
) -> Summary:
    """Sum a run up.

    Args:
        state: of the executor; None where nothing had to be done.
        words: of the command line, after `mvw batch`.
    """
    elapsed, tokens = tally.elapsed_s, tally.generated_tokens
    return Summary(
        output=output.name,
        log=str(output.log),
        listed=tally.listed,
        skipped=tally.skipped,
        answered=tally.answered,
        failed=tally.failed,
        remaining=tally.remaining,
        failed_in_log=failed_in_log,
        errors=dict(tally.errors.most_common()),
        interrupted=interrupted,
        elapsed_s=elapsed,
        items_per_s=tally.items_per_s,
        tokens_per_s=tokens / elapsed if tokens and elapsed else None,
        generated_tokens=tokens,
        latency_ms=tally.latency_ms(),
        withdrawal={
            "withdrawals": tally.withdrawals,
            "kv_bytes_before": tally.kv_bytes_before,
            "kv_bytes_freed": tally.kv_bytes_freed,
        },
        kv_allocated_bytes_peak=None if state is None else state.kv_allocated_bytes_peak,
        restarts=0 if state is None else state.restarts,
        retry=again(words, "--retry-failed") if failed_in_log else None,
        go_on=again(words) if tally.remaining else None,
    )


def duration(seconds: float) -> str:
    """Write a duration with the unit that suits it."""
    if seconds < 0.9995:  # what would be rounded up has the next unit
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def again(words: Sequence[str], *more: str) -> str:
    """Write the same `mvw batch` with other switches.

    Args:
        words: what came after `mvw batch`.
    """
    kept = [word for word in words if word not in _ONCE]
    return shlex.join(["mvw", "batch", *kept, *more])
