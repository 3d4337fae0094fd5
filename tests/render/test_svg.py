"""Charts as SVG: axes, curves, marks, and the files that hold them."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mvw_cli.errors import MvwError
from mvw_cli.render.chart import Chart, Line, Point, decades, ranges, ticks
from mvw_cli.render.svg import svg, svg_file, write_charts

EVIL = "$\\frac{<b>&\x1b" + "long " * 9
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


def said(drawn: str) -> set[str]:
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    found = root.iter("{http://www.w3.org/2000/svg}text")
    return {"".join(text.itertext()).strip() for text in found}


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 59.3, [0, 20, 40]),
        (2, 256, [100, 200]),
        (0.98, 1.27, [1.0, 1.1, 1.2]),
        (0, 0.012, [0, 0.0025, 0.005, 0.0075, 0.01]),
    ],
)
def test_ticks_are_round(low: float, high: float, values: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(values)


def test_a_logarithmic_axis_covers_whole_powers_of_ten_in_equal_steps() -> None:
    one = Line("one", 1, [1.0, 2.0], [0.02, 0.9])
    assert ranges(replace(LOGARITHMIC, lines=[one], reference=None))[1] == (0.01, 1.0)
    flat = Line("flat", 1, [1.0, 2.0], [0.1, 0.1])
    assert ranges(replace(LOGARITHMIC, lines=[flat], reference=None))[1] == (0.1, 1.0)
    assert ranges(replace(LOGARITHMIC, lines=[one], reference=("e", 3e-4)))[1] == (1e-4, 1.0)
    assert decades(1e-5, 1.0, 6) == [10.0**power for power in range(-5, 1)]
    assert len(decades(1e-20, 1.0, 6)) <= 6
    drawn = svg(LOGARITHMIC, 500, 300)
    path = next(one for one in re.findall(r'class="line c1" d="M([^"]+)"', drawn))
    ys = [float(pair.split()[1]) for pair in path.split("L")]
    steps = [after - before for before, after in itertools.pairwise(ys)]
    assert max(steps) - min(steps) <= 0.2 and steps[0] > 10
    assert ">1e-05<" in drawn and ">0.001<" in drawn


def test_a_file_says_what_it_shows() -> None:
    assert {"KL <by> layer", "layer", "KL, nats", "eta = 0.003"} <= said(svg_file(LOGARITHMIC))
    assert "prefers-color-scheme" in svg_file(LOGARITHMIC)
    assert "mean" not in said(svg_file(LOGARITHMIC))  # the title says what an only line is
    other = Line(EVIL, 2, [1.0, 2.0], [1.0, 2.0], [0.5, 0.5], withdrawn_after=1, withdrawn_x=1.5)
    two = replace(LOGARITHMIC, lines=[*LOGARITHMIC.lines, other], faint_label="faint")
    words = said(svg_file(two))
    name = EVIL.replace("\x1b", "␛")
    assert {"mean", "faint", f"{name} (▾ withdrawn after 1)", "▾"} <= words
    assert svg_file(two).count('class="mark c2"') == 1
    assert 'class="line c2" stroke-dasharray="7 4"' in svg_file(two)


def test_points_are_named_by_the_legend_or_beside_a_line() -> None:
    line = Line("right", 1, [0.0, 1.0], [20.0, 90.0])
    points = [Point("90.0", 1, 1.0, 90.0, y_interval=(80.0, 97.0))]
    named = Chart("a", "A", "m", "right", "%", "It rises.", [line], points=points,
                  x_names=["1", "never"])  # fmt: skip
    assert ranges(named) == ((-0.5, 1.5), (0.0, 97.0 * 1.05))
    text = svg_file(named, LOGARITHMIC, height=200)
    assert ElementTree.fromstring(text).get("height") == str(2 * (30 + 200))
    assert text.count('class="whisker c1"') == 1
    assert {"A", "never", "90.0", "KL <by> layer"} <= said(text) and "0.5" not in said(text)
    scattered = replace(named, lines=[], x_names=None, points=[*points, *points])
    assert svg_file(scattered).count(">90.0</text>") == 2


def test_files_are_written_or_named_in_an_error(tmp_path: Path) -> None:
    assert write_charts({tmp_path / "kl.svg": LOGARITHMIC}) == [tmp_path / "kl.svg"]
    assert (tmp_path / "kl.svg").read_text("utf-8") == svg_file(LOGARITHMIC)
    with pytest.raises(MvwError) as caught:
        write_charts({tmp_path / "no" / "kl.svg": LOGARITHMIC})
    assert str(tmp_path / "no" / "kl.svg") in caught.value.message
