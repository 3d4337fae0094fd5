"""Turn after turn: in each of them every arm runs once, one after the other, on the same items.

Another arm begins each turn (A B C, B C A, C A B), so that none owes anything to its place. In
each turn the baseline also runs without the profiler's marks, before or after its marked run in
alternation, so that what the marks cost is known. It does not know what becomes of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from mvw_cli.bench.documents import BASELINE
from mvw_cli.bench.stats import Ratio, paired_ratio

if TYPE_CHECKING:
    from mvw_cli.bench.measure.job import ItemSpec, Job
    from mvw_cli.bench.measure.run import Run, Runner
    from mvw_cli.policy import WithdrawalPolicy

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many runs are done, and how many there will be at least."""


@dataclass(slots=True)
class Counter:
    """Counts runs, and tells."""

    tell: Progress
    total: int
    done: int = 0

    def say(self, text: str) -> None:
        """Tell what is being done now."""
        self.total = max(self.total, self.done + 1)
        self.tell(text, self.done, self.total)


@dataclass(slots=True)
class Samples:
    """Runs that count."""

    runs: dict[str, list[Run]]
    """By arm; of whole turns alone, and so of one length."""
    marked_s: list[float] = field(default_factory=list)
    """Decoding of the baseline, in the turns in which it also ran unmarked."""
    bare_s: list[float] = field(default_factory=list)
    """The same without marks."""

    @property
    def pairs(self) -> int:
        """Number of whole turns."""
        return min(map(len, self.runs.values()))

    @property
    def profiler_cost(self) -> Ratio | None:
        """Decoding with marks over decoding without; None where there is no baseline."""
        return paired_ratio(self.marked_s, self.bare_s) if self.bare_s else None


def run_turns(
    job: Job,
    runner: Runner,
    policies: Mapping[str, WithdrawalPolicy],
    samples: Samples,
    counter: Counter,
) -> None:
    """Run until there are enough pairs and enough time has gone by.

    A turn that is stopped leaves nothing behind.
    """
    begun, turn = perf_counter(), 0
    while turn < job.runs or perf_counter() - begun < job.min_time_s:
        items, runs, bare_s = job.turn(turn), {}, 0.0
        pair = f"pair {turn + 1}" + (f" of {job.runs}" if turn < job.runs else "")
        first = turn % len(policies)
        order = [*policies][first:] + [*policies][:first]
        for name in order:
            policy = policies[name]
            compared = name == BASELINE and turn < job.runs
            if compared and turn % 2:
                bare_s = _bare(runner, items, policy, counter, pair)
            counter.say(f"{name}: {pair}")
            runs[name] = runner.run(items, policy)
            counter.done += 1
            if compared and not turn % 2:
                bare_s = _bare(runner, items, policy, counter, pair)
        for name, run in runs.items():
            samples.runs[name].append(run)
        if bare_s and runs[BASELINE].steps:
            samples.marked_s.append(runs[BASELINE].decode_s)
            samples.bare_s.append(bare_s)
        turn += 1


def _bare(
    runner: Runner, items: list[ItemSpec], policy: WithdrawalPolicy, counter: Counter, pair: str
) -> float:
    counter.say(f"{BASELINE}, unmarked: {pair}")
    seconds = runner.bare(items, policy)
    counter.done += 1
    return seconds
