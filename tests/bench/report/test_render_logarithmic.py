"""Pictures with a logarithmic y: their axis, their curve, and the files that hold them."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

from mvw_cli.bench.report import blocks
from mvw_cli.bench.report.charts import chart
from mvw_cli.render.axis import decades, ranges
from mvw_cli.render.picture import Line, Picture
from mvw_cli.render.svg import svg
from mvw_cli.render.svg_file import svg_file

FALLING = [10.0**-power for power in range(6)]  # 1 … 1e-5
PICTURE = Picture(
    "kl",
    "KL <by> layer",
    "layer",
    "KL",
    "nats",
    "It falls.",
    [Line("mean", 1, [float(x) for x in range(1, 7)], FALLING)],
    level=("eta = 0.003", 0.003),
    logarithmic=True,
)


def test_the_axis_covers_whole_powers_of_ten() -> None:
    one = Line("one", 1, [1.0, 2.0], [0.02, 0.9])
    assert ranges(Picture("a", "a", "x", "y", "u", "s", [one], logarithmic=True))[1] == (0.01, 1.0)
    flat = Line("flat", 1, [1.0, 2.0], [0.1, 0.1])
    assert ranges(Picture("a", "a", "x", "y", "u", "s", [flat], logarithmic=True))[1] == (0.1, 1.0)
    below = Picture("a", "a", "x", "y", "u", "s", [one], level=("e", 0.0003), logarithmic=True)
    assert ranges(below)[1] == (0.0001, 1.0)


def test_decades_are_thinned_out() -> None:
    assert decades(1e-5, 1.0, 6) == [10.0**power for power in range(-5, 1)]
    assert len(decades(1e-20, 1.0, 6)) <= 6


def test_equal_factors_are_equal_steps() -> None:
    drawn = svg(PICTURE, 500, 300)
    path = next(one for one in re.findall(r'class="line c1" d="M([^"]+)"', drawn))
    ys = [float(pair.split()[1]) for pair in path.split("L")]
    steps = [after - before for before, after in itertools.pairwise(ys)]
    assert max(steps) - min(steps) <= 0.2 and steps[0] > 10
    assert ">1e-05<" in drawn and ">0.001<" in drawn


def test_the_file_is_a_whole_document() -> None:
    text = svg_file(PICTURE)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "KL &lt;by&gt; layer" in text and "prefers-color-scheme" in text
    assert "eta = 0.003" in text
    assert text == svg_file(PICTURE)
    two = Picture(*(getattr(PICTURE, one) for one in ("name", "title", "x_label", "y_label", "unit",
                  "says")), [*PICTURE.lines, Line("other", 2, [1.0, 2.0], [1.0, 2.0])])  # fmt: skip
    assert ">mean<" in svg_file(two) and ">other<" in svg_file(two)


def test_blocks_stand_on_the_same_scale() -> None:
    rows = [row.text for row in blocks.draw(PICTURE, 60)]
    labels = [row.split("│")[0].strip() for row in rows if "│" in row]
    assert "1" in labels and "1e-05" in labels
    bottom = next(row for row in rows if row.strip().startswith("1e-05"))
    # On a linear scale all but the first two would be empty.
    assert len(bottom.split("│")[1].rstrip()) == 5


def test_matplotlib_draws_it_too() -> None:
    assert b"<svg" in chart(PICTURE, "svg")
