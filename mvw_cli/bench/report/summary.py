"""A report on one screen: the verdict first, then one table with a row for each arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from textwrap import wrap

from mvw_cli.bench.documents import BASELINE, Answers, Arm, Comparison, Memory, ProfileReport
from mvw_cli.bench.report.tables import ended, judged_ratio, verdicts, written
from mvw_cli.bench.stats import Ratio
from mvw_cli.render.sections import Section, Sentence, Table, table_of
from mvw_cli.text import MISSING, factor, number, plural, readable_bytes

LINES = 40
"""That a report takes at most, as long as there are not more than some 25 arms."""
_FEWEST = 4
"""Lines that the verdict may take however many arms there are."""
_HEADINGS = 5
"""Lines of the title, and of two headings with the empty line above them."""


def summary(report: ProfileReport, width: int = 100, *, lines: int = LINES) -> list[Section]:
    """Put the figures that a reader came for into a verdict and a table.

    Args:
        width: columns of the screen; sentences that take more lines are left out earlier.
    """
    table = _arms(report)
    notes = [*_warnings(report), Sentence(_rest(report))]
    taken = _HEADINGS + sum(len(wrap(note.text, width)) for note in notes)
    taken += 0 if table is None else _height(table, width)
    sentences = report.verdicts or verdicts(report)
    told = fitting(sentences, lines - taken, width)
    found = [Section("verdict", "Verdict", [Sentence(text, "verdict") for text in told])]
    found += [Section("arms", "Arms", [*([table] if table else []), *notes])]
    return [section for section in found if section.parts]


def fitting(sentences: list[str], lines: int, width: int) -> list[str]:
    """Choose the first sentences that fit; a last one says how many did not."""
    room, kept = max(_FEWEST, lines), list[str]()
    for place, text in enumerate(sentences):
        room -= len(wrap(text, width))
        if room < (place + 1 < len(sentences)):  # a line is kept to say that there are more
            return [*kept, f"{plural(len(sentences) - place, 'more sentence')} with -v."]
        kept.append(text)
    return kept


def _height(table: Table, width: int) -> int:
    """Count the lines of a table, whose cells are folded where the screen is too narrow."""
    widest = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    needed = sum(widest) + 2 * len(widest)
    return math.ceil(needed / width) * (1 + len(table.rows))


_Row = tuple[str, str, Arm | None]
"""Batch and name of an arm; without figures where only its answers were compared."""


def _arms(report: ProfileReport) -> Table | None:
    if not report.cells:
        return None
    answers = report.answers
    compared = {} if answers is None else {arm.name: arm for arm in answers.arms}
    rows: list[_Row] = [
        (str(cell.batch), arm.name, arm) for cell in report.cells for arm in cell.arms
    ]
    measured = {name for _, name, _ in rows}
    rows += [(MISSING, name, None) for name in compared if name not in measured]
    columns: dict[str, Callable[[_Row], str]] = {
        "BATCH": lambda row: row[0],
        "ARM": lambda row: row[1],
        "TOKENS/S": lambda row: written(row[2], lambda arm: number(arm.tokens_per_s.median)),
        f"× {BASELINE} [95 %]": lambda row: written(
            row[2], lambda arm: against(arm.ratios.get("tokens_per_s"))
        ),
        "BOUND": lambda row: written(row[2], _bound),
        "KV": lambda row: written(row[2], lambda arm: _kv(arm.memory)),
    }
    if len(report.cells) == 1:
        del columns["BATCH"]
    if not any(arm and arm.bound for _, _, arm in rows):
        del columns["BOUND"]
    if answers is not None:
        columns[_quality_name(answers)] = lambda row: written(
            compared.get(row[1]), lambda one: _quality(one, answers)
        )
    return table_of(columns, rows)


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


def _quality_name(answers: Answers) -> str:
    if answers.references:
        return "RIGHT"
    return "SAME ANSWER" if _judged(answers) else "IDENTICAL"


def _judged(answers: Answers) -> bool:
    return any(arm.same_answer is not None for arm in answers.arms)


def _quality(arm: Comparison, answers: Answers) -> str:
    if answers.references:
        return written(arm.correct, lambda right: f"{right:,} of {answers.references:,}")
    if not _judged(answers):
        return f"{arm.identical:,} of {arm.items:,}"
    same = arm.items if arm.name == BASELINE else arm.same_answer
    return written(same, lambda same: f"{same:,} of {arm.items:,}")


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
