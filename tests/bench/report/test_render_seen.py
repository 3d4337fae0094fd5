"""What arms read of the image, in each format, where they differ in it."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO

import pytest
import sample_report
from sample_report import NEW_TOKENS, VISION

from mvw_cli.bench.report import csv as csv_format
from mvw_cli.bench.report import html, markdown, seen, text
from mvw_cli.bench.report.documents import Report, read_report, to_json
from mvw_cli.bench.report.pictures import pictures
from mvw_cli.bench.report.sections import sections
from mvw_cli.render.content import Section, Table


@pytest.fixture(scope="module")
def made() -> Report:
    return sample_report.layerwise()


def table(section: Section) -> Table:
    return next(part for part in section.parts if isinstance(part, Table))


def test_each_arm_s_vision_stands_beside_the_baseline_s(made: Report) -> None:
    found = table(seen.vision(made))
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


def test_what_all_arms_share_is_left_out(made: Report) -> None:
    baseline, vtw, pulse, _ = made.cells[0].arms
    cell = replace(made.cells[0], arms=[baseline, pulse])
    assert table(seen.vision(replace(made, cells=[cell]))).columns == ["ARM", "ATTENDED BY A TOKEN"]
    alike = [baseline, replace(baseline, name="as baseline")]
    same = replace(made, cells=[replace(cell, arms=alike)])
    assert seen.vision(same).parts == [] == seen.prefill_bounds(same)
    assert "vision" not in [section.name for section in sections(same)]
    assert seen.vision(sample_report.report()).parts == []
    blind = replace(made, cells=[replace(cell, arms=[baseline, replace(vtw, vision=None)])])
    assert seen.vision(blind).parts == []


def test_the_prefill_is_set_beside_its_bound(made: Report) -> None:
    [found] = seen.prefill_bounds(made)
    assert isinstance(found, Table)
    rows = {row[1]: row for row in found.rows}
    assert list(rows) == ["vtw:layer=2", "pulse", "mvw:m=64+look-back"]
    assert rows["vtw:layer=2"][2:5] == ["11.5 TFLOP  50 % of baseline's", "16.5 ms", "2.00 ×"]
    assert rows["pulse"][2:5] == ["23.0 TFLOP  100 % of baseline's", "33.0 ms", "1.00 ×"]
    assert rows["vtw:layer=2"][5].endswith("no difference shown")
    baseline, _, pulse, _ = made.cells[0].arms
    cell = replace(made.cells[0], arms=[baseline, pulse])
    assert seen.prefill_bounds(replace(made, cells=[cell])) == []


def test_all_formats_say_it(made: Report) -> None:
    assert "WHAT IS READ OF THE IMAGE" in text.plain(made)
    assert "## What is read of the image" in markdown.document(made)
    page = html.page(made)
    assert '<h2 id="vision">What is read of the image</h2>' in page
    vtw = page.partition("<h3>Batch 8, vtw:layer=2</h3>")[2].partition("</div>")[0]
    assert "<p>first token " in vtw and "], at most 2.00 × by the bound: " in vtw
    pulse = page.partition("<h3>Batch 8, pulse</h3>")[2].partition("</div>")[0]
    assert "first token" not in pulse
    rows = list(csv.DictReader(StringIO(csv_format.document(made))))
    values = {(row["arm"], row["figure"]): (row["section"], row["unit"], float(row["value"]))
              for row in rows if row["section"] in ("vision", "bound", "memory")}  # fmt: skip
    assert values["vtw:layer=2", "attended"] == ("vision", "tokens", 504)
    assert values["vtw:layer=2", "entries_held"] == ("vision", "entries", 2016)
    assert values["vtw:layer=2", "prefill_flops"] == ("bound", "FLOP", 1.15e13)
    assert values["vtw:layer=2", "prefill_share"] == ("bound", "share", 0.5)
    assert values["vtw:layer=2", "prefill_seconds"] == ("bound", "s", 0.0165)
    assert values["vtw:layer=2", "prefill_speedup"] == ("bound", "times", 2)
    assert values["mvw:m=64+look-back", "withdrawals"] == ("vision", "per answer", 2)
    assert values["mvw:m=64+look-back", "look_backs"] == ("vision", "per answer", 1)
    offloaded = values["mvw:m=64+look-back", "host_offloaded_peak_bytes"]
    assert offloaded == ("memory", "bytes", VISION * sample_report.KV_PER_TOKEN)


def test_the_picture_is_there_where_some_attend_to_a_part(made: Report) -> None:
    [picture] = [one for one in pictures(made) if one.name.startswith("vision")]
    assert (picture.name, picture.unit) == ("vision-attended-batch-8", "vision tokens")
    assert [line.name for line in picture.lines] == [arm.name for arm in made.cells[0].arms]
    assert all(line.xs == [float(n) for n in range(1, NEW_TOKENS + 1)] for line in picture.lines)
    assert picture.lines[2].ys[:2] == [VISION, 40.25]
    assert picture.lines[3].withdrawn_after == 64 and picture.lines[1].withdrawn_after is None
    assert html.page(made).count(picture.title) > 0
    baseline, _, _, back = made.cells[0].arms
    cell = replace(made.cells[0], arms=[baseline, back])  # all or nothing: the other pictures tell
    assert not [one for one in pictures(replace(made, cells=[cell])) if "vision" in one.name]


def test_reports_from_before_can_still_be_read(made: Report, tmp_path: object) -> None:
    import json
    from pathlib import Path

    path = Path(str(tmp_path)) / "old.json"
    document = json.loads(to_json(made))
    for arm in document["cells"][0]["arms"]:
        del arm["vision"], arm["bound"]["prefill"]
        del arm["memory"]["kv_bytes_prefilled"], arm["memory"]["host_offloaded_peak_bytes"]
    path.write_text(json.dumps(document))
    old = read_report(str(path))
    assert all(arm.vision is None for arm in old.cells[0].arms)
    assert "WHAT IS READ" not in text.plain(old)
    path.write_text(to_json(made))
    assert read_report(str(path)) == made
