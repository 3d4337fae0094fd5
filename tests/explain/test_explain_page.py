"""The page itself: well-formed, escaped, complete without its script, and right in a browser."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Browser, Checked, Tab, brightness, needs_browser
from explaining import data_of, explained, run_recorded, weights_of
from PIL import Image
from sessions import asked, tiny

from mvw_cli.adapter import Patch
from mvw_cli.explain.document import Explained, Mark
from mvw_cli.explain.page import page, percent
from mvw_cli.explain.record import Record, Step, layer_attention
from mvw_cli.oracle.equivalence import noise

EVIL = "</script><script>alert(1)</script><!--\"' onload=x & \x1b[2J </style>\u202e"
MARK = Mark(4, "withdrawn", "vision withdrawn after token 4: 16 vision tokens, 2.0 KiB freed")


@cache
def of_adapter(name: str, m: int | None = 4, size: tuple[int, int] = (64, 48)) -> Explained:
    """Watch an adapter's tiny model."""
    session, image = tiny(name), noise(*size)
    request = asked(session, m, image)
    record, events, _ = run_recorded(session, request)
    patches = session.adapter.patches(session.loaded, request.inputs, [image])
    marks = () if m is None else (MARK,)
    return explained(record, events, pictures=[image], patches=patches, marks=marks)


def made(texts: list[str], weights: list[torch.Tensor | None], **given: Any) -> Explained:
    """Make up a run: two layers, a grid of 2 x 2 patches."""
    steps = []
    for one in weights:
        if one is None:
            steps.append(Step(None, {}))
        else:
            steps.append(
                Step(float(one.sum()), {0: layer_attention(one), 3: layer_attention(one.flip(0))})
            )
    record = Record("attention", 4, (0, 3), (0, 3), steps)
    quarters = [
        Patch(0, column / 2, row / 2, (column + 1) / 2, (row + 1) / 2)
        for row in range(2)
        for column in range(2)
    ]
    run = explained(record, [], pictures=[Image.new("RGB", (200, 100), "teal")], patches=quarters)
    return replace(run, tokens=list(enumerate(texts)), **given)


def heats(written: str) -> list[float]:
    return [float(one) for one in re.findall(r'<rect [^>]*fill-opacity="([\d.]+)"', written)]


def test_the_page_says_all_there_is_without_its_script() -> None:
    run = of_adapter("hf")
    written = page(run)
    seen = Checked(written)
    said = " ".join("".join(seen.text).split())
    for expected in (
        "How many?",
        MARK.text,
        "Attention is not an explanation of the answer.",
        "Watched layers: 0, 1. Vision tokens: 16.",
        "generation.seed",
        "no vision left",
        f"{percent(run.record.steps[0].mass or 0)} of its attention went to vision",
    ):
        assert expected in said, expected
    tokens = [words for tag, words in seen.seen if words.get("role") == "option"]
    assert [token["aria-selected"] for token in tokens] == ["true"] + ["false"] * 11
    blind = [token for token in tokens if "none" in str(token["class"]).split()]
    assert len(blind) == 8 and all("no vision left" in str(one["title"]) for one in blind)
    # The mark stands between the tokens that it parts.
    order = re.findall(r'id="t(\d+)"|class="(mark) ', written)
    assert order.index(("", "mark")) == 4
    weights = weights_of(data_of(written), 0)
    assert weights is not None and len(heats(written)) == 16
    assert heats(written) == pytest.approx((weights / weights.max()).tolist(), abs=2e-3)
    assert "://" not in written


def test_everything_is_escaped() -> None:
    texts = [EVIL, "\n", "", " x"]
    run = made(
        texts,
        [torch.tensor([0.1, 0.2, 0.3, 0.05])] * 3 + [None],
        question=EVIL,
        answer=EVIL,
        marks=[Mark(2, "withdrawn", EVIL)],
        policy=EVIL,
        settings={EVIL: EVIL},
        model={"name": EVIL, "adapter": EVIL},
        environment={"mvw": EVIL, EVIL: EVIL},
    )
    run = replace(run, pictures=[replace(run.pictures[0], path=EVIL)])
    written = page(run)
    seen = Checked(written)
    assert [tag for tag, _ in seen.seen if tag == "script"] == ["script", "script"]
    assert not [words for _, words in seen.seen if "onload" in words]
    assert "\x1b" not in written and "<!--" not in written
    data = data_of(written)
    assert (data["question"], data["tokens"][0]["text"]) == (EVIL, EVIL)
    allowed = next(str(words["content"]) for _, words in seen.seen if "http-equiv" in words)
    assert "default-src 'none'" in allowed and "script-src 'sha256-" in allowed


