"""`mvw calibrate vtw` from the command line, on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Ran

from mvw_cli.calibrate import vtw
from mvw_cli.plugins import load_adapter
from mvw_cli.policies.vtw import Vtw
from mvw_cli.profiles.resolution import resolve
from mvw_cli.profiles.withdrawal import withdrawal_policy

Run = Callable[..., Ran]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples that are really measured."""
    calls: list[int] = []
    plain = vtw.layer_divergences

    def call(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return plain(*args, **more)

    monkeypatch.setattr(vtw, "layer_divergences", call)
    return calls


def test_everything_is_written(mvw: Run, here: Path) -> None:
    ran = mvw("calibrate", "vtw", "--limit", "3", "--seed", "5")
    assert ran.code == 0, ran.err
    assert "is the first from 1 on" in ran.out and "0 is without any" in ran.out.lower()
    assert {path.name for path in here.iterdir()} >= {
        "vtw.yaml",
        "vtw.report.json",
        "vtw.kl-by-layer.svg",
        "vtw.samples.jsonl",
    }
    report = json.loads((here / "vtw.report.json").read_text())
    assert report["schema_version"] == 3 and report["method"] == "vtw"
    assert report["settings"] == {"eta": 0.003, "min_layer": 1, "tokens": 1, "seed": 5}
    assert len(report["samples"]) == 3 and report["left_out"] == []
    assert [one["layer"] for one in report["outcome"]["curve"]] == [0, 1, 2, 3]
    for layer, point in enumerate(report["outcome"]["curve"]):
        values = [sample["kl_nats"][layer] for sample in report["samples"]]
        assert point["kl_nats"] == pytest.approx(sum(values) / 3)
    layer = report["outcome"]["withdrawal"]["layer"]
    assert (here / "vtw.kl-by-layer.svg").read_text().startswith("<svg xmlns")
    text = (here / "vtw.yaml").read_text()
    comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    assert "mvw calibrate vtw --limit 3 --seed 5" in comment
    assert report["outcome"]["reason"] in comment and "--tokens 64 looks further" in comment
    found = resolve("./vtw.yaml", {}).profile
    assert found.adapter == "shapes" and found.generation.seed == 5
    assert withdrawal_policy(found) == Vtw(layer=layer)


def test_a_second_run_goes_on(mvw: Run, here: Path, counted: list[int]) -> None:
    mvw("calibrate", "vtw", "--limit", "2")
    first = json.loads((here / "vtw.report.json").read_text())
    assert len(counted) == 2
    mvw("calibrate", "vtw", "--limit", "2", "--eta", "0.5")
    assert len(counted) == 2  # another eta needs no new figures
    second = json.loads((here / "vtw.report.json").read_text())
    assert second["samples"] == first["samples"]
    mvw("calibrate", "vtw", "--limit", "3")
    assert len(counted) == 3
    ran = mvw("calibrate", "vtw", "--limit", "2", "--tokens", "2")
    assert len(counted) == 5 and "3 samples of other settings are left alone" in ran.err


def test_a_log_that_was_cut_loses_one_sample(mvw: Run, here: Path, counted: list[int]) -> None:
    mvw("calibrate", "vtw", "--limit", "3")
    log = here / "vtw.samples.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    assert mvw("calibrate", "vtw", "--limit", "3").code == 0
    assert len(counted) == 4
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 3


def test_another_file_is_no_log(mvw: Run, here: Path, check_hint: Callable[[str], None]) -> None:
    (here / "vtw.samples.jsonl").write_text("dear diary\n")
    ran = mvw("calibrate", "vtw", "--limit", "2")
    assert ran.code == 2 and "is not a log of samples" in ran.err
    assert (here / "vtw.samples.jsonl").read_text() == "dear diary\n"


def test_an_image_that_cannot_be_read_is_left_out(mvw: Run, here: Path) -> None:
    load_adapter("shapes").samples(here / "scenes", 3, 1)
    (here / "scenes" / "broken.png").write_bytes(b"no image")
    ran = mvw("calibrate", "vtw", "How many circles?", "--images", "scenes")
    assert ran.code == 3, ran.err
    assert "Left out" in ran.err and "broken.png" in ran.err
    report = json.loads((here / "vtw.report.json").read_text())
    assert len(report["samples"]) == 3 and len(report["left_out"]) == 1
    assert (here / "vtw.yaml").exists()


def test_no_layer_qualifies(mvw: Run, here: Path) -> None:
    ran = mvw("calibrate", "vtw", "--limit", "2", "--eta", "1e-30")
    assert ran.code == 1
    assert "Nothing is suggested" in ran.err and "the best that was tried" in ran.err
    assert not (here / "vtw.yaml").exists()
    report = json.loads((here / "vtw.report.json").read_text())
    assert report["outcome"]["withdrawal"] is None
    assert len(report["outcome"]["curve"]) == 4
    assert (here / "vtw.kl-by-layer.svg").exists()


def test_json_goes_to_stdout(mvw: Run, here: Path) -> None:
    ran = mvw("calibrate", "vtw", "--limit", "2", "--json")
    assert json.loads(ran.out) == json.loads((here / "vtw.report.json").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min-layer", "4"], "no such layer"),
        (["-o", "vtw.json"], "written as a profile"),
        (["-o", "nowhere/vtw.yaml"], "no folder"),
        (["--images", "missing"], "missing"),
        (["--adapter", "hf", "--model", "a/b"], "no images to calibrate on"),
    ],
)
def test_what_makes_no_sense_is_refused(
    mvw: Run, words: list[str], said: str, check_hint: Callable[[str], None]
) -> None:
    ran = mvw("calibrate", "vtw", *words)
    assert ran.code == 2 and said in ran.err
    hint = next(line for line in ran.err.splitlines() if line.startswith("Hint: "))
    if hint.startswith("Hint: mvw"):
        check_hint(hint.removeprefix("Hint: "))
