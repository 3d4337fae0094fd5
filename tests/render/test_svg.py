"""Charts as SVG: axes, curves, marks, heatmaps, and the files that hold them."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sample_report

from mvw_cli.bench.documents import ProfileReport
from mvw_cli.bench.report.charts import charts
from mvw_cli.errors import MvwError
from mvw_cli.render.chart import Chart, Line, Point, decades, ranges, tick_text, ticks
from mvw_cli.render.svg import svg, svg_file, write_charts

SVG = "{http://www.w3.org/2000/svg}"
FALLING = [10.0**-power for power in range(6)]  # 1 … 1e-5
LOGARITHMIC = Chart(
    "kl",
    "KL <by> layer",
    "layer",
    "KL",
    "nats",
    "It falls.",
    [Line("mean", 1, [float(x) for x in range(1, 7)], FALLING)],
    reference=("eta = 0.003", 0.003),
    logarithmic=True,
)


@pytest.fixture(scope="module")
def full() -> ProfileReport:
    return sample_report.report()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 59.3, ["0", "20", "40"]),
        (2, 256, ["100", "200"]),
        (0.98, 1.27, ["1.0", "1.1", "1.2"]),
        (0, 0.012, ["0.0000", "0.0025", "0.0050", "0.0075", "0.0100"]),
        (0, 12_000, ["0", "2,500", "5,000", "7,500", "10,000"]),
    ],
)
def test_ticks_are_round_and_tell_themselves_apart(
    low: float, high: float, said: list[str]
) -> None:
    values = ticks(low, high, 5)
    assert [tick_text(value, values) for value in values] == said


def test_a_logarithmic_axis_covers_whole_powers_of_ten() -> None:
    one = Line("one", 1, [1.0, 2.0], [0.02, 0.9])
    assert ranges(replace(LOGARITHMIC, lines=[one], reference=None))[1] == (0.01, 1.0)
    flat = Line("flat", 1, [1.0, 2.0], [0.1, 0.1])
    assert ranges(replace(LOGARITHMIC, lines=[flat], reference=None))[1] == (0.1, 1.0)
    assert ranges(replace(LOGARITHMIC, lines=[one], reference=("e", 3e-4)))[1] == (1e-4, 1.0)
    assert decades(1e-5, 1.0, 6) == [10.0**power for power in range(-5, 1)]
    assert len(decades(1e-20, 1.0, 6)) <= 6


def test_equal_factors_are_equal_steps() -> None:
    drawn = svg(LOGARITHMIC, 500, 300)
    path = next(one for one in re.findall(r'class="line c1" d="M([^"]+)"', drawn))
    ys = [float(pair.split()[1]) for pair in path.split("L")]
    steps = [after - before for before, after in itertools.pairwise(ys)]
    assert max(steps) - min(steps) <= 0.2 and steps[0] > 10
    assert ">1e-05<" in drawn and ">0.001<" in drawn


def test_a_spike_is_not_lost_among_many_tokens() -> None:
    steps = [10.0] * 9000
    steps[4321] = 80.0
    line = Line("baseline", 0, [float(n) for n in range(9000)], steps)
    drawn = svg(Chart("t", "T", "tokens", "time", "ms", "A sentence.", [line]), 860, 330)
    [path] = re.findall(r'class="line c0" d="M([^"]+)"', drawn)
    heights = [float(point.split()[1]) for point in path.split("L")]
    assert len(heights) < 1500 and min(heights) < 50 < max(heights)


def test_a_heatmap_is_strong_where_its_line_is_high() -> None:
    lines = [
        Line("layer 0", 1, [1.0, 2.0, 3.0, 4.0], [50.0, 50.0, 0.0, 100.0]),
        Line("layer 7", 2, [1.0, 2.0, 3.0, 4.0], [100.0, 100.0, 100.0, 100.0]),
    ]
    chart = Chart("p", "P", "tokens", "share", "%", "A sentence.", lines, heatmap=True)
    drawn = svg(chart, 266, 274)  # 200 by 200 inside
    cells = re.findall(
        r'<rect x="(.*?)" y="(.*?)" height="(.*?)" width="(.*?)" fill-opacity="(.*?)"', drawn
    )
    assert cells == [
        ("52.0", "30.0", "99.0", "100.0", "0.50"),
        ("202.0", "30.0", "99.0", "50.0", "1.00"),
        ("52.0", "130.0", "99.0", "200.0", "1.00"),
    ]
    assert ">7</text>" in drawn and ">layer</text>" in drawn


def test_files_are_labelled_with_their_units(full: ProfileReport, tmp_path: Path) -> None:
    made = {tmp_path / f"{chart.name}.svg": chart for chart in charts(full)}
    assert write_charts(made) == list(made) and set(tmp_path.iterdir()) == set(made)
    for path, chart in made.items():
        root = ElementTree.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        said = {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
        wanted = {chart.title, chart.x_label}
        if not chart.heatmap:
            wanted |= {f"{chart.y_label}, {chart.unit}", *(point.name for point in chart.points)}
            wanted |= {
                line.name
                if line.withdrawn_after is None
                else f"{line.name} (▾ withdrawn after {line.withdrawn_after})"
                for line in chart.lines
            }
        if any(line.faint for line in chart.lines):
            wanted.add(chart.faint_label)
        if chart.reference:
            wanted.add(chart.reference[0])
        assert wanted <= said, chart.name
        assert path.read_text("utf-8") == svg_file(chart)


def test_a_file_is_a_whole_document_in_the_page_s_colours() -> None:
    text = svg_file(LOGARITHMIC)
    assert "KL &lt;by&gt; layer" in text and "prefers-color-scheme" in text
    assert "eta = 0.003" in text and ">mean<" not in text  # the title says what the line is
    other = Line("other", 2, [1.0, 2.0], [1.0, 2.0])
    two = svg_file(replace(LOGARITHMIC, lines=[*LOGARITHMIC.lines, other]))
    assert ">mean<" in two and ">other<" in two


def test_files_draw_any_name(full: ProfileReport) -> None:
    arms = [
        replace(arm, name=f"$\\frac{{<b>&\x1b{i}" + "long " * 9)
        for i, arm in enumerate(full.cells[0].arms * 3)
    ]
    report = replace(full, cells=[replace(full.cells[0], arms=arms)])
    drawn = svg_file(charts(report)[0])
    assert "$\\frac{<b>&␛0" in "".join(
        ElementTree.parse(BytesIO(drawn.encode())).getroot().itertext()
    )


def test_a_file_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MvwError) as caught:
        write_charts({tmp_path / "no" / "kl.svg": LOGARITHMIC})
    assert str(tmp_path / "no" / "kl.svg") in caught.value.message


def test_places_can_have_names_and_charts_can_be_stacked() -> None:
    line = Line("right", 1, [0.0, 1.0], [20.0, 90.0])
    points = [Point("90.0", 1, 1.0, 90.0, y_interval=(80.0, 97.0))]
    named = Chart("a", "A", "m", "right", "%", "It rises.", [line], points=points,
                  x_names=["1", "never"])  # fmt: skip
    assert ranges(named) == ((-0.5, 1.5), (0.0, 97.0 * 1.05))
    text = svg_file(named, LOGARITHMIC, height=200)
    root = ElementTree.fromstring(text)
    assert root.get("height") == str(2 * (30 + 200)) and text.count('class="whisker c1"') == 1
    said = ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]
    assert {"A", "never", "90.0", "KL <by> layer"} <= set(said) and "0.50" not in said