def test_where_places_are_unknown_the_page_says_so() -> None:
    run = replace(of_adapter("hf"), patches=None)
    written = page(run)
    assert "no heat map" in written and heats(written) == []
    assert data_of(written)["patches"] is None
    assert "of its attention went to vision" in written


def test_a_token_of_no_place_is_not_drawn_but_told() -> None:
    """Mllama's class tokens: one for each tile."""
    written = page(of_adapter("llava-cot"))
    data = data_of(written)
    nowhere = sum(one is None for one in data["patches"])
    assert 0 < nowhere < len(data["patches"])
    assert len(heats(written)) == len(data["patches"]) - nowhere
    assert "On vision tokens of no place: " in written
    assert "cross-attention added" in written


def test_the_data_are_documented() -> None:
    said = (Path(__file__).parents[2] / "docs" / "explain.md").read_text("utf-8")
    written = page(of_adapter("hf"))
    data = data_of(written)
    names = {*data, *data["images"][0], *data["tokens"][0], *data["marks"][0], *data["weights"]}
    missing = [name for name in sorted(names) if f"`{name}`" not in said]
    assert missing == []
    [sample] = re.findall(r"```python\n(.*?)```", said, re.S)
    space: dict[str, Any] = {}
    exec(sample, space)
    expected = weights_of(data, 1)
    assert expected is not None
    assert space["weights"](written, 1) == pytest.approx(expected.tolist())
    assert space["weights"](written, 9) is None


def test_large_pictures_are_made_smaller_for_the_page() -> None:
    weights: list[torch.Tensor | None] = [torch.tensor([0.1, 0.2, 0.3, 0.05])]
    run = made(["a"], weights)
    big = replace(run.pictures[0], image=noise(3000, 2000))
    written = page(replace(run, pictures=[big]))
    assert 'viewBox="0 0 3000 2000"' in written and "data:image/jpeg" in written
    assert len(written) < 2_000_000
    assert 'x="1500.00" y="0.00" width="1500.00" height="1000.00"' in written  # a quarter of it
    assert data_of(written)["images"][0]["width_px"] == 3000


# --- in a browser ---


LOOK = """
(() => {
  const wide = document.documentElement.clientWidth;
  const out = [...document.querySelectorAll('body *')].filter(
    element => !element.closest('.scroll') && !element.closest('svg') &&
      element.getBoundingClientRect().right > wide + 0.5);
  const picture = document.querySelector('figure svg').getBoundingClientRect();
  return {
    content: Math.max(document.body.scrollWidth, document.documentElement.scrollWidth),
    out: out.map(element => element.outerHTML.slice(0, 80)),
    picture: [picture.width, picture.height],
    says: document.getElementById('says').textContent,
    heat: [...document.querySelectorAll('.heat rect')].map(r => Number(r.getAttribute(
      'fill-opacity'))),
    chosen: [...document.querySelectorAll('[aria-selected=true]')].map(one => one.id),
    blind: document.body.classList.contains('blind'),
    paper: getComputedStyle(document.body).backgroundColor,
  };
})()
"""


def shown(browser: Browser, folder: Path, run: Explained, width: int, **how: Any) -> Tab:
    file = folder / "looked.html"
    file.write_text(page(run), encoding="utf-8")
    return browser.open(file, width, **how)


def press(tab: Tab, key: str) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)


