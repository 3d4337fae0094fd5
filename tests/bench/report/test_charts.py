"""What the charts of a report show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sample_report

from mvw_cli.bench.documents import ProfileReport
from mvw_cli.bench.report.charts import charts
from mvw_cli.render.chart import Chart, Point


@pytest.fixture(scope="module")
def full() -> ProfileReport:
    return sample_report.report()


def named(report: ProfileReport, name: str) -> Chart:
    return next(chart for chart in charts(report) if chart.name == name)


def test_every_cell_has_its_charts(full: ProfileReport) -> None:
    assert [chart.name for chart in charts(full)] == [
        "time-per-token-batch-1",
        "time-per-token-batch-8",
        "kv-cache-batch-1",
        "device-memory-batch-1",
        "kv-cache-batch-8",
        "device-memory-batch-8",
        "attention",
        "attention-by-layer",
        "quality-speed-batch-1",
        "quality-speed-batch-8",
    ]
    assert charts(sample_report.bare()) == []


def test_time_per_token_starts_at_the_second_token(full: ProfileReport) -> None:
    line = named(full, "time-per-token-batch-8").lines[1]
    arm = full.cells[1].arms[1]
    assert (line.name, line.xs[0], line.xs[-1]) == ("m=16", 2.0, sample_report.NEW_TOKENS)
    assert (line.ys, line.withdrawn_after) == (arm.step_ms, 16)
    cheap = next(x for x, y in zip(line.xs, line.ys, strict=True) if y < 50)
    assert cheap - 1 < line.withdrawn_x < cheap  # the mark stands right before the first fast step


def test_memory_is_in_the_largest_unit_that_leaves_one(full: ProfileReport) -> None:
    small, large = named(full, "kv-cache-batch-1"), named(full, "kv-cache-batch-8")
    assert (small.unit, large.unit) == ("MiB", "GiB")
    point = full.cells[1].arms[0].memory.timeline[-1]
    assert large.lines[0].ys[-1] == point.kv_bytes / 2**30
    assert large.lines[0].faint is not None
    assert large.lines[0].faint[-1] == point.kv_allocated_bytes / 2**30


def test_memory_is_marked_where_it_falls(full: ProfileReport) -> None:
    line = named(full, "kv-cache-batch-8").lines[1]
    low = next(x for x, y in zip(line.xs, line.ys, strict=True) if y < 0.5)
    assert low - 1 < line.withdrawn_x < low


def test_cross_attention_says_what_its_share_is(full: ProfileReport) -> None:
    assert full.attention is not None
    crossing = replace(full.attention, measure="cross-attention", vision_share_of_entries=[])
    chart = named(replace(full, attention=crossing), "attention")
    assert chart.title == "What vision adds to each token" and chart.y_label == "share added"
    assert "cross-attention" in chart.caption and chart.lines[0].faint is None
    assert "share of the attention" in named(full, "attention").caption


def test_each_layer_has_its_line(full: ProfileReport) -> None:
    assert full.attention is not None
    chart = named(full, "attention-by-layer")
    assert [line.name for line in chart.lines] == ["layer 3", "layer 8", "layer 13", "layer 18"]
    assert chart.lines[2].ys == [100 * share for share in full.attention.by_layer[2]]
    alone = replace(full.attention, layers=[3], by_layer=full.attention.by_layer[:1])
    names = [found.name for found in charts(replace(full, attention=alone))]
    assert "attention" in names and "attention-by-layer" not in names


def test_without_a_device_the_process_is_shown(full: ProfileReport) -> None:
    arm = full.cells[0].arms[0]
    points = [
        replace(point, device_allocated_bytes=None, device_reserved_bytes=None)
        for point in arm.memory.timeline
    ]
    cell = replace(full.cells[0], arms=[replace(arm, memory=replace(arm.memory, timeline=points))])
    chart = named(replace(full, cells=[cell]), "process-memory-batch-1")
    assert chart.lines[0].ys[0] == 4.0 and chart.lines[0].faint is None


def test_quality_is_accuracy_where_there_are_references(full: ProfileReport) -> None:
    chart = named(full, "quality-speed-batch-8")
    ratio = full.cells[1].arms[1].ratios["tokens_per_s"]
    assert chart.points[0] == Point("baseline", 0, 1.0, 85.0, None, chart.points[0].y_interval)
    sixteen = chart.points[1]
    assert (sixteen.x, sixteen.x_interval, sixteen.y) == (ratio.median, ratio.interval_95, 75.0)
    assert chart.reference == ("no image", 30.0)
    assert chart.y_label == "right answers"


def test_natural_length_is_judged_by_whole_answers(full: ProfileReport) -> None:
    natural = replace(full, workload=replace(full.workload, mode="natural"))
    chart = named(natural, "quality-speed-batch-8")
    assert chart.points[1].x == full.cells[1].arms[1].ratios["answer"].median
    assert "answers per second" in chart.x_label


def test_quality_without_references_is_how_much_stays_the_same(full: ProfileReport) -> None:
    assert full.answers is not None
    arms = [replace(arm, correct=None) for arm in full.answers.arms]
    report = replace(full, answers=replace(full.answers, references=0, arms=arms))
    chart = named(report, "quality-speed-batch-8")
    assert chart.y_label == "same answer"
    assert [point.y for point in chart.points] == [100.0, 60.0, 95.0]
    arms = [replace(arm, same_answer=None) for arm in arms]
    report = replace(full, answers=replace(full.answers, references=0, arms=arms))
    chart = named(report, "quality-speed-batch-8")
    assert chart.y_label == "same next token"
    assert [point.y for point in chart.points] == [100.0, 95.5, 99.0]
    assert chart.points[1].y_interval == (93.5, 95.0)
    arms = [replace(arm, agreement=None) for arm in arms]
    report = replace(full, answers=replace(full.answers, references=0, arms=arms))
    chart = named(report, "quality-speed-batch-8")
    assert chart.y_label == "identical answers"
    assert [point.y for point in chart.points] == pytest.approx([100.0, 55.0, 90.0])


def test_attended_vision_is_drawn_where_some_attend_to_a_part() -> None:
    made = sample_report.layerwise()
    [chart] = [one for one in charts(made) if one.name.startswith("vision")]
    assert (chart.name, chart.unit) == ("vision-attended-batch-8", "vision tokens")
    assert [line.name for line in chart.lines] == [arm.name for arm in made.cells[0].arms]
    tokens = [float(n) for n in range(1, sample_report.NEW_TOKENS + 1)]
    assert all(line.xs == tokens for line in chart.lines)
    assert chart.lines[2].ys[:2] == [sample_report.VISION, 40.25]
    assert chart.lines[3].withdrawn_after == 64 and chart.lines[1].withdrawn_after is None
    baseline, _, _, back = made.cells[0].arms
    cell = replace(made.cells[0], arms=[baseline, back])  # all or nothing: the other charts tell
    assert not [one for one in charts(replace(made, cells=[cell])) if "vision" in one.name]
