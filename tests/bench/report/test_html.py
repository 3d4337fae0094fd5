"""The page of a report: whole, escaped, and shown by a real browser without a flaw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_report
from browser import Browser, Checked, brightness, needs_browser

from mvw_cli.bench.documents import ProfileReport
from mvw_cli.bench.report import html
from mvw_cli.bench.report.charts import charts
from mvw_cli.bench.report.tables import sections
from mvw_cli.bench.stats import Ratio

EVIL = "<script>alert(1)</script>\"' onload=x & \x1b[2J </style>"


def many_arms() -> ProfileReport:
    """Nine arms, long names: what a sweep over policies makes."""
    full = sample_report.report(batches=(8,))
    baseline, arm, _ = full.cells[0].arms
    names = [f"a policy with a very long name that says m={m}" for m in (1, 2, 4, 8, 16, 32, 64)]
    arms = [baseline, *(replace(arm, name=name, withdrawn_after=17) for name in names)]
    return replace(
        full,
        model=replace(full.model, name="an-organisation/" + "a-very-long-model-name" * 5),
        command=["mvw", "profile", "--images", "/a/long/path" * 20],
        cells=[replace(full.cells[0], arms=arms)],
    )


REPORTS: dict[str, Callable[[], ProfileReport]] = {
    "full": sample_report.report,
    "bare": sample_report.bare,
    "planned": sample_report.planned,
    "many": many_arms,
    "layerwise": sample_report.layerwise,
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_is_well_formed_and_says_what_the_sections_say(name: str) -> None:
    report = REPORTS[name]()
    page = Checked(html.page(report))
    said = page.said()
    for section in sections(report):
        assert section.title in said
        for part in section.parts:
            for row in getattr(part, "rows", []):
                for cell in row:
                    assert " ".join(cell.split()) in said, cell
            assert " ".join(getattr(part, "text", "").split()) in said
    figures = [tag for tag, attributes in page.seen if tag == "svg" and "role" in attributes]
    assert len(figures) == sum(map(len, charts(report).values()))


def test_speed_ups_come_first_and_never_without_their_interval() -> None:
    full = sample_report.report()
    arm = replace(full.cells[0].arms[1], ratios={"tokens_per_s": Ratio(1.2, (0.9, 1.5), 12)})
    cell = replace(full.cells[0], arms=[full.cells[0].arms[0], arm])
    page = html.page(replace(full, cells=[cell]))
    head = page.partition("<nav")[0]
    assert '<b class="none">1.20 ×</b>' in head
    assert "[0.90, 1.50]" in head and "no difference shown" in head
    assert "faster" not in head.partition("</style>")[2]
    for sentence in full.verdicts:
        assert sentence.replace("\u00a0", " ") in head.replace("\u00a0", " ")


def test_everything_from_a_report_is_escaped() -> None:
    full = sample_report.report(batches=(1,))
    arms = [replace(arm, name=EVIL + arm.name) for arm in full.cells[0].arms]
    report = replace(
        full,
        model=replace(full.model, name=EVIL, adapter=EVIL),
        environment=replace(full.environment, mvw=EVIL, device_name=EVIL),
        command=[EVIL],
        started=EVIL,
        cells=[replace(full.cells[0], arms=arms, unstable=[EVIL])],
        verdicts=[EVIL],
    )
    page = html.page(report)
    parsed = Checked(page)
    assert {tag for tag, _ in parsed.seen} & {"script", "iframe", "object", "img"} == set()
    assert not any(name.startswith("on") for _, found in parsed.seen for name in found)
    assert page.count("</style>") == 1 and "\x1b" not in page


def test_the_page_refers_to_nothing_but_itself() -> None:
    parsed = Checked(html.page(sample_report.report()))
    links = [found[name] for _, found in parsed.seen for name in ("href", "src") if name in found]
    assert links and all(link and link.startswith(("#", "data:")) for link in links)
    page = html.page(sample_report.report())
    assert "url(" not in page and "@import" not in page and "http:" not in page
    names = {found["id"] for _, found in parsed.seen if "id" in found}
    assert {link[1:] for link in links if link and link.startswith("#")} <= names


def test_the_page_is_the_same_each_time() -> None:
    assert html.page(sample_report.report()) == html.page(sample_report.report())


def test_the_first_token_is_told_where_an_arm_acts_in_the_prefill() -> None:
    page = html.page(sample_report.layerwise())
    assert '<h2 id="vision">What is read of the image</h2>' in page
    vtw = page.partition("<h3>Batch 8, vtw:layer=2</h3>")[2].partition("</div>")[0]
    assert "<p>first token " in vtw and "], at most 2.00 × by the bound: " in vtw
    pulse = page.partition("<h3>Batch 8, pulse</h3>")[2].partition("</div>")[0]
    assert "first token" not in pulse


LOOK = """
(() => {
  const wide = document.documentElement.clientWidth;
  const shown = [...document.querySelectorAll('svg[role=img]')].filter(
    svg => getComputedStyle(svg).display != 'none');
  const out = [...document.querySelectorAll('body *')].filter(
    element => !element.closest('.scroll') && !element.closest('svg') &&
      element.getBoundingClientRect().right > wide + 0.5);
  return {
    wide: window.innerWidth,
    content: Math.max(document.body.scrollWidth, document.documentElement.scrollWidth),
    out: out.map(element => element.outerHTML.slice(0, 80)),
    pictures: shown.map(svg => {
      const box = svg.getBoundingClientRect(), ink = svg.getBBox();
      const words = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
      return {
        width: box.width, height: box.height, ink: ink.width * ink.height,
        scale: box.width / svg.viewBox.baseVal.width,
        cut: words.filter(t => t.left < box.left - 1 || t.right > box.right + 1
          || t.top < box.top - 1 || t.bottom > box.bottom + 1).length,
        line: [...svg.querySelectorAll('.line')].every(
          line => getComputedStyle(line).stroke != 'none'),
      };
    }),
    links: [...document.querySelectorAll('nav a')].every(
      a => document.getElementById(a.hash.slice(1))),
    paper: getComputedStyle(document.body).backgroundColor,
  };
})()
"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", REPORTS)
def test_a_browser_shows_it_without_a_flaw(
    browser: Browser, tmp_path: Path, name: str, width: int
) -> None:
    report = REPORTS[name]()
    file = tmp_path / "report.html"
    file.write_text(html.page(report), encoding="utf-8")
    tab = browser.open(file, width)
    found: dict[str, Any] = tab.evaluate(LOOK)
    assert found["wide"] == width
    assert found["content"] <= width, found["out"]
    assert found["out"] == []
    assert len(found["pictures"]) == sum(map(len, charts(report).values()))
    for picture in found["pictures"]:
        assert picture["width"] > 300 and picture["height"] > 150 and picture["ink"] > 0
        assert 0.75 <= picture["scale"] <= 1.6  # of text that is 12 px
        assert picture["line"] and picture["cut"] == 0
    assert found["links"]
    assert (tab.complaints, tab.requests) == ([], [])


@needs_browser
def test_a_dark_page_is_dark(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html.page(sample_report.report(batches=(1,))), encoding="utf-8")
    papers = [browser.open(file, 390, dark=dark).evaluate(LOOK)["paper"] for dark in (False, True)]
    light, dark = map(brightness, papers)
    assert light > 700 and dark < 100


@needs_browser
def test_the_browser_would_see_flaws(browser: Browser, tmp_path: Path) -> None:
    """The checks above can fail: too wide, a request, a script that raises."""
    file = tmp_path / "flawed.html"
    file.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width"><body>'
        '<p style="width:900px">wide</p><img src="http://example.invalid/x.png">'
        "<script>throw new Error('flaw')</script>"
    )
    tab = browser.open(file, 390)
    found = tab.evaluate("document.documentElement.scrollWidth")
    assert found > 390
    assert tab.requests == ["http://example.invalid/x.png"]
    assert tab.complaints
