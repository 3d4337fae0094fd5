"""Two reports side by side: what can't be compared is refused, and no difference is made up."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_report
from processes import ROOT, Ran

from mvw_cli.bench.documents import Arm, ProfileReport, to_json
from mvw_cli.bench.stats import summarise
from mvw_cli.bench.verdict.compare import SideBySide, compare, to_dict, unpaired
from mvw_cli.errors import ExitCode, UsageProblem

DOCS = ROOT / "docs"
Change = Callable[[ProfileReport], ProfileReport]


@pytest.fixture(scope="module")
def full() -> ProfileReport:
    return sample_report.report()


def sides(a: ProfileReport, b: ProfileReport) -> SideBySide:
    return compare(a, b, names=("a.json", "b.json"))


def scaled(report: ProfileReport, factor: float) -> ProfileReport:
    """Make every time of a report so many times as long."""

    def slower(arm: Arm) -> Arm:
        times = {
            name: summarise([factor * value for value in getattr(arm, name).samples])
            for name in ("ttft_ms", "tpot_ms", "answer_s")
        }
        rate = summarise([value / factor for value in arm.tokens_per_s.samples])
        return replace(arm, **times, tokens_per_s=rate)

    cells = [replace(cell, arms=[slower(arm) for arm in cell.arms]) for cell in report.cells]
    return replace(report, cells=cells)


def workload(**change: Any) -> Change:
    return lambda report: replace(report, workload=replace(report.workload, **change))


def model(**change: Any) -> Change:
    return lambda report: replace(report, model=replace(report.model, **change))


def environment(**change: Any) -> Change:
    return lambda report: replace(report, environment=replace(report.environment, **change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (environment(device_name="A100"), "other device: NVIDIA H100 80GB HBM3 (cuda) and A100"),
        (model(dtype="float32"), "other dtype: bfloat16 and float32"),
        (model(adapter="hf"), "other model"),
        (model(revision="ffff"), "other revision: a1b2c3d and ffff"),
        (model(random_weights=True), "other weights: those of the checkpoint and random"),
        (
            lambda r: replace(r, profile={"values": {"quantization": "4bit"}}),
            "other quantization: none and 4bit",
        ),
        (
            workload(mode="natural", new_tokens=64, vision_tokens=9, prompt_tokens=8),
            "other mode: fixed and natural; other length of the output: 256 and 64; "
            "other number of vision tokens: 1008 and 9; other length of the prompt: 1064 and 8",
        ),
        (lambda r: replace(r, cells=[replace(c, batch=64) for c in r.cells]), "no arm was"),
        (lambda r: replace(r, cells=[replace(c, arms=[]) for c in r.cells]), "no arm was"),
    ],
)
def test_what_did_not_measure_the_same_is_refused(
    full: ProfileReport, change: Change, said: str
) -> None:
    with pytest.raises(UsageProblem) as caught:
        sides(full, change(full))
    assert caught.value.cause is not None and said in caught.value.cause


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (environment(torch="3.0"), "torch: 2.13.0 and 3.0 differ"),
        (environment(flash_attn="2.8"), "flash_attn: none and 2.8 differ"),
        (model(attention="flash"), "attention: sdpa and flash differ"),
        (model(revision=None), "revision: a1b2c3d and none differ"),
        (lambda r: replace(r, cells=r.cells[:1]), "batch sizes: 1, 8 and 1 differ"),
        (
            lambda r: replace(r, cells=[replace(c, arms=c.arms[:2]) for c in r.cells]),
            "arms: baseline, m=16, m=64 and baseline, m=16 differ",
        ),
    ],
)
def test_what_may_differ_is_named(full: ProfileReport, change: Change, said: str) -> None:
    side = sides(full, change(full))
    assert side.remarks == [said]
    assert side.figures


def test_the_same_report_twice_shows_no_difference(full: ProfileReport) -> None:
    side = sides(full, full)
    assert side.remarks == []
    against = [figure.against for figure in side.figures if figure.kind == "speed"]
    assert len(against) == 2 * 3 * 4 and against.count(None) == 2 * 3  # per output token
    assert {found.shown for found in against if found} == {"no difference shown"}
    assert all(figure.a == figure.b for figure in side.figures)


@pytest.mark.parametrize(("factor", "shown"), [(0.8, "faster"), (1.25, "slower")])
def test_a_planted_difference_is_found(full: ProfileReport, factor: float, shown: str) -> None:
    for figure in sides(full, scaled(sample_report.report(seed=1), factor)).figures:
        if figure.kind == "speed" and figure.name != "tpot_ms":
            assert figure.against is not None and figure.against.interval_95 is not None
            low, high = figure.against.interval_95
            assert figure.against.shown == shown, figure
            assert low - 0.02 < 1 / factor < high + 0.02


def test_equal_machines_are_seldom_told_apart() -> None:
    rng = random.Random(7)
    told = 0
    for trial in range(40):
        a, b = ([rng.gauss(100, 8) for _ in range(12)] for _ in range(2))
        told += unpaired(a, b, seed=trial).shown != "no difference shown"
    assert told <= 6  # 2 of 40 are to be expected


def test_too_few_samples_have_no_interval_and_no_claim() -> None:
    found = unpaired([1.0] * 5, [9.0] * 50)
    assert (found.ratio, found.interval_95, found.shown) == (9.0, None, "no difference shown")
    assert unpaired([1.0] * 5, [9.0] * 6).interval_95 is None
    assert unpaired([1.0] * 6, [9.0] * 6).shown == "faster"


def test_runs_are_what_is_drawn(full: ProfileReport) -> None:
    """255 steps of 12 runs are 12 samples, or the interval would be far too narrow."""
    found = {figure.name: figure.against for figure in sides(full, full).figures}
    assert found["tpot_ms"] is None
    assert found["tokens_per_s"] is not None and found["tokens_per_s"].samples == (12, 12)


def test_an_answer_of_one_token_has_no_rate(full: ProfileReport) -> None:
    arm = replace(full.cells[0].arms[0], tokens_per_s=summarise([0.0] * 12))
    report = replace(full, cells=[replace(full.cells[0], arms=[arm])])
    found = {f.name: f.against for f in sides(report, report).figures}
    assert found["tokens_per_s"] is None


def test_the_document_is_documented(full: ProfileReport) -> None:
    page = (DOCS / "json.md").read_text(encoding="utf-8")
    section = page.partition("## The document of `mvw compare`")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([^`]+)` \|", section, re.M))
    document = to_dict(sides(full, full))
    figure = document["figures"][0]
    assert documented == {
        *document,
        *(f"figures[].{key}" for key in figure),
        *(f"figures[].against.{key}" for key in figure["against"]),
    }


@pytest.fixture
def files(full: ProfileReport, tmp_path: Path) -> Callable[[ProfileReport], tuple[str, str]]:
    def write(other: ProfileReport) -> tuple[str, str]:
        for name, report in (("a.json", full), ("b.json", other)):
            (tmp_path / name).write_text(to_json(report), encoding="utf-8")
        return str(tmp_path / "a.json"), str(tmp_path / "b.json")

    return write


def test_the_command_shows_both(
    mvw: Callable[..., Ran], files: Callable[[ProfileReport], tuple[str, str]], full: ProfileReport
) -> None:
    a, b = files(scaled(full, 0.8))
    page = str(Path(a).with_name("both.html"))
    short = mvw("compare", a, b, "--html", page)
    assert (short.code, short.err) == (0, "")
    assert sum("] faster" in line for line in short.out.splitlines()) == 6
    assert "B AGAINST A" in Path(page).read_text("utf-8")
    ran = mvw("compare", a, b, "-v")
    speeds = [line for line in ran.out.splitlines() if line.startswith("tokens per second")]
    assert len(speeds) == 6 and all(line.endswith(" faster") for line in speeds)
    assert "1.25 × [" in speeds[0] and "right answers" in ran.out
    document = json.loads(mvw("compare", a, b, "--json").out)
    assert (document["a"], document["b"]) == (a, b)
    assert document["figures"][0]["against"]["shown"] == "faster"
    assert {figure["kind"] for figure in document["figures"]} == {"speed", "memory", "answers"}


def test_the_command_refuses_with_a_reason(
    mvw: Callable[..., Ran],
    files: Callable[[ProfileReport], tuple[str, str]],
    full: ProfileReport,
    check_hint: Callable[[str], None],
) -> None:
    a, b = files(model(dtype="float32")(full))
    ran = mvw("compare", a, b)
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert "other dtype: bfloat16 and float32" in ran.err
    check_hint(ran.err.splitlines()[-1].removeprefix("Hint: "))


@pytest.mark.parametrize("content", [None, '{"kind": "profile"}', "\xff"])
def test_what_is_no_report_is_told(
    mvw: Callable[..., Ran],
    files: Callable[[ProfileReport], tuple[str, str]],
    full: ProfileReport,
    content: str | None,
) -> None:
    a, b = files(full)
    Path(b).unlink() if content is None else Path(b).write_text(content, encoding="latin-1")
    ran = mvw("compare", a, b)
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert f"Cannot read the report {b}" in ran.err and "Traceback" not in ran.err
