"""What a person sees on stderr while a batch runs, and when it ends.

A bar with figures on a terminal, a line every few seconds elsewhere, from numbers that are counted
as records come; at the end a summary, which `--json` writes as well.
"""

from __future__ import annotations

import shlex
import statistics
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.batch.store.output import Output
from mvw_cli.cli.stderr_view import BOLD, StderrView
from mvw_cli.text import number, one_line, printable, readable_bytes

if TYPE_CHECKING:  # neither is imported before it is needed
    from rich.progress import Progress

    from mvw_cli.batch.serve.server import State

EVERY_S = 10.0
"""Seconds from one line to the next, where nobody redraws them."""
_REDRAWS_PER_S = 4
_SHOWN = 10
"""Failures that are told one by one."""
_SHOW_CURSOR = "\x1b[?25h"
_ONCE = ("--overwrite", "--retry-failed", "--dry-run", "--json")
"""Switches that are about one run, not about what is asked."""


@dataclass(slots=True)
class Tally:
    """Counts of one run, from its records alone. One thread adds, any may look."""

    listed: int = 0
    """Items of the work list."""
    skipped: int = 0
    """Items whose record was there before."""
    answered: int = 0
    failed: int = 0
    generated_tokens: int = 0
    withdrawals: int = 0
    kv_bytes_freed: int = 0
    """Bytes of cache entries that withdrawals have freed, all answers together."""
    kv_bytes_before: int = 0
    """Bytes of the entries that were there when they did."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed items, by the type of what went wrong."""
    began: float | None = None
    """When serving began, by `perf_counter`."""
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))

    def begin(self) -> None:
        """Start the clock: the model is loaded."""
        self.began = perf_counter()

    def skip(self) -> None:
        """Count an item that needs no work."""
        self.skipped += 1

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record."""
        if record["status"] != "ok":
            self.failed += 1
            self.errors[record["error"]["type"]] += 1
            return
        self.answered += 1
        self.generated_tokens += record["generated_tokens"]
        latency_ms = record["timings"]["latency_ms"]
        if latency_ms is not None and isfinite(latency_ms):
            self.latencies_ms.append(latency_ms)
        if withdrawal := record["withdrawal"]:
            self.withdrawals += 1
            self.kv_bytes_before += withdrawal["kv_bytes_before"]
            self.kv_bytes_freed += withdrawal["kv_bytes_before"] - withdrawal["kv_bytes_after"]

    @property
    def served(self) -> int:
        """Items that this run has a record of."""
        return self.answered + self.failed

    @property
    def remaining(self) -> int:
        """Items without a record, as far as is known."""
        return max(0, self.listed - self.skipped - self.served)

    @property
    def elapsed_s(self) -> float:
        """Seconds since serving began."""
        return 0.0 if self.began is None else perf_counter() - self.began

    @property
    def items_per_s(self) -> float | None:
        """Records per second; None while there is nothing to tell it from."""
        return self.served / self.elapsed_s if self.served and self.elapsed_s else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take at this rate."""
        rate = self.items_per_s
        return None if rate is None else self.remaining / rate

    def latency_ms(self) -> dict[str, float] | None:
        """Median and 90th percentile, from reading an image to its last token."""
        if not self.latencies_ms:
            return None
        values = [*self.latencies_ms] * (2 if len(self.latencies_ms) == 1 else 1)
        p90 = statistics.quantiles(values, n=10, method="inclusive")[-1]
        return {"median": statistics.median(values), "p90": p90}


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
                    slots = state().slots
                    begun = "the answer that is" if slots == 1 else f"{slots} answers that are"
                    self.note(f"Finishing {begun} begun; Ctrl-C again leaves at once.")
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
        width = max(map(len, lines))
        for label, text in lines.items():
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


