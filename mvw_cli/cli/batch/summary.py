"""How a batch went: the figures of its end, as data and as the lines that a person reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvw_cli.batch.store.output import Output
from mvw_cli.batch.store.tally import Tally
from mvw_cli.cli.batch.words import again
from mvw_cli.text import readable_bytes

if TYPE_CHECKING:
    from mvw_cli.batch.serve.server import State

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Summary:
    """One run of `mvw batch`."""

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
    withdrawals: int
    kv_bytes_freed: int
    kv_bytes_before: int
    kv_allocated_bytes_peak: int | None
    restarts: int
    """Times that an item was begun again, for want of memory or next to a failing one."""
    retry: str | None
    """Command that tries again what failed."""
    go_on: str | None
    """Command that does the rest."""

    def to_dict(self) -> dict[str, Any]:
        """Serialise, as `--json` writes it; docs/json.md describes it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "output": self.output,
            "log": self.log,
            "listed": self.listed,
            "skipped": self.skipped,
            "answered": self.answered,
            "failed": self.failed,
            "remaining": self.remaining,
            "failed_in_log": self.failed_in_log,
            "errors": self.errors,
            "interrupted": self.interrupted,
            "elapsed_s": self.elapsed_s,
            "items_per_s": self.items_per_s,
            "tokens_per_s": self.tokens_per_s,
            "generated_tokens": self.generated_tokens,
            "latency_ms": self.latency_ms,
            "withdrawal": {
                "withdrawals": self.withdrawals,
                "kv_bytes_before": self.kv_bytes_before,
                "kv_bytes_freed": self.kv_bytes_freed,
            },
            "kv_allocated_bytes_peak": self.kv_allocated_bytes_peak,
            "restarts": self.restarts,
            "retry": self.retry,
            "go_on": self.go_on,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Write it for people: a label and a text each."""
        served = self.answered + self.failed
        counts = [f"{self.answered:,} answered"]
        if self.failed:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.errors.items())
            counts.append(f"{self.failed:,} failed ({kinds})")
        if self.skipped:
            counts.append(f"{self.skipped:,} had their record before")
        if self.remaining:
            counts.append(f"{self.remaining:,} left")
        told = [("Items", ", ".join(counts))]
        if served:
            rates = [f"{readable_time(self.elapsed_s)}"]
            rates += [] if self.items_per_s is None else [f"{rate(self.items_per_s)} items/s"]
            rates += [] if self.tokens_per_s is None else [f"{rate(self.tokens_per_s)} tokens/s"]
            told.append(("Time", ", ".join(rates)))
        if self.latency_ms is not None:
            median, p90 = self.latency_ms["median"] / 1e3, self.latency_ms["p90"] / 1e3
            told.append(("Latency", f"median {readable_time(median)}, p90 {readable_time(p90)}"))
        if self.withdrawals:
            share = self.kv_bytes_freed / max(1, self.kv_bytes_before)
            text = (
                f"{self.withdrawals:,} times, {readable_bytes(self.kv_bytes_freed)} of cache "
                f"entries freed, {share:.0%} of what was there"
            )
            told.append(("Withdrawal", text))
        if self.kv_allocated_bytes_peak:
            told.append(("KV cache", f"{readable_bytes(self.kv_allocated_bytes_peak)} at most"))
        told.append(("Records", self.output))
        if self.go_on is not None:
            told.append(("Go on", self.go_on))
        if self.retry is not None:
            told.append(("Retry failed", self.retry))
        return told


def summarise(
    tally: Tally,
    state: State | None,
    *,
    output: Output,
    failed_in_log: int,
    interrupted: bool,
    words: tuple[str, ...],
) -> Summary:
    """Sum a run up.

    Args:
        state: of the executor; None where nothing had to be done.
        words: of the command line, after `mvw batch`.
    """
    elapsed = tally.elapsed_s
    tokens = tally.generated_tokens
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
        withdrawals=tally.withdrawals,
        kv_bytes_freed=tally.kv_bytes_freed,
        kv_bytes_before=tally.kv_bytes_before,
        kv_allocated_bytes_peak=None if state is None else state.kv_allocated_bytes_peak,
        restarts=0 if state is None else state.restarts,
        retry=again(words, "--retry-failed") if failed_in_log else None,
        go_on=again(words) if tally.remaining else None,
    )


def readable_time(seconds: float) -> str:
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


def rate(per_second: float) -> str:
    """Write a rate with three digits."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
