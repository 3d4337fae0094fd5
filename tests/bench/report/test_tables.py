"""Reports as text: every figure beside its baseline, nothing claimed that is not shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sample_report

from mvw_cli.bench.documents import ProfileReport, read_report, to_json
from mvw_cli.bench.report.tables import judged_ratio, sections, title
from mvw_cli.bench.stats import summarise
from mvw_cli.render import terminal
from mvw_cli.render.sections import Table
from mvw_cli.text import milliseconds, percent


@pytest.fixture(scope="module")
def full() -> ProfileReport:
    return sample_report.report()


def told(report: ProfileReport) -> str:
    return terminal.plain(title(report), sections(report))


def row(plain: str, first: str, arm: str, place: int = 0) -> str:
    rows = [line for line in plain.splitlines() if line.startswith(first)]
    return [line for line in rows if line[len(first) :].split()[0] == arm][place]


def test_each_figure_stands_beside_the_baseline_with_its_interval(full: ProfileReport) -> None:
    plain = told(full)
    unmarked, sixteen = full.cells[1].arms[:2]
    found = row(plain, "time per output token", "m=16", place=1)
    for value in (sixteen.tpot_ms.median, sixteen.tpot_ms.p90, sixteen.tpot_ms.p99):
        assert milliseconds(value) in found
    assert found.endswith(judged_ratio(sixteen.ratios["tpot"])) and found.endswith(" faster")
    baseline = row(plain, "time per output token", "baseline", place=1)
    assert milliseconds(unmarked.tpot_ms.median) in baseline and baseline.endswith(" -")
    for figure in ("time to first token", "tokens per second", "seconds per answer"):
        assert "× [" in row(plain, figure, "m=64")


def test_what_is_unstable_says_so_with_its_remedy(full: ProfileReport) -> None:
    wild = replace(full.cells[0].arms[0], ttft_ms=summarise([10.0, 20.0, 30.0, 40.0]))
    sentence = "ttft_ms of baseline spreads by 60 %: close other programs."
    cell = replace(full.cells[0], arms=[wild], unstable=[sentence])
    plain = told(replace(full, cells=[cell]))
    assert "  60 %  " in row(plain, "time to first token", "baseline")
    assert f"Unstable: {sentence}" in plain


def test_phases_are_shares_of_the_whole_answer(full: ProfileReport) -> None:
    phases = full.cells[0].arms[0].phases
    parts = (phases.read_ms, phases.preprocess_ms, phases.prefill_ms, phases.decode_before_ms)
    whole = sum(part.median for part in parts if part)
    assert phases.decode_before_ms is not None
    share = percent(phases.decode_before_ms.median / whole)
    assert row(told(full), "decode before withdrawal", "baseline").endswith(f"  {share}")


def test_memory_says_whether_the_formula_agrees(full: ProfileReport) -> None:
    arm = full.cells[0].arms[1]
    assert "  agrees  " in row(told(full), "m=16", "16")
    other = replace(arm.memory, kv_formula_bytes_after=arm.memory.kv_bytes_after + 1)
    cell = replace(full.cells[0], arms=[replace(arm, memory=other)])
    assert "  differs  " in row(told(replace(full, cells=[cell])), "m=16", "16")
    unknown = replace(arm.memory, kv_formula_bytes_before=None, kv_formula_bytes_after=None)
    cell = replace(full.cells[0], arms=[replace(arm, memory=unknown)])
    assert "agrees" not in told(replace(full, cells=[cell]))


def test_bounds_verdicts_and_answers_are_told(full: ProfileReport) -> None:
    plain = told(full)
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


@pytest.mark.parametrize("made", [sample_report.bare, sample_report.planned])
def test_what_was_not_measured_is_left_out(made: object) -> None:
    report: ProfileReport = made()  # type: ignore[operator]
    plain = told(report)
    assert "None" not in plain and "nan" not in plain
    assert "WHAT CHANGED" not in plain and "faster" not in plain
    assert ("SPEED" in plain) == bool(report.cells)
    assert ("BOUND" in plain) == (report.plan is not None)


def test_cells_are_told_apart_and_what_ended_one_is_told(full: ProfileReport) -> None:
    cells = [full.cells[0], replace(full.cells[1], ended="OutOfMemory: no room")]
    plain = told(replace(full, cells=cells))
    assert "Batch 1, 12 pairs" in plain and "Batch 8, 12 pairs" in plain
    assert "Batch 8 ended early, with 12 whole pairs: OutOfMemory: no room." in plain


# -- what is read of the image --------------------------------------------------------------------


def table(report: ProfileReport, section: str, caption: str = "") -> Table:
    """The first table of a section, or that of a caption."""
    return next(
        part
        for one in sections(report)
        for part in one.parts
        if one.name == section and isinstance(part, Table) and part.caption.startswith(caption)
    )


def test_each_arm_s_vision_stands_beside_the_baseline_s() -> None:
    found = table(sample_report.layerwise(), "vision")
    assert found.columns == [
        "ARM", "ATTENDED BY A TOKEN", "HELD AFTER THE PREFILL", "KV AFTER THE PREFILL",
        "WITHDRAWALS", "LOOK-BACKS", "OFFLOADED TO THE HOST",
    ]  # fmt: skip
    assert found.rows == [
        ["baseline", "1,008  100 %", "4,032", "133.0 MiB", "0", "0", "0 B"],
        ["vtw:layer=2", "504  50 %", "2,016", "70.0 MiB", "0", "0", "0 B"],
        ["pulse", "44.0  4.4 %", "4,032", "133.0 MiB", "0", "0", "0 B"],
        ["mvw:m=64+look-back", "614  60.9 %", "4,032", "133.0 MiB", "2", "1", "126.0 MiB"],
    ]


def test_the_prefill_is_set_beside_its_bound() -> None:
    found = table(sample_report.layerwise(), "bound", "Prefill")
    rows = {row[1]: row for row in found.rows}
    assert list(rows) == ["vtw:layer=2"]  # the others act on none of it
    assert rows["vtw:layer=2"][2:5] == ["11.5 TFLOP  50 % of the baseline's", "16.5 ms", "2.00 ×"]
    assert rows["vtw:layer=2"][5].endswith("no difference shown")


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(to_json(sample_report.layerwise()))
    assert read_report(str(path)) == sample_report.layerwise()