class Summary:
    """How one run went: `facts`, by the keys that `--json` writes; docs/json.md describes them.

    Args:
        state: of the executor; None where nothing had to be done.
        failed_in_log: failed items of the log, those of earlier runs included.
        words: of the command line, after `mvw batch`.
    """

    def __init__(
        self,
        tally: Tally,
        state: State | None,
        *,
        output: Output,
        failed_in_log: int,
        interrupted: bool,
        words: Sequence[str],
    ) -> None:
        elapsed, tokens = tally.elapsed_s, tally.generated_tokens
        self.facts: dict[str, Any] = {
            "schema_version": 1,
            "output": output.name,
            "log": str(output.log),
            "listed": tally.listed,
            "skipped": tally.skipped,
            "answered": tally.answered,
            "failed": tally.failed,
            "remaining": tally.remaining,
            "failed_in_log": failed_in_log,
            "errors": dict(tally.errors.most_common()),
            "interrupted": interrupted,
            "elapsed_s": elapsed,
            "items_per_s": tally.items_per_s,
            "tokens_per_s": tokens / elapsed if tokens and elapsed else None,
            "generated_tokens": tokens,
            "latency_ms": tally.latency_ms(),
            "withdrawal": {
                "withdrawals": tally.withdrawals,
                "kv_bytes_before": tally.kv_bytes_before,
                "kv_bytes_freed": tally.kv_bytes_freed,
            },
            "kv_allocated_bytes_peak": None if state is None else state.kv_allocated_bytes_peak,
            "restarts": 0 if state is None else state.restarts,
            "retry": again(words, "--retry-failed") if failed_in_log else None,
            "go_on": again(words) if tally.remaining else None,
        }

    def lines(self) -> dict[str, str]:
        """Write it for people: texts by their labels."""
        facts = self.facts
        counts = [f"{facts['answered']:,} answered"]
        if facts["failed"]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in facts["errors"].items())
            counts.append(f"{facts['failed']:,} failed ({kinds})")
        if facts["skipped"]:
            counts.append(f"{facts['skipped']:,} had their record before")
        if facts["remaining"]:
            counts.append(f"{facts['remaining']:,} left")
        lines = {"Items": ", ".join(counts)}
        if facts["answered"] + facts["failed"]:
            rates = [duration(facts["elapsed_s"])]
            rates += [
                f"{number(facts[f'{unit}_per_s'])} {unit}/s"
                for unit in ("items", "tokens")
                if facts[f"{unit}_per_s"] is not None
            ]
            lines["Time"] = ", ".join(rates)
        if latency := facts["latency_ms"]:
            median, p90 = (duration(latency[key] / 1e3) for key in ("median", "p90"))
            lines["Latency"] = f"median {median}, p90 {p90}"
        withdrawal = facts["withdrawal"]
        if withdrawal["withdrawals"]:
            freed = withdrawal["kv_bytes_freed"]
            share = freed / max(1, withdrawal["kv_bytes_before"])
            lines["Withdrawal"] = (
                f"{withdrawal['withdrawals']:,} times, {readable_bytes(freed)} of cache "
                f"entries freed, {share:.0%} of what was there"
            )
        if facts["kv_allocated_bytes_peak"]:
            lines["KV cache"] = f"{readable_bytes(facts['kv_allocated_bytes_peak'])} at most"
        lines["Records"] = facts["output"]
        commands = {"Go on": facts["go_on"], "Retry failed": facts["retry"]}
        return lines | {label: command for label, command in commands.items() if command}

    def complaint(self) -> str:
        """Write in one line what did not go well; empty where all did."""
        facts = self.facts
        if facts["interrupted"] and facts["go_on"]:
            left = f"{facts['remaining']:,} of {facts['listed']:,} items left"
            return f"Interrupted, {left}: {facts['go_on']}"
        if facts["retry"]:
            failed = f"{facts['failed_in_log']:,} of {facts['listed']:,} items failed"
            return f"{failed}: {facts['retry']}"
        return ""


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
