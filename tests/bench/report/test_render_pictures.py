"""What pictures show, and how blocks show it: the withdrawal marked, all bands to one scale."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
import sample_report
from rich.console import Console

from mvw_cli.bench.report import blocks, text
from mvw_cli.bench.report.documents import Report
from mvw_cli.bench.report.pictures import pictures
from mvw_cli.render.picture import Line, Picture, Point


@pytest.fixture(scope="module")
def full() -> Report:
    return sample_report.report()


def named(report: Report, name: str) -> Picture:
    return next(picture for picture in pictures(report) if picture.name == name)


def steps(**change: object) -> Picture:
    baseline = Line("baseline", 0, [2.0, 3.0, 4.0, 5.0], [8.0, 8.0, 8.0, 8.0])
    m = Line("m=3", 1, [2.0, 3.0, 4.0, 5.0], [8.0, 8.0, 4.0, 4.0], withdrawn_after=3, mark=3.5)
    picture = Picture("p", "Time", "tokens", "time", "ms", "A sentence.", [baseline, m])
    return replace(picture, **change)  # type: ignore[arg-type]


def drawn(picture: Picture, alphabet: blocks.Alphabet = blocks.UNICODE) -> list[str]:
    return [row.text for row in blocks.draw(picture, 60, alphabet)]


def test_every_cell_has_its_pictures(full: Report) -> None:
    assert [picture.name for picture in pictures(full)] == [
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
    assert pictures(sample_report.bare()) == []


def test_time_per_token_starts_at_the_second_token(full: Report) -> None:
    line = named(full, "time-per-token-batch-8").lines[1]
    arm = full.cells[1].arms[1]
    assert (line.name, line.xs[0], line.xs[-1]) == ("m=16", 2.0, sample_report.NEW_TOKENS)
    assert (line.ys, line.withdrawn_after) == (arm.step_ms, 16)
    cheap = next(x for x, y in zip(line.xs, line.ys, strict=True) if y < 50)
    assert cheap - 1 < line.mark < cheap  # the mark stands right before the first fast step


def test_memory_is_in_the_largest_unit_that_leaves_one(full: Report) -> None:
    small, large = named(full, "kv-cache-batch-1"), named(full, "kv-cache-batch-8")
    assert (small.unit, large.unit) == ("MiB", "GiB")
    point = full.cells[1].arms[0].memory.timeline[-1]
    assert large.lines[0].ys[-1] == point.kv_bytes / 2**30
    assert large.lines[0].behind is not None
    assert large.lines[0].behind[-1] == point.kv_allocated_bytes / 2**30


def test_memory_is_marked_where_it_falls(full: Report) -> None:
    line = named(full, "kv-cache-batch-8").lines[1]
    low = next(x for x, y in zip(line.xs, line.ys, strict=True) if y < 0.5)
    assert low - 1 < line.mark < low


def test_cross_attention_says_what_its_share_is(full: Report) -> None:
    assert full.attention is not None
    cross_attention = replace(full.attention, measure="cross-attention", vision_share_of_entries=[])
    picture = named(replace(full, attention=cross_attention), "attention")
    assert picture.title == "What vision adds to each token" and picture.y_label == "share added"
    assert "cross-attention" in picture.says and picture.lines[0].behind is None
    assert "share of the attention" in named(full, "attention").says


def test_each_layer_has_its_line(full: Report) -> None:
    assert full.attention is not None
    picture = named(full, "attention-by-layer")
    assert [line.name for line in picture.lines] == ["layer 3", "layer 8", "layer 13", "layer 18"]
    assert picture.lines[2].ys == [100 * share for share in full.attention.by_layer[2]]
    alone = replace(full.attention, layers=[3], by_layer=full.attention.by_layer[:1])
    names = [found.name for found in pictures(replace(full, attention=alone))]
    assert "attention" in names and "attention-by-layer" not in names


def test_without_a_device_the_process_is_shown(full: Report) -> None:
    arm = full.cells[0].arms[0]
    points = [
        replace(point, device_allocated_bytes=None, device_reserved_bytes=None)
        for point in arm.memory.timeline
    ]
    cell = replace(full.cells[0], arms=[replace(arm, memory=replace(arm.memory, timeline=points))])
    picture = named(replace(full, cells=[cell]), "process-memory-batch-1")
    assert picture.lines[0].ys[0] == 4.0 and picture.lines[0].behind is None


def test_quality_is_accuracy_where_there_are_references(full: Report) -> None:
    picture = named(full, "quality-speed-batch-8")
    ratio = full.cells[1].arms[1].ratios["tokens_per_s"]
    assert picture.points[0] == Point("baseline", 0, 1.0, 85.0, None, picture.points[0].y_interval)
    sixteen = picture.points[1]
    assert (sixteen.x, sixteen.x_interval, sixteen.y) == (ratio.median, ratio.interval_95, 75.0)
    assert picture.level == ("no image", 30.0)
    assert picture.y_label == "right answers"


def test_natural_length_is_judged_by_whole_answers(full: Report) -> None:
    natural = replace(full, workload=replace(full.workload, mode="natural"))
    picture = named(natural, "quality-speed-batch-8")
    assert picture.points[1].x == full.cells[1].arms[1].ratios["answer"].median
    assert "answers per second" in picture.x_label


def test_quality_without_references_is_how_much_stays_the_same(full: Report) -> None:
    assert full.answers is not None
    arms = [replace(arm, correct=None) for arm in full.answers.arms]
    report = replace(full, answers=replace(full.answers, references=0, arms=arms))
    picture = named(report, "quality-speed-batch-8")
    assert picture.y_label == "same answer"
    assert [point.y for point in picture.points] == [100.0, 60.0, 95.0]
    arms = [replace(arm, same_answer=None) for arm in arms]
    report = replace(full, answers=replace(full.answers, references=0, arms=arms))
    picture = named(report, "quality-speed-batch-8")
    assert picture.y_label == "same next token"
    assert [point.y for point in picture.points] == [100.0, 95.5, 99.0]
    assert picture.points[1].y_interval == (93.5, 95.0)
    arms = [replace(arm, agreement=None) for arm in arms]
    report = replace(full, answers=replace(full.answers, references=0, arms=arms))
    picture = named(report, "quality-speed-batch-8")
    assert picture.y_label == "identical answers"
    assert [point.y for point in picture.points] == pytest.approx([100.0, 55.0, 90.0])


def test_blocks_share_a_scale_and_mark_the_withdrawal() -> None:
    assert drawn(steps()) == [
        "Time (ms)",
        "          │ baseline",
        "     8.00 │████",
        "          │████",
        "        0 │████",
        "          │ m=3",
        "     8.00 │██",
        "          │██▄▄",
        "        0 │████",
        "             ▲ withdrawn after 3 tokens",
        "          │────",
        "           2 5 tokens",
    ]


def test_blocks_in_ascii_say_the_same() -> None:
    rows = drawn(steps(), blocks.ASCII)
    assert "".join(rows).isascii()
    assert rows[6:10] == [
        "     8.00 |##",
        "          |##..",
        "        0 |####",
        "             ^ withdrawn after 3 tokens",
    ]


def test_what_lies_behind_is_faint_and_explained() -> None:
    line = Line("m=3", 1, [1.0, 2.0], [1.0, 1.0], [3.0, 1.0])
    rows = drawn(steps(lines=[line], behind="storages"))
    assert rows[2:5] == ["     3.00 │░", "          │░", "        0 │██"]
    assert rows[-1].strip() == "░ storages"
    alone = replace(line, behind=None)
    assert "storages" not in "".join(drawn(steps(lines=[alone], behind="storages")))


@pytest.mark.parametrize("width", [20, 40, 60, 100, 200])
@pytest.mark.parametrize("alphabet", [blocks.UNICODE, blocks.ASCII])
def test_blocks_fit_the_width(full: Report, width: int, alphabet: blocks.Alphabet) -> None:
    for picture in pictures(full):
        assert max(len(row.text) for row in blocks.draw(picture, width, alphabet)) <= width


@pytest.mark.parametrize("after", [1, 2, 250, 256, 300])
def test_a_withdrawal_anywhere_is_told(full: Report, after: int) -> None:
    picture = named(full, "time-per-token-batch-1")
    lines = [replace(picture.lines[1], withdrawn_after=after, mark=after + 0.5)]
    rows = [row.text for row in blocks.draw(replace(picture, lines=lines), 80)]
    said = [row for row in rows if "withdrawn after" in row]
    assert len(said) == 1 and f"after {after} token" in said[0]
    assert ("▲" in said[0]) == (2 <= after < 256)


def test_what_lies_between_points_is_not_left_empty() -> None:
    thin = Line("baseline", 0, [1.0, 21.0, 41.0], [8.0, 8.0, 4.0])
    short = Line("m=3", 1, [1.0, 21.0], [8.0, 8.0])
    rows = drawn(steps(lines=[thin, short]))
    assert rows[4] == "        0 │" + "█" * 41
    assert rows[8] == "        0 │" + "█" * 21  # and not drawn on beyond its end


def test_nothing_but_zeros_is_drawn_as_nothing() -> None:
    flat = Line("baseline", 0, [1.0, 2.0], [0.0, 0.0])
    assert "█" not in "".join(drawn(steps(lines=[flat])))


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_terminal_shows_the_pictures(full: Report, ascii_only: bool) -> None:
    screen = Console(width=80, file=StringIO(), force_terminal=True, color_system=None)
    for part in text.renderables(full, 80, ascii_only=ascii_only):
        screen.print(part)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "layer 13" not in shown
    assert "PICTURES" in shown and "Attention on vision tokens (%)" in shown
    assert ("█" in shown) != ascii_only
