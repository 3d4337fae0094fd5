"""Reports as text: every figure beside its baseline, nothing claimed that is not shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper

import pytest
import sample_report
from rich.console import Console

from mvw_cli.bench.measure.stats import Ratio, summarise
from mvw_cli.bench.report import text, words
from mvw_cli.bench.report.documents import Cell, Report


@pytest.fixture(scope="module")
def full() -> Report:
    return sample_report.report()


def row(plain: str, first: str, arm: str, place: int = 0) -> str:
    rows = [line for line in plain.splitlines() if line.startswith(first)]
    return [line for line in rows if line[len(first) :].split()[0] == arm][place]


def with_ratio(report: Report, ratio: Ratio) -> Report:
    cell = report.cells[0]
    arms = [cell.arms[0], replace(cell.arms[1], ratios={"tpot": ratio})]
    return replace(report, cells=[replace(cell, arms=arms)])


def test_each_figure_stands_beside_the_baseline_with_its_interval(full: Report) -> None:
    plain = text.plain(full)
    unmarked, sixteen = full.cells[1].arms[:2]
    found = row(plain, "time per output token", "m=16", place=1)
    for value in (sixteen.tpot_ms.median, sixteen.tpot_ms.p90, sixteen.tpot_ms.p99):
        assert words.milliseconds(value) in found
    assert found.endswith(words.ratio(sixteen.ratios["tpot"])) and found.endswith(" faster")
    baseline = row(plain, "time per output token", "baseline", place=1)
    assert words.milliseconds(unmarked.tpot_ms.median) in baseline and baseline.endswith(" -")
    for figure in ("time to first token", "tokens per second", "seconds per answer"):
        assert "× [" in row(plain, figure, "m=64")


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.97, 1.31), "1.12 × [0.97, 1.31] no difference shown"),
        ((1.0, 1.31), "1.12 × [1.00, 1.31] no difference shown"),
        ((1.001, 1.31), "1.120 × [1.001, 1.310] faster"),
        ((0.5, 0.9996), "1.1200 × [0.5000, 0.9996] slower"),
    ],
)
def test_nothing_is_faster_whose_interval_covers_one(
    full: Report, interval: tuple[float, float], said: str
) -> None:
    plain = text.plain(with_ratio(full, Ratio(1.12, interval, 12)))
    assert row(plain, "time per output token", "m=16").endswith(said)


def test_what_is_unstable_says_so_with_its_remedy(full: Report) -> None:
    wild = replace(full.cells[0].arms[0], ttft_ms=summarise([10.0, 20.0, 30.0, 40.0]))
    sentence = "ttft_ms of baseline spreads by 60 %: close other programs."
    cell = replace(full.cells[0], arms=[wild], unstable=[sentence])
    plain = text.plain(replace(full, cells=[cell]))
    assert row(plain, "time to first token", "baseline").split("  ")[-2].strip() == "60 % unstable"
    assert f"Unstable: {sentence}" in plain
    # Steps of one run differ by nature: their spread is told, and not judged.
    uneven = replace(wild, tpot_ms=summarise([10.0, 20.0, 30.0, 40.0]))
    cell = replace(cell, arms=[uneven])
    plain = text.plain(replace(full, cells=[cell]))
    assert "  60 %  " in row(plain, "time per output token", "baseline")


def test_phases_are_shares_of_the_whole_answer(full: Report) -> None:
    plain = text.plain(full)
    line = next(line for line in plain.splitlines() if line.startswith("decode before withdrawal"))
    phases = full.cells[0].arms[0].phases
    parts = (phases.read_ms, phases.preprocess_ms, phases.prefill_ms, phases.decode_before_ms)
    whole = sum(part.median for part in parts if part)
    assert phases.decode_before_ms is not None
    assert words.percent(phases.decode_before_ms.median / whole) in line


def test_many_arms_are_split_over_tables_and_all_are_there(full: Report) -> None:
    arms = [replace(full.cells[0].arms[1], name=f"m={m}") for m in range(1, 8)]
    plain = text.plain(replace(full, cells=[replace(full.cells[0], arms=arms)]))
    heads = [line for line in plain.splitlines() if line.startswith("PHASE")]
    assert [head.split()[1:] for head in heads] == [
        ["m=1", "m=2", "m=3", "m=4"],
        ["m=5", "m=6", "m=7"],
    ]


def test_memory_says_whether_the_formula_agrees(full: Report) -> None:
    arm = full.cells[0].arms[1]
    assert "  agrees  " in row(text.plain(full), "m=16", "16")
    other = replace(arm.memory, kv_formula_bytes_after=arm.memory.kv_bytes_after + 1)
    cell = replace(full.cells[0], arms=[replace(arm, memory=other)])
    plain = text.plain(replace(full, cells=[cell]))
    assert "  differs  " in row(plain, "m=16", "16")
    assert f"{arm.memory.kv_bytes_after + 1:,}" in plain
    unknown = replace(arm.memory, kv_formula_bytes_before=None, kv_formula_bytes_after=None)
    cell = replace(full.cells[0], arms=[replace(arm, memory=unknown)])
    assert "agrees" not in text.plain(replace(full, cells=[cell]))


def test_bounds_verdicts_and_answers_are_told(full: Report) -> None:
    plain = text.plain(full)
    for sentence in full.verdicts:
        assert plain.count(sentence) == 1  # the plan says it too
    assert "351" in plain
    assert (
        "with 1,008 vision tokens from batch 16 on; at batch 1 with no number of them; "
        "at batch 8 from 1,300 of them on"
    ) in plain
    assert "23.0 TFLOP, at least" in plain and "10.67 billion" in plain
    assert "2.90 TB/s, 710 TFLOP/s, launch 4.20 µs (measured 2026-11-21)" in plain
    assert "11 of 20" in row(plain, "m=16", "11")
    assert "12 of 20" in row(plain, "m=16", "11") and "95.5 % [94 %, 95 %]" in plain
    right = row(plain, "m=16", "15").split("  ")
    assert [cell.strip() for cell in right if cell] == [
        "m=16", "15 of 20 [60 %, 85 %]", "3", "1", "10 % [-5 %, 27 %]", "0.500",
    ]  # fmt: skip
    assert "2 answers were left out" in plain
    assert "Suggested: m = 64." in plain


@pytest.mark.parametrize("made", [sample_report.bare, sample_report.planned])
def test_what_was_not_measured_is_left_out(made: object) -> None:
    report: Report = made()  # type: ignore[operator]
    plain = text.plain(report)
    assert "None" not in plain and "nan" not in plain
    assert "WHAT CHANGED" not in plain and "faster" not in plain
    assert ("SPEED" in plain) == bool(report.cells)
    assert ("BOUND" in plain) == (report.plan is not None)


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_terminal_shows_what_the_plain_text_says(full: Report, width: int) -> None:
    screen = Console(width=width, file=StringIO(), force_terminal=True, color_system=None)
    for part in text.renderables(full, width):
        screen.print(part)
    drawn = screen.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, drawn.splitlines())) <= width
    assert "…" not in drawn
    letters = "".join(drawn.split())
    for cell in ("no difference shown", "NVIDIA H100 80GB HBM3", "of it the vision encoder"):
        assert cell.split()[0] in letters
    assert "─" in drawn


def test_a_report_cannot_send_codes_to_the_terminal(full: Report) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[bold]x[/bold]"
    report = replace(
        full,
        model=replace(full.model, name=evil),
        command=[evil],
        verdicts=[evil],
        cells=[replace(full.cells[0], unstable=[evil])],
    )
    assert "\x1b" not in text.plain(report)
    screen = Console(file=StringIO(), force_terminal=True, color_system=None)
    for part in text.renderables(report, 80):
        screen.print(part)
    drawn = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in drawn and "[bold]x[/bold]" in drawn


def test_write_is_plain_where_there_is_no_terminal(
    full: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    text.write(full)
    assert capsys.readouterr().out == text.plain(full) + "\n"


def test_cells_are_told_apart(full: Report) -> None:
    cells: list[Cell] = [full.cells[0], replace(full.cells[1], process="shared")]
    plain = text.plain(replace(full, cells=cells))
    assert "Batch 1, 12 pairs, a process of its own" in plain
    assert "Batch 8, 12 pairs, a process shared with other cells" in plain


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_ascii_stream_gets_ascii(
    full: Report, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(raw, encoding=encoding))
    text.write(full)
    sys.stdout.flush()
    assert ("×" in raw.getvalue().decode("utf-8")) == (encoding == "utf-8")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_ascii_terminal_gets_ascii(
    full: Report, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = BytesIO()
    stream = TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    text.write(full)
    sys.stdout.flush()
    shown = raw.getvalue().decode("utf-8")
    assert ("█" in shown, "─" in shown) == ((True, True) if encoding == "utf-8" else (False, False))
