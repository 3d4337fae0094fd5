"""`mvw profile` from its command line: what is measured, where it goes, what is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hints import parse_hint
from processes import Ran
from sample_report import report

from mvw_cli.bench.documents import read_report
from mvw_cli.cli.profile.output import Outputs, deliver_report
from mvw_cli.cost.case import Device
from mvw_cli.errors import ExitCode, MvwError

SHORT = ("--new-tokens", "6", "--runs", "2", "--min-time", "0", "--warmup", "0")
BARE = ("--no-answers", "--no-attention-mass", "--limit", "1")


@pytest.fixture(autouse=True)
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known rates: measuring one takes seconds."""

    def known(device: str, dtype: str, **_: Any) -> Device:
        return Device("Some Device", "measured", 2e10, 1e11, 1e-5, 2**34, "known")

    monkeypatch.setattr("mvw_cli.bench.measure.device_peaks.calibrate", known)


@pytest.fixture
def run(mvw: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def profile(*options: str) -> Ran:
        return mvw("profile", *options)

    return profile


def refused(ran: Ran) -> str:
    """The message of a refusal, whose hint has to be a command that there is."""
    assert ran.code == ExitCode.USAGE, ran.err
    lines = ran.err.strip().splitlines()
    hint = next(line for line in lines if line.startswith("Hint: "))
    if hint.startswith("Hint: mvw"):
        parse_hint(hint.removeprefix("Hint: "))
    return lines[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--policy", "vtw:layer=1"), "the policy vtw is had in mvw's own engine only"),
        (("--m", "4", "--attention", "eager"), "attention is for mvw's own engine"),
    ],
)
def test_arms_that_vllm_can_not_serve(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr("mvw_cli.vllm.start.installed", lambda: True)
    ran = run(*options, "--engine", "vllm", *SHORT, *BARE)
    assert refused(ran) == "Error: vLLM can't serve this profile"
    assert says in ran.err
    ran = run(*options, "--engine", "auto", *SHORT, *BARE, "--json")
    assert ran.code == 0 and f"engine mvw: {says}" in ran.err
    assert json.loads(ran.out)["model"]["attention"] in ("sdpa", "eager")


def test_bounds_need_no_vllm(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvw_cli.vllm.start.installed", lambda: False)
    assert run("--plan", "--gpu", "H100", "--m", "4", "--engine", "vllm").code == 0
    refused(run("--m", "4", "--engine", "vllm", *SHORT, *BARE))


def test_a_report_goes_to_files_and_the_terminal_and_comes_back(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = run("--m", "2,4", *SHORT, *BARE, "-o", "report.json", "--html", "report.html")
    assert ran.code == 0, ran.err
    report = read_report("report.json")
    [cell] = report.cells
    assert [arm.name for arm in cell.arms] == ["baseline", "m=2", "m=4"]
    assert [arm.withdrawn_after for arm in cell.arms] == [None, 2, 4]
    assert report.workload.new_tokens == 6 and report.workload.vision_tokens == 144
    assert all(arm.generated_tokens.median == 6 for arm in cell.arms)
    assert all(arm.bound is not None for arm in cell.arms)
    assert report.plan is not None and report.plan.withdrawn_after == 2
    assert report.command[:2] == ["mvw", "profile"] and "2,4" in report.command
    assert report.answers is None and report.attention is None
    assert "m=4" in Path("report.html").read_text("utf-8")
    lines = ran.out.splitlines()
    assert len(lines) <= 40 and lines[2] == "VERDICT"
    assert [line.split()[1] for line in lines if " KiB" in line][-3:] == ["baseline", "m=2", "m=4"]
    shown = run("--from", "report.json", "-o", "again.json", "--plot", "charts", "--json")
    assert json.loads(shown.out) == json.loads(Path("report.json").read_text("utf-8"))
    assert Path("again.json").read_bytes() == Path("report.json").read_bytes()
    written = {path.name for path in Path("charts").iterdir()}
    assert {"time-per-token-batch-1.svg", "kv-cache-batch-1.svg"} <= written
    whole = run("--from", "report.json", "-v").out.splitlines()
    assert "WHERE THE TIME GOES" in whole and len(whole) > 60


def test_answers_and_attention_on_the_embedded_models_own_pictures(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = run("--m", "1,64", "--limit", "2", *SHORT, "-o", "report.json")
    assert ran.code == 0, ran.err
    report = read_report("report.json")
    assert report.answers is not None and report.attention is not None
    found = {arm.name: arm for arm in report.answers.arms}
    assert set(found) == {"baseline", "m=1", "m=64", "no image"}
    assert found["baseline"].items == 2 and report.answers.references == 2
    assert found["m=1"].agreement is not None and found["m=1"].agreement < 1
    assert 0 < report.attention.mass[0] < 1


def test_a_report_on_policies_of_every_kind(run: Callable[..., Ran]) -> None:
    names = ["vtw:layer=2", "vtw:layer=2+mvw:m=4", "anneal:end=5,every=1", "pulse"]
    options = [word for name in names for word in ("--policy", name)]
    ran = run(*options, *SHORT, *BARE, "-o", "report.json", "--html", "report.html")
    assert ran.code == 0, ran.err
    report = read_report("report.json")
    [cell] = report.cells
    arms = {arm.name: arm for arm in cell.arms}
    assert list(arms) == ["baseline", *names]
    assert [arm.withdrawn_after for arm in cell.arms] == [None, None, 4, 5, None]
    for arm in cell.arms:
        assert arm.vision is not None and arm.bound is not None and arm.bound.prefill is not None
        assert len(arm.vision.attended_along) == 6
    seen = {name: arm.vision.entries_held for name, arm in arms.items() if arm.vision}
    assert seen["vtw:layer=2"] == seen["baseline"] / 2 == 2 * 144  # 4 layers
    speedups = {name: arm.bound.speedup for name, arm in arms.items() if arm.bound}
    assert speedups["baseline"] == 1 and min(speedups[name] for name in names) > 1
    assert speedups["vtw:layer=2+mvw:m=4"] > speedups["vtw:layer=2"]
    said = "\n".join(report.verdicts)
    for name in names:
        assert f"{name} at batch 1" in said and f"{name} at batch 1 withdrew nothing" not in said
    assert "suspect the bound" not in said
    assert "vtw:layer=2 at batch 1: the prefill reads 50 % fewer vision entries" in said
    assert "pulse at batch 1 attends to" in said and "frees nothing" in said
    page = Path("report.html").read_text("utf-8")
    assert "What is read of the image" in page and "Vision tokens that each token" in page
    shown = run("--from", "report.json", "-v").out
    assert "Prefill: bound and measurement" in shown and "WHAT IS READ OF THE IMAGE" in shown


def test_own_images_and_batches(run: Callable[..., Ran], mvw: Callable[..., Ran]) -> None:
    assert mvw("samples", "scenes", "--count", "3").code == 0
    ran = run(
        *("--images", "scenes", "--batch", "1,2", "--m", "3", "--limit", "2", "--no-answers"),
        *("--no-attention-mass", *SHORT, "-o", "report.json"),
        *("--set", "prompt.question=How many stars are there?"),
    )
    assert ran.code == 0, ran.err
    report = read_report("report.json")
    assert [cell.batch for cell in report.cells] == [1, 2]
    assert (report.workload.items, report.workload.source) == (2, "folder")
    one, two = (cell.arms[0].memory.kv_bytes_after for cell in report.cells)
    assert two > 1.8 * one


def test_questions_of_a_file_about_images_of_a_folder(
    run: Callable[..., Ran], mvw: Callable[..., Ran]
) -> None:
    assert mvw("samples", "scenes", "--count", "2").code == 0
    names = sorted(path.name for path in Path("scenes").glob("*.png"))
    asked = [{"image": name, "question": f"How many? {name}"} for name in names]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    options = ("--questions", "asked.jsonl", "--m", "3", *SHORT, *BARE, "-o", "report.json")
    ran = run("--images", "scenes", *options, "--limit", "2")
    assert ran.code == 0, ran.err
    report = read_report("report.json")
    assert (report.workload.items, report.workload.source) == (2, "folder")
    assert run(*options).code != 0  # without the folder they are looked for beside the file


def test_hints_name_the_command_that_was_typed(run: Callable[..., Ran]) -> None:
    Path("photos").mkdir()
    Path("photos/a.png").touch()
    ran = run("--images", "photos", "--profile", "llava-cot", "--plan", "--gpu", "H100")
    hint = ran.err.splitlines()[-1]
    assert refused(ran) == "Error: There is no question" and hint.startswith("Hint: mvw profile ")
    again = shlex.split(hint.removeprefix("Hint: mvw profile "))
    assert "no question" not in run(*again, "--plan", "--gpu", "H100").err
    assert "mvw batch" not in run("--images", "nowhere").err


def test_natural_answers_end_where_the_model_ends_them(run: Callable[..., Ran]) -> None:
    ran = run("--natural", "--m", "never", *SHORT, *BARE, "-o", "report.json")
    assert ran.code == 0, ran.err
    report = read_report("report.json")
    assert report.workload.mode == "natural"
    assert 20 < report.cells[0].arms[0].generated_tokens.median < 256


def test_a_plan_runs_nothing(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan must not load a model")

    monkeypatch.setattr("mvw_cli.session.open_session", never)
    ran = run("--profile", "llava-cot", "--plan", "--gpu", "H100", "--batch", "1,8", "--json")
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)
    assert plan["kind"] == "plan" and plan["device"]["source"] == "published"
    assert [batch["batch"] for batch in plan["batches"]] == [1, 8]
    assert plan["batches"][1]["speedup"] > plan["batches"][0]["speedup"] >= 1
    assert plan["verdicts"]


def test_what_contradicts_itself_is_refused(run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert "contradict" in refused(run("a.png", "What?", "--images", "."))
    assert "--gpu goes with --plan" in refused(run("--gpu", "H100"))
    assert "contradict" in refused(run("a.png", "--questions", "b.jsonl"))
    assert "There is no image" in refused(run("nothing.png"))
    assert "is written as .json" in refused(run("-o", "report.txt"))
    assert "Cannot read the report" in refused(run("--from", "a.png"))
    assert "Cannot write a.png" in refused(run("--plot", "a.png"))
    assert "--html does not go with --plan" in refused(run("--plan", "--html", "plan.html"))
    assert "--plot does not go with --plan" in refused(run("--plan", "--plot", "charts"))
    assert "no figures for this GPU" in refused(run("--plan", "--gpu", "H1000"))
    assert run("--m", "0").code == ExitCode.USAGE
    assert run("--m", "4,x").code == ExitCode.USAGE
    assert run("--new-tokens", "1").code == ExitCode.USAGE


def test_a_report_whose_charts_can_not_be_written_is_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "gone" / "charts")
    with pytest.raises(MvwError, match="Cannot write"):
        deliver_report(report(), Outputs(None, None, nowhere, as_json=False, verbose=False))
    assert "VERDICT" in capsys.readouterr().out


INTERRUPTED_IN_THE_SECOND_PAIR = """
import os, signal, sys

from mvw_cli.__main__ import main
from mvw_cli.bench.measure.run import Runner

plain, runs = Runner.run, []

def counted(*args, **more):
    runs.append(1)
    if len(runs) == 8:  # two arms: a warm-up and a watched run of each, the first pair, the second
        os.kill(os.getpid(), signal.SIGINT)
    return plain(*args, **more)

Runner.run = counted
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_leaves_a_report_of_what_was_measured(tmp_path: Path) -> None:
    words = ["profile", "--m", "4", "--runs", "500", "--warmup", "1", "--new-tokens", "8"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_THE_SECOND_PAIR, *words, *BARE,
         "-o", "report.json"],
        cwd=tmp_path,
        env={**os.environ, "MVW_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        start_new_session=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr
    assert read_report(str(tmp_path / "report.json")).cells[0].pairs == 1
