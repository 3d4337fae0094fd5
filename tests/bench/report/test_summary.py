"""A report on one screen: at most 40 lines, the verdict first, and nothing claimed in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO

import pytest
import sample_report
from rich.console import Console

from mvw_cli.bench.documents import ProfileReport
from mvw_cli.bench.report import comparison
from mvw_cli.bench.report.summary import LINES, against, summary
from mvw_cli.bench.report.tables import title
from mvw_cli.bench.stats import Ratio
from mvw_cli.bench.verdict.compare import compare
from mvw_cli.render.sections import Table
from mvw_cli.render.terminal import drawn, plain


@pytest.fixture(scope="module")
def full() -> ProfileReport:
    return sample_report.report()


def told(report: ProfileReport, width: int = 100) -> list[str]:
    return plain(title(report), summary(report, width)).splitlines()


def rows(report: ProfileReport) -> list[list[str]]:
    [table] = [part for one in summary(report) for part in one.parts if isinstance(part, Table)]
    return table.rows


def test_the_verdict_comes_first_and_every_arm_has_its_row(full: ProfileReport) -> None:
    lines = told(full)
    assert lines[2:4] == ["VERDICT", full.verdicts[0]]
    assert [row[:2] for row in rows(full)] == [
        *[[batch, arm] for batch in "18" for arm in ("baseline", "m=16", "m=64")],
        ["-", "no image"],
    ]
    arm = full.cells[1].arms[1]
    row = rows(full)[4]
    assert row[3:] == [against(arm.ratios["tokens_per_s"]), "1.16 ×", "1.05 GiB → 71.0 MiB",
                       "15 of 20"]  # fmt: skip
    assert row[3].endswith(" faster") and re.search(r"× \[\d", row[3])
    assert rows(full)[1][5] == "134.9 → 8.9 MiB" and rows(full)[6][2:6] == ["-"] * 4
    text = "\n".join(lines)
    assert "1 figure unstable" in text and "--html FILE" in text


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Ratio(1.12, (1.05, 1.2), 12), "1.12 × [1.05, 1.20] faster"),
        (Ratio(0.8, (0.7, 0.9), 12), "0.80 × [0.70, 0.90] slower"),
        (Ratio(1.12, (0.97, 1.31), 12), "1.12 × [0.97, 1.31]"),
        (Ratio(1.12, (1.0, 1.31), 12), "1.12 × [1.00, 1.31]"),
        (Ratio(1.12, (1.001, 1.31), 12), "1.120 × [1.001, 1.310] faster"),
        (Ratio(1.12, (0.5, 0.9996), 12), "1.1200 × [0.5000, 0.9996] slower"),
        (Ratio(1.12, (1.05, 1.2), 5), "1.12 × (only 5 pairs)"),
        (None, "-"),
    ],
)
def test_nothing_is_claimed_that_is_not_shown(ratio: Ratio | None, said: str) -> None:
    assert against(ratio) == said


def test_answers_are_counted_by_the_best_that_is_known(full: ProfileReport) -> None:
    assert full.answers is not None
    answers = replace(full.answers, references=0)
    assert [row[-1] for row in rows(replace(full, answers=answers))][:2] == ["20 of 20", "12 of 20"]
    arms = [replace(arm, same_answer=None) for arm in answers.arms]
    report = replace(full, answers=replace(answers, arms=arms))
    assert [row[-1] for row in rows(report)][:2] == ["20 of 20", "11 of 20"]
    assert {row[-1] for row in rows(replace(full, answers=None))} == {"-"}


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("arms", [1, 3, 8, 20])
def test_a_screen_is_enough(full: ProfileReport, arms: int, width: int) -> None:
    never, arm = full.cells[1].arms[:2]
    many = [never, *(replace(arm, name=f"vtw:layer={n}+mvw:m=16") for n in range(arms))]
    sentence = "It frees 93 % of the KV cache, and more is to be said of it than one line holds. "
    report = replace(full, cells=[replace(full.cells[1], arms=many)], verdicts=[sentence * 2] * 30)
    lines = told(report, width)
    assert len(lines) <= LINES
    screen = Console(width=width, file=StringIO(), force_terminal=True, color_system=None)
    seen = drawn(screen, title(report), summary(report, width)).splitlines()
    assert len(seen) <= LINES or arms == 20  # where every row of a narrow screen is folded
    assert lines[3].startswith("It frees") and any(
        "more sentences with -v" in line for line in lines
    )


@pytest.mark.parametrize("made", [sample_report.bare, sample_report.planned])
def test_what_was_not_measured_is_left_out(made: Callable[[], ProfileReport]) -> None:
    text = "\n".join(told(made()))
    assert "None" not in text and "faster" not in text


def test_a_comparison_takes_one_screen_too(full: ProfileReport) -> None:
    side = compare(full, sample_report.report(seed=1), names=("a.json", "b.json"))
    side = replace(side, remarks=[f"package {n} differs: 1 and 2" for n in range(60)])
    lines = plain("a and b", comparison.summary(side)).splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= 100
    assert sum(line.startswith("tokens per second") for line in lines) == 6
    assert any("more sentences with -v" in line for line in lines)
