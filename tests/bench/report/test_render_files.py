"""Reports as Markdown, CSV and picture files: whole, escaped, the same each time."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sample_report
from PIL import Image

from mvw_cli.bench.report import charts, markdown
from mvw_cli.bench.report import csv as csv_format
from mvw_cli.bench.report.documents import Report
from mvw_cli.bench.report.pictures import pictures
from mvw_cli.bench.report.sections import sections
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.render.content import Table

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def full() -> Report:
    return sample_report.report()


@pytest.mark.parametrize(
    "made",
    [sample_report.report, sample_report.bare, sample_report.planned, sample_report.layerwise],
)
def test_markdown_holds_every_section_and_row(made: Callable[[], Report]) -> None:
    report = made()
    text = markdown.document(report)
    assert text.startswith(f"# Profile of {report.model.name}\n")
    lines = text.splitlines()
    for section in sections(report):
        assert f"## {section.title}" in lines
        for part in section.parts:
            if isinstance(part, Table):
                assert f"| {' | '.join(part.columns)} |" in lines
    rows = sum(len(p.rows) for s in sections(report) for p in s.parts if isinstance(p, Table))
    tables = sum(isinstance(p, Table) for s in sections(report) for p in s.parts)
    assert sum(line.startswith("|") for line in lines) == rows + 2 * tables


def test_markdown_tables_have_as_many_cells_in_each_row(full: Report) -> None:
    evil = replace(full.cells[0].arms[1], name="a|b `c` *d* [e](f) <g> $h$ \n i \x1b")
    report = replace(full, cells=[replace(full.cells[0], arms=[full.cells[0].arms[0], evil])])
    for block in markdown.document(report).split("\n\n"):
        if block.startswith("|"):
            counts = {line.replace("\\|", "").count("|") for line in block.splitlines()}
            assert len(counts) == 1, block
    name = "a\\|b \\`c\\` \\*d\\* [e\\](f) &lt;g&gt; \\$h\\$ i ␛"
    assert f"| {name} |" in markdown.document(report)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Linux-6.1-x86_64", "Linux-6.1-x86_64"),
        ("1.20 × [1.10, 1.31] faster (a)", "1.20 × [1.10, 1.31] faster (a)"),
        ("_a_ [b]: c", "\\_a\\_ [b\\]: c"),
        ("# a", "\\# a"),
        ("- a", "\\- a"),
        ("1. a", "\\1. a"),
        ("![x](http://y)", "![x\\](http://y)"),
        ("<script>&", "&lt;script&gt;&amp;"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert markdown.escape(text) == escaped


def test_csv_holds_each_figure_with_its_unit_and_interval(full: Report) -> None:
    rows = list(csv.DictReader(StringIO(csv_format.document(full))))
    assert tuple(rows[0]) == csv_format.COLUMNS
    arm = full.cells[1].arms[1]
    row = next(r for r in rows if (r["batch"], r["arm"], r["figure"]) == ("8", "m=16", "tpot_ms"))
    ratio = arm.ratios["tpot"]
    assert row == {
        "section": "speed",
        "batch": "8",
        "arm": "m=16",
        "figure": "tpot_ms",
        "unit": "ms",
        "value": str(arm.tpot_ms.median),
        "p90": str(arm.tpot_ms.p90),
        "p99": str(arm.tpot_ms.p99),
        "spread": str(arm.tpot_ms.spread),
        "samples": str(len(arm.tpot_ms.samples)),
        "ratio_to_baseline": str(ratio.median),
        "ratio_low_95": str(ratio.interval_95[0]),
        "ratio_high_95": str(ratio.interval_95[1]),
        "shown": "faster",
    }
    assert all(row["unit"] and row["value"] for row in rows)
    assert {row["section"] for row in rows} == {"speed", "phases", "memory", "bound", "answers"}
    freed = [row for row in rows if row["figure"] == "kv_bytes_after"]
    assert [int(row["value"]) for row in freed] == [
        arm.memory.kv_bytes_after for cell in full.cells for arm in cell.arms
    ]


def test_csv_of_little_has_little(full: Report) -> None:
    bare = csv_format.document(sample_report.bare())
    assert "None" not in bare and "withdrawal_ms" not in bare
    assert csv_format.document(sample_report.planned()) == ",".join(csv_format.COLUMNS)


def test_csv_is_no_formula(full: Report) -> None:
    arms = [replace(full.cells[0].arms[0], name='=HYPERLINK("x")')]
    report = replace(full, answers=None, cells=[replace(full.cells[0], arms=arms)])
    rows = list(csv.DictReader(StringIO(csv_format.document(report))))
    assert {row["arm"] for row in rows} == {'\'=HYPERLINK("x")'}


@pytest.fixture(scope="module")
def folder(full: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("charts") / "pictures"
    report = replace(full, cells=full.cells[1:])
    written = charts.write_charts(report, folder)
    assert sorted(written) == sorted(folder.iterdir())
    assert len(written) == 2 * len(pictures(report))
    return folder


def test_charts_are_labelled_with_their_units(folder: Path, full: Report) -> None:
    for picture in pictures(replace(full, cells=full.cells[1:])):
        root = ElementTree.parse(folder / f"{picture.name}.svg").getroot()
        said = {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
        wanted = {picture.title, picture.x_label, f"{picture.y_label}, {picture.unit}"}
        wanted |= {item.name for item in (*picture.lines, *picture.points)}
        if picture.behind:
            wanted.add(picture.behind)
        if picture.level:
            wanted.add(picture.level[0])
        assert wanted <= said
        marks = {line.withdrawn_after for line in picture.lines} - {None}
        assert not marks or f"withdrawn after {min(m for m in marks if m)}" in said


def test_charts_are_pictures(folder: Path) -> None:
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 500
            colours = image.convert("RGB").getcolors(1 << 20)
            assert colours is not None and len(colours) > 20


def test_charts_are_the_same_each_time(folder: Path, full: Report) -> None:
    for picture in pictures(full):
        if picture.name.startswith("attention"):
            for kind in charts.FORMATS:
                drawn = charts.chart(picture, kind)
                assert drawn == (folder / f"{picture.name}.{kind}").read_bytes()
                assert b"dc:date" not in drawn


def test_charts_leave_the_settings_of_others_alone(full: Report) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    charts.chart(pictures(full)[0], "svg")
    assert dict(matplotlib.rcParams) == before


def test_charts_draw_any_name(full: Report) -> None:
    arms = [replace(arm, name=f"$\\frac{{<b>&{i}" + "long " * 9)
            for i, arm in enumerate(full.cells[0].arms * 3)]  # fmt: skip
    report = replace(full, cells=[replace(full.cells[0], arms=arms)])
    drawn = charts.chart(pictures(report)[0], "svg")
    said = "".join(ElementTree.parse(BytesIO(drawn)).getroot().itertext())
    assert "$\\frac{<b>&0" in said


def test_without_matplotlib_a_hint_says_what_to_install(
    full: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageProblem) as caught:
        charts.write_charts(full, tmp_path / "pictures")
    assert caught.value.hint == 'pip install "mvw[plot]"'
    assert not (tmp_path / "pictures").exists()


def test_a_folder_that_cannot_be_is_an_error(full: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "no" / "folder"):
        with pytest.raises(MvwError) as caught:
            charts.write_charts(full, folder)
        assert str(folder) in caught.value.message
