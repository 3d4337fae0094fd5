"""What a person sees on stderr while a batch runs, and when it ends.

A bar with figures on a terminal, a line every few seconds elsewhere, from numbers that are counted
as records come; at the end a summary, which `--json` writes as well.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.cli.stderr_view import BOLD, StderrView
from mvw_cli.text import number, one_line, plural, printable, readable_bytes

if TYPE_CHECKING:  # neither is imported before it is needed
    from rich.progress import Progress

    from mvw_cli.batch.serve.server import State

EVERY_S = 10.0
"""Seconds from one line to the next, where nobody redraws them."""
_REDRAWS_PER_S = 4
_SHOWN = 10
"""Failures that are told one by one."""
_SHOW_CURSOR = "\x1b[?25h"


@dataclass(slots=True)
class Tally:
    """Counts of one run, from its records alone. One thread adds, any may look."""

    listed: int = 0
    """Items of the work list."""
    skipped: int = 0
    """Items whose record was there before."""
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Failed items, by the type of what went wrong."""
    generated_tokens: int = 0
    with_remarks: int = 0
    """Answers that have remarks."""
    first_remark: str | None = None
    withdrawals: int = 0
    kv_bytes_before: int = 0
    """Bytes of the cache entries that were there at withdrawals, all answers together."""
    kv_bytes_freed: int = 0
    """Bytes of those that withdrawals have freed."""
    began: float | None = None
    """When serving began, by `perf_counter`."""

    def skip(self) -> None:
        """Count an item that needs no work."""
        self.skipped += 1

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record."""
        if record["status"] != "ok":
            self.errors[record["error"]["type"]] += 1
            return
        self.answered += 1
        self.generated_tokens += record["generated_tokens"]
        if record["remarks"]:
            self.with_remarks += 1
            self.first_remark = self.first_remark or f"{record['id']}: {record['remarks'][0]}"
        if withdrawal := record["withdrawal"]:
            self.withdrawals += 1
            self.kv_bytes_before += withdrawal["kv_bytes_before"]
            self.kv_bytes_freed += withdrawal["kv_bytes_before"] - withdrawal["kv_bytes_after"]

    @property
    def failed(self) -> int:
        return self.errors.total()

    @property
    def served(self) -> int:
        """Items that this run has a record of."""
        return self.answered + self.failed

    @property
    def done(self) -> int:
        """Items that there is a record of."""
        return self.skipped + self.served

    @property
    def remaining(self) -> int:
        """Items without a record, as far as is known."""
        return max(0, self.listed - self.done)

    @property
    def elapsed_s(self) -> float:
        """Seconds since serving began."""
        return 0.0 if self.began is None else perf_counter() - self.began

    def rate(self, count: int) -> float | None:
        """Return how many per second; None while there is nothing to tell it from."""
        return count / self.elapsed_s if count and self.elapsed_s else None

    def facts(self) -> dict[str, Any]:
        """Return what `--json` writes of it; docs/json.md describes the keys."""
        return {
            "listed": self.listed,
            "skipped": self.skipped,
            "answered": self.answered,
            "failed": self.failed,
            "remaining": self.remaining,
            "errors": dict(self.errors.most_common()),
            "elapsed_s": self.elapsed_s,
            "items_per_s": self.rate(self.served),
            "tokens_per_s": self.rate(self.generated_tokens),
            "generated_tokens": self.generated_tokens,
            "with_remarks": self.with_remarks,
            "first_remark": self.first_remark,
            "withdrawal": {
                "withdrawals": self.withdrawals,
                "kv_bytes_before": self.kv_bytes_before,
                "kv_bytes_freed": self.kv_bytes_freed,
            },
        }


class BatchView(StderrView):
    """Stderr during one `mvw batch`, and the counts of what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()
        self._bar: Progress | None = None
        self.clean_up: Callable[[], None] = lambda: None
        """Called when the user interrupts and nothing else is left to be done."""

    def show(self, record: Mapping[str, Any]) -> None:
        """Count a record, and tell of a failure."""
        self.tally.add(record)
        if record["status"] == "ok" or self.tally.failed > _SHOWN:
            return
        error = record["error"]
        cause = f": {error['cause']}" if error["cause"] else ""
        self.warn(f"failed: {record['id']}: {error['message']}{cause}")
        if self.tally.failed == _SHOWN:
            self.note("Further failures are counted; the records say what they are.")

    @contextmanager
    def following(
        self, state: Callable[[], State], finishing: Callable[[], bool]
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
                    begun = plural(state().slots, "answer")
                    self.note(f"Finishing {begun} begun; Ctrl-C again leaves at once.")
                figures, waited_s = figures_of(self.tally, state()), waited_s + 1 / _REDRAWS_PER_S
                if self._bar is not None:
                    self._bar.update(
                        self._bar.task_ids[0],
                        completed=self.tally.done,
                        description="Finishing" if told else "Answering",
                        figures="  ".join(figures),
                        refresh=True,
                    )
                elif waited_s >= EVERY_S:
                    waited_s = 0.0
                    done = f"{self.tally.done:,} of {self.tally.listed:,}"
                    self.note(", ".join([done, *figures]))

        thread = threading.Thread(target=follow, name="mvw-progress", daemon=True)
        self.tally.began = perf_counter()
        self._bar = self._make_bar() if self.live else None
        with self._bar or nullcontext():
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                self._write_notes(state())
                self._bar = None

    def summary(self, facts: Mapping[str, Any]) -> None:
        """Write how it went; under -q one line, where it did not go well."""
        if self._quiet:
            if line := complaint(facts):
                self._write(f"{one_line(line)}\n")
            return
        lines = summary_lines(facts)
        width = max(map(len, lines))
        for label, text in lines.items():
            self._put_line(f"{self._styled(label.ljust(width), BOLD)}  {printable(text)}")

    def _unsaid(self) -> str:
        with suppress(Exception):
            self.clean_up()
        return f"{_SHOW_CURSOR}\n" if self._bar is not None else ""

    def _write_notes(self, state: State) -> None:
        while state.notes:
            self.note(state.notes.popleft())

    def _put_line(self, text: str, style: str = "") -> None:
        if self._bar is None or self._quiet:
            super()._put_line(text, style)
            return
        from rich.text import Text

        line = Text.from_ansi(self._styled(text, style))
        with suppress(OSError, ValueError):
            self._bar.console.print(line, soft_wrap=True)

    def _make_bar(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(separator=" of "),
            TextColumn("[dim]{task.fields[figures]}"),
            console=console.err(),
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        bar.add_task("Answering", total=max(1, self.tally.listed), figures="")
        return bar


def clock(seconds: float) -> str:
    """Write a duration as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


def figures_of(tally: Tally, state: State) -> list[str]:
    """Write how things stand: a figure each."""
    figures = [f"{tally.failed:,} failed"] if tally.failed else []
    figures.append(f"slots {state.slots}/{state.max_slots}")
    rate = tally.rate(tally.served)
    if rate is not None:
        figures += [f"{number(rate)} items/s", f"{clock(tally.remaining / rate)} left"]
    return figures


def summary_lines(facts: Mapping[str, Any]) -> dict[str, str]:
    """Write how one run went for people: texts by their labels."""
    counts = [f"{facts['answered']:,} answered"]
    if facts["failed"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in facts["errors"].items())
        counts.append(f"{facts['failed']:,} failed ({kinds})")
    if facts["skipped"]:
        counts.append(f"{facts['skipped']:,} had their record before")
    if facts["remaining"]:
        counts.append(f"{facts['remaining']:,} left")
    lines = {"Items": ", ".join(counts)}
    if facts["items_per_s"] is not None:
        lines["Time"] = f"{clock(facts['elapsed_s'])}, {number(facts['items_per_s'])} items/s"
        if facts["tokens_per_s"] is not None:
            lines["Time"] += f", {number(facts['tokens_per_s'])} tokens/s"
    if facts["with_remarks"]:
        has = plural(facts["with_remarks"], "answer")
        lines["Remarks"] = f"on {has}, the first {facts['first_remark']}"
    withdrawal = facts["withdrawal"]
    if withdrawal["withdrawals"]:
        freed = withdrawal["kv_bytes_freed"]
        share = freed / max(1, withdrawal["kv_bytes_before"])
        lines["Withdrawal"] = (
            f"{withdrawal['withdrawals']:,} times, {readable_bytes(freed)} of cache entries freed, "
            f"{share:.0%} of what was there"
        )
    if facts["kv_allocated_bytes_peak"]:
        lines["KV cache"] = f"{readable_bytes(facts['kv_allocated_bytes_peak'])} at most"
    lines["Records"] = facts["output"]
    commands = {"Go on": facts["go_on"], "Retry failed": facts["retry"]}
    return lines | {label: command for label, command in commands.items() if command}


def complaint(facts: Mapping[str, Any]) -> str:
    """Write in one line what did not go well; empty where all did."""
    if facts["interrupted"] and facts["go_on"]:
        left = f"{facts['remaining']:,} of {facts['listed']:,} items left"
        return f"Interrupted, {left}: {facts['go_on']}"
    if facts["retry"]:
        failed = f"{facts['failed_in_log']:,} of {facts['listed']:,} items failed"
        return f"{failed}: {facts['retry']}"
    return ""
