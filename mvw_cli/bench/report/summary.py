"""A report on one screen: the verdict first, then one table with a row for each arm."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from mvw_cli.bench.documents import BASELINE, Arm, Memory, ProfileReport
from mvw_cli.bench.report.charts import answers_kept
from mvw_cli.bench.report.tables import ended, judged_ratio, verdicts
from mvw_cli.bench.stats import Ratio
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.render.terminal import height
from mvw_cli.text import MISSING, factor, number, plural, readable_bytes

LINES = 40
"""That a report takes at most, as long as there are not more than some 25 arms."""
_FEWEST = 3
"""Lines that the verdict may take however many arms there are."""


def summary(report: ProfileReport, width: int = 100) -> list[Section]:
    """Put the figures that a reader came for into a verdict and a table.

    Args:
        width: columns of the screen; sentences that take more lines are left out earlier.
    """
    table = _arms(report)
    notes = [*_warnings(report), Sentence(_rest(report))]
    arms = Section("arms", "Arms", [*([table] if table else []), *notes])
    room = LINES - height([arms, Section("verdict", "Verdict")], width)
    told = fitting(report.verdicts or verdicts(report), room, width)
    verdict = Section("verdict", "Verdict", [Sentence(text, "verdict") for text in told])
    return [verdict, arms] if told else [arms]


def fitting(sentences: list[str], lines: int, width: int) -> list[str]:
    """Choose the first sentences that fit; a last one says how many did not."""
    room, kept = max(_FEWEST, lines), list[str]()
    for place, text in enumerate(sentences):
        room -= len(wrap(text, width))
        if room < (place + 1 < len(sentences)):  # a line is kept to say that there are more
            return [*kept, f"{plural(len(sentences) - place, 'more sentence')} with -v."]
        kept.append(text)
    return kept


def _arms(report: ProfileReport) -> Table | None:
    if not report.cells:
        return None
    head, told = "ANSWERS", dict[str, str]()
    if report.answers is not None:
        name, kept = answers_kept(report.answers)
        total = report.answers.references or report.answers.items
        head = name.upper()
        told = {arm: f"{count:,} of {total:,}" for arm, count in kept.items()}
    rows = [
        [
            str(cell.batch),
            arm.name,
            number(arm.tokens_per_s.median),
            against(arm.ratios.get("tokens_per_s")),
            _bound(arm),
            _kv(arm.memory),
            told.get(arm.name, MISSING),
        ]
        for cell in report.cells
        for arm in cell.arms
    ]
    measured = {row[1] for row in rows}
    rows += [
        [MISSING, arm, *[MISSING] * 4, what] for arm, what in told.items() if arm not in measured
    ]
    columns = ["BATCH", "ARM", "TOKENS/S", f"× {BASELINE} [95 %]", "BOUND", "KV", head]
    return Table(columns, rows)


def against(found: Ratio | None) -> str:
    """Write a ratio of rates; it says `faster` or `slower` only where that is shown."""
    return judged_ratio(found).removesuffix(" no difference shown")


def _bound(arm: Arm) -> str:
    return MISSING if arm.bound is None or arm.name == BASELINE else factor(arm.bound.speedup)


def _kv(memory: Memory) -> str:
    before, after = readable_bytes(memory.kv_bytes_before), readable_bytes(memory.kv_bytes_after)
    if before == after:
        return before
    unit = before.rpartition(" ")[2]
    same = after.endswith(f" {unit}")
    return f"{before.removesuffix(f' {unit}') if same else before} → {after}"


def _warnings(report: ProfileReport) -> Iterator[Sentence]:
    """Sum up what is unstable; what ended early is told whole."""
    for cell in report.cells:
        yield from ended(cell)
    unstable = sum(len(cell.unstable) for cell in report.cells)
    if unstable:
        them = "it" if unstable == 1 else "them"
        yield Sentence(f"{plural(unstable, 'figure')} unstable: -v names {them}.", "warning")


def _rest(report: ProfileReport) -> str:
    told = ""
    if any(arm.ratios for cell in report.cells for arm in cell.arms):
        told = "A ratio without `faster` or `slower` shows no difference. "
    return f"{told}All figures: -v, --html FILE, or -o FILE.json."