def click(tab: Tab, selector: str) -> None:
    tab.evaluate(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
    x, y = tab.evaluate(
        f"(() => {{const b = document.querySelector('{selector}').getClientRects()[0];"
        "return [b.left + b.width / 2, b.top + b.height / 2]})()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        tab.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["hf", "llava-cot", "kimi-vl", "shapes"])
def test_a_browser_shows_it_without_a_flaw(
    browser: Browser, tmp_path: Path, name: str, width: int
) -> None:
    run = of_adapter(name, size=(300, 200))
    tab = shown(browser, tmp_path, run, width)
    found = tab.evaluate(LOOK)
    assert found["content"] <= width, found["out"]
    assert found["out"] == []
    assert found["picture"][0] > 200 and found["picture"][1] > 100
    # What the script writes at the start is what stood there without it.
    written = page(run)
    said = " ".join("".join(Checked(written).text).split())
    assert " ".join(found["says"].split()).replace("<", "&lt;") in said.replace("<", "&lt;")
    assert found["heat"] == pytest.approx(heats(written), abs=2e-3)
    assert (found["chosen"], found["blind"]) == (["t0"], False)
    assert (tab.complaints, tab.requests) == ([], [])


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_choosing_a_token_changes_the_heat_map(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    run = of_adapter("hf")
    tab = shown(browser, tmp_path, run, width)
    data = data_of(page(run))

    def expected(token: int, layer: int | None = None) -> list[float]:
        weights = weights_of(data, token, layer)
        assert weights is not None
        return list((weights / weights.max()).tolist())

    first = tab.evaluate(LOOK)
    click(tab, "#t2")
    second = tab.evaluate(LOOK)
    assert second["chosen"] == ["t2"] and second["says"] != first["says"]
    assert second["heat"] == pytest.approx(expected(2), abs=2e-3)
    assert second["heat"] != pytest.approx(first["heat"], abs=1e-2)
    tab.evaluate("document.getElementById('answer').focus()")
    press(tab, "ArrowRight")
    third = tab.evaluate(LOOK)
    assert third["chosen"] == ["t3"] and third["heat"] == pytest.approx(expected(3), abs=2e-3)
    # Another layer: the tap of a phone's list ends in the same event.
    tab.evaluate(
        "(s => {s.value = '2'; s.dispatchEvent(new Event('change'))})"
        "(document.getElementById('layer'))"
    )
    deep = tab.evaluate(LOOK)
    assert deep["heat"] == pytest.approx(expected(3, 1), abs=2e-3)
    assert percent(data["tokens"][3]["mass_by_layer"][1]) in deep["says"]
    assert "at layer 1" in deep["says"]
    click(tab, "#next")
    after = tab.evaluate(LOOK)
    assert after["chosen"] == ["t4"] and after["blind"]
    assert "no vision left" in after["says"] and set(after["heat"]) == {0}
    press(tab, "Home")
    assert tab.evaluate(LOOK)["chosen"] == ["t4"]  # the button has the focus, not the text
    click(tab, "#plain")
    assert tab.evaluate("getComputedStyle(document.querySelector('.heat')).display") == "none"
    assert (tab.complaints, tab.requests) == ([], [])


@needs_browser
def test_what_is_chosen_stays_in_sight_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    """The picture keeps its place above a long answer."""
    weights: list[torch.Tensor | None] = [torch.tensor([0.1, 0.2, 0.3, 0.05])] * 600
    tab = shown(browser, tmp_path, made([f" word{n}" for n in range(600)], weights), 390)
    tab.evaluate("document.getElementById('answer').focus()")
    press(tab, "End")
    end = time.monotonic() + 5
    while tab.evaluate("window.scrollY") == 0:
        assert time.monotonic() < end, "nothing has moved"
    low = tab.evaluate(
        "[document.querySelector('figure svg'), document.getElementById('t599')].map("
        "one => one.getBoundingClientRect()).map(b => [b.top, b.bottom])"
    )
    assert low[0][0] >= 0 and low[0][1] < low[1][0] < low[1][1] <= 844


@needs_browser
def test_an_evil_page_runs_nothing(browser: Browser, tmp_path: Path) -> None:
    weights: list[torch.Tensor | None] = [torch.tensor([0.1, 0.2, 0.3, 0.05]), None]
    run = made([EVIL, "\n"], weights, question=EVIL, marks=[Mark(1, "restored", EVIL)])
    tab = shown(browser, tmp_path, run, 390)
    found = tab.evaluate(LOOK)
    assert EVIL[:30] in found["says"] and found["out"] == []
    click(tab, "#t1")
    assert (tab.complaints, tab.requests) == ([], [])


@needs_browser
def test_a_dark_page_is_dark_and_it_prints(browser: Browser, tmp_path: Path) -> None:
    run = of_adapter("hf")
    papers = [
        shown(browser, tmp_path, run, 390, dark=dark).evaluate(LOOK)["paper"]
        for dark in (False, True)
    ]
    light, dark = map(brightness, papers)
    assert light > 700 and dark < 100
    tab = shown(browser, tmp_path, run, 1280)
    tab.send("Emulation.setEmulatedMedia", media="print")
    hidden = "getComputedStyle(document.querySelector('.controls')).display"
    assert tab.evaluate(hidden) == "none"
    assert tab.evaluate("getComputedStyle(document.querySelector('.look')).position") == "static"


@needs_browser
def test_without_javascript_the_first_heat_map_is_there(browser: Browser, tmp_path: Path) -> None:
    run = of_adapter("hf")
    file = tmp_path / "still.html"
    written = page(run)
    file.write_text(re.sub(r"<script>.*?</script>", "", written, flags=re.S), encoding="utf-8")
    tab = browser.open(file, 390)
    found = tab.evaluate(LOOK)
    assert max(found["heat"]) == 1 and found["chosen"] == ["t0"]
    shown_controls = "getComputedStyle(document.querySelector('.needs-script')).display"
    assert tab.evaluate(shown_controls) == "none"
    assert json.loads(tab.evaluate("document.getElementById('data').textContent"))
