"""What the charts of a report show."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import sample_report

from mvw_cli.bench.documents import ProfileReport
from mvw_cli.bench.report.charts import charts
from mvw_cli.render.chart import Chart, Point


@pytest.fixture(scope="module")
def full() -> ProfileReport:
    return sample_report.report()


def drawn(report: ProfileReport) -> dict[str, Chart]:
    return {chart.name: chart for chart in chain.from_iterable(charts(report).values())}


def test_every_cell_has_its_charts(full: ProfileReport) -> None:
    assert {
        section: [chart.name for chart in found] for section, found in charts(full).items()
    } == {
        "speed": ["time-per-token-batch-1", "time-per-token-batch-8"],
        "vision": [],
        "memory": ["kv-cache-batch-1", "kv-cache-batch-8"],
        "answers": ["attention", "quality-speed-batch-1", "quality-speed-batch-8"],
    }
    assert drawn(sample_report.bare()) == {}


def test_a_mark_stands_right_before_what_withdrawal_changes(full: ProfileReport) -> None:
    arm = full.cells[1].arms[1]
    line = drawn(full)["time-per-token-batch-8"].lines[1]
    assert (line.name, line.xs[0], line.xs[-1]) == ("m=16", 2.0, sample_report.NEW_TOKENS)
    assert (line.ys, line.withdrawn_after) == (arm.step_ms, 16)
    cheap = next(x for x, y in zip(line.xs, line.ys, strict=True) if y < 50)
    assert cheap - 1 < line.withdrawn_x < cheap
    line = drawn(full)["kv-cache-batch-8"].lines[1]
    low = next(x for x, y in zip(line.xs, line.ys, strict=True) if y < 0.5)
    assert low - 1 < line.withdrawn_x < low


def test_memory_is_in_the_largest_unit_that_leaves_one(full: ProfileReport) -> None:
    small, large = drawn(full)["kv-cache-batch-1"], drawn(full)["kv-cache-batch-8"]
    assert (small.unit, large.unit) == ("MiB", "GiB")
    memory = full.cells[1].arms[0].memory
    assert large.lines[0].ys[-1] == memory.kv_bytes_along[-1] / 2**30
    assert large.lines[0].faint is not None
    assert large.lines[0].faint[-1] == memory.kv_allocated_along[-1] / 2**30


def test_cross_attention_says_what_its_share_is(full: ProfileReport) -> None:
    assert full.attention is not None
    crossing = replace(full.attention, measure="cross-attention", vision_share_of_entries=[])
    chart = drawn(replace(full, attention=crossing))["attention"]
    assert chart.title == "What vision adds to each token" and chart.y_label == "share added"
    assert "cross-attention" in chart.caption and chart.lines[0].faint is None
    assert "share of the attention" in drawn(full)["attention"].caption


def test_quality_is_accuracy_where_there_are_references(full: ProfileReport) -> None:
    chart = drawn(full)["quality-speed-batch-8"]
    ratio = full.cells[1].arms[1].ratios["tokens_per_s"]
    assert chart.points[0] == Point("baseline", 0, 1.0, 85.0, None, chart.points[0].y_interval)
    sixteen = chart.points[1]
    assert (sixteen.x, sixteen.x_interval, sixteen.y) == (ratio.median, ratio.interval_95, 75.0)
    assert chart.reference == ("no image", 30.0)
    assert chart.y_label == "right answers"


def test_natural_length_is_judged_by_whole_answers(full: ProfileReport) -> None:
    natural = replace(full, workload=replace(full.workload, mode="natural"))
    chart = drawn(natural)["quality-speed-batch-8"]
    assert chart.points[1].x == full.cells[1].arms[1].ratios["answer"].median
    assert "answers per second" in chart.x_label


@pytest.mark.parametrize(
    ("missing", "label", "shares"),
    [
        ({}, "same answers", [100, 60, 95]),
        ({"same_answer": None}, "identical answers", [100, 55, 90]),
    ],
)
def test_quality_without_references_is_how_much_stays_the_same(
    full: ProfileReport, missing: dict[str, None], label: str, shares: list[float]
) -> None:
    assert full.answers is not None
    arms = [replace(arm, **missing) for arm in full.answers.arms]  # type: ignore[arg-type]
    report = replace(full, answers=replace(full.answers, references=0, arms=arms))
    chart = drawn(report)["quality-speed-batch-8"]
    assert chart.y_label == label
    assert [point.y for point in chart.points] == pytest.approx(shares)
    assert all(point.y_interval is None for point in chart.points)


def test_attended_vision_is_drawn_where_some_attend_to_a_part() -> None:
    made = sample_report.layerwise()
    [chart] = charts(made)["vision"]
    assert (chart.name, chart.unit) == ("vision-attended-batch-8", "vision tokens")
    assert [line.name for line in chart.lines] == [arm.name for arm in made.cells[0].arms]
    tokens = [float(n) for n in range(1, sample_report.NEW_TOKENS + 1)]
    assert all(line.xs == tokens for line in chart.lines)
    assert chart.lines[2].ys[:2] == [sample_report.VISION, 40.25]
    assert chart.lines[3].withdrawn_after == 64 and chart.lines[1].withdrawn_after is None
    baseline, _, _, back = made.cells[0].arms
    cell = replace(made.cells[0], arms=[baseline, back])  # all or nothing: the other charts tell
    assert charts(replace(made, cells=[cell]))["vision"] == []
