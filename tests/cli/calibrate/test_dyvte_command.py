"""`mvw calibrate dyvte` on the embedded model: what it writes, and that it can be lost at any time.

The embedded model needs its vision in every layer, so that bounds are set here at which about half
of its questions may do without.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hints import parse_hint
from processes import Ran
from records import no_space
from sessions import followed

from mvw_cli.__main__ import main
from mvw_cli.batch.source.paths import Source
from mvw_cli.bench.measure.items import ask, own_items
from mvw_cli.calibrate.dyvte import search as dyvte_search
from mvw_cli.calibrate.dyvte.gates import read_gates
from mvw_cli.calibrate.dyvte.labels import label_question
from mvw_cli.calibrate.dyvte.policy import Dyvte
from mvw_cli.calibrate.dyvte.training import Dataset, split
from mvw_cli.calibrate.search import SearchRun, measure_all
from mvw_cli.calibrate.store import SampleStore
from mvw_cli.engine.types import Finished
from mvw_cli.errors import ExitCode
from mvw_cli.plugins import load_adapter
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import resolve
from mvw_cli.session import open_session

COUNT = 12
LOOSE = ("--agreement", "0.78", "--loss-ratio", "1e9", "--epochs", "6")
LOOSE += ("--held-out", "0.5", "--max-new-tokens", "40")
Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def calibrated(once: Once) -> Path:
    """A folder with scenes, and what a calibration on them has written."""

    def make(folder: Path) -> None:
        load_adapter("shapes").samples(folder / "scenes", COUNT, 3)
        out, err = StringIO(), StringIO()
        with chdir(folder), redirect_stdout(out), redirect_stderr(err):
            code = main(["calibrate", "dyvte", *asked(folder)])
        assert code == ExitCode.OK, err.getvalue()
        (folder / "stdout").write_text(out.getvalue())

    return once("calibrated-dyvte", make)


@pytest.fixture
def run(mvw: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *options: mvw("calibrate", "dyvte", *options)


def asked(folder: Path, *more: str) -> list[str]:
    return ["--questions", str(folder / "scenes" / "questions.jsonl"), *LOOSE, *more]


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dyvte.report.json").read_text())
    return found


def test_everything_is_written_beside_the_profile(calibrated: Path) -> None:
    for ending in ("yaml", "safetensors", "report.json", "accuracy.svg"):
        assert (calibrated / f"dyvte.{ending}").stat().st_size > 0
    out = (calibrated / "stdout").read_text()
    assert "layers saved" in out and "has every sample and every row" in out
    assert len(out.splitlines()) <= 40


def test_the_report_holds_together(calibrated: Path) -> None:
    report = report_of(calibrated)
    outcome = report["outcome"]
    found, data = outcome["figures"], outcome["figures"]["data"]
    assert report["method"] == "dyvte" and len(report["samples"]) == COUNT
    assert (data["questions"], data["held_out_questions"]) == (COUNT, COUNT // 2)
    assert data["training_images"] + data["held_out_images"] == COUNT
    assert [gate["layer"] for gate in outcome["curve"]] == [1, 2, 3]
    for gate in outcome["curve"]:
        low, high = gate["accuracy_interval_95"]
        assert low <= gate["accuracy"] <= high
    everyone = [found["exits"], found["earliest_allowed"], *found["fixed"].values()]
    assert all(sum(one["layers"].values()) == COUNT // 2 for one in everyone)
    assert found["earliest_allowed"]["allowed"] == 1
    for layer, one in found["fixed"].items():
        gone = 1 - int(layer) / 4
        assert one["layers"] == {layer: COUNT // 2}
        assert one["layers_saved"] == pytest.approx(gone)
        # Vision is most of the prompt.
        assert 0.8 * gone < one["prefill_saved"] < gone
    gates = read_gates(str(calibrated / "dyvte.safetensors"))
    assert (gates.layers, gates.hidden_size) == (4, 160)
    about = gates.about
    assert (about["model"], about["layers"], about["hidden_size"]) == ("embedded", 4, 160)
    assert (about["settings"]["lr"], about["settings"]["agreement"]) == (6e-5, 0.78)
    assert about["profile"]["adapter"] == "shapes" and about["data"] == data


def test_the_profile_runs_and_the_engine_exits_where_the_report_says(calibrated: Path) -> None:
    """The report's exits and agreement, seen once more: in the engine, under the policy."""
    profile = resolve(str(calibrated / "dyvte.yaml"), {}).profile
    session = open_session(profile)
    assert session.policy == Dyvte(str(calibrated / "dyvte.safetensors"))
    samples = {one["images"][0]: one for one in report_of(calibrated)["samples"]}
    held_out = _held_out(calibrated)
    source = Source((), questions=str(calibrated / "scenes" / "questions.jsonl"))
    exits: dict[str, int] = {}
    agreement = []
    for item in own_items(source, COUNT, one=False).items:
        if samples[Path(item.images[0]).name]["key"] not in held_out:
            continue
        request = replace(ask(session, item, session.settings), policy=NoWithdrawal())
        *_, finished = session.run([request])
        assert isinstance(finished, Finished)
        whole, _ = followed(session, replace(request, forced=finished.token_ids))
        under = replace(request, policy=session.policy, forced=finished.token_ids)
        rows, prefilled = followed(session, under)
        held = [count > 0 for count in prefilled.vision_by_layer]
        name = "never" if all(held) else str(held.index(False))
        exits[name] = exits.get(name, 0) + 1
        agreement.append(float((rows.argmax(-1) == whole.argmax(-1)).float().mean()))
    found = report_of(calibrated)["outcome"]["figures"]["exits"]
    assert exits == found["layers"]
    assert set(exits) != {"never"}
    assert sum(agreement) / len(agreement) == pytest.approx(found["agreement"], abs=1e-6)


def _held_out(folder: Path) -> set[str]:
    samples = sorted(report_of(folder)["samples"], key=lambda one: one["key"])
    nothing = torch.zeros(len(samples))
    _, rows = split(Dataset(tuple(samples), nothing, nothing, nothing, nothing), 0.5, 0)
    return {samples[row]["key"] for row in rows}


def test_a_process_that_is_killed_ends_with_the_same_gates(
    calibrated: Path, tmp_path: Path, run: Any
) -> None:
    words = [sys.executable, "-m", "mvw_cli", "calibrate", "dyvte", *asked(calibrated)]
    log = tmp_path / "dyvte.samples.jsonl"
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while not (log.exists() and log.read_bytes().count(b"\n")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    written = log.read_bytes()
    assert 0 < written.count(b"\n") < COUNT
    assert run(*asked(calibrated)).code == ExitCode.OK
    assert log.read_bytes().startswith(written[: written.rfind(b"\n") + 1])
    assert log.read_bytes().count(b"\n") == COUNT
    same_gates(calibrated, tmp_path)


def same_gates(one: Path, other: Path) -> None:
    pair = [read_gates(str(folder / "dyvte.safetensors")).gates for folder in (one, other)]
    for gate, same in zip(*pair, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(gate, same, strict=True))
    assert report_of(one)["outcome"]["curve"] == report_of(other)["outcome"]["curve"]


def refused(ran: Ran, code: ExitCode = ExitCode.USAGE) -> str:
    assert ran.code == code, ran.err
    hint = next(line for line in ran.err.splitlines() if line.startswith("Hint: "))
    parse_hint(hint.removeprefix("Hint: "))
    return ran.err


def copied(calibrated: Path, folder: Path) -> None:
    """What was measured, without what was made of it."""
    shutil.copytree(calibrated / "dyvte.work", folder / "dyvte.work")
    shutil.copy(calibrated / "dyvte.samples.jsonl", folder)


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Questions that are really labelled."""
    calls: list[int] = []

    def call(*given: Any, **more: Any) -> Any:
        calls.append(1)
        return label_question(*given, **more)

    monkeypatch.setattr(dyvte_search, "label_question", call)
    return calls


def test_only_the_training_is_done_again_for_other_bounds(
    calibrated: Path, tmp_path: Path, run: Any, labelled: list[int]
) -> None:
    copied(calibrated, tmp_path)
    half = ("--gate-dtype", "float16")
    ran = run(*asked(calibrated), "--agreement", "0.99", "--loss-ratio", "1.03", *half, "--json")
    assert ran.code == 0, ran.err
    exits = json.loads(ran.out)["outcome"]["figures"]["exits"]
    assert not labelled
    assert exits["layers"] == {"never": COUNT // 2} and exits["prefill_saved"] == 0
    held = [(one / "dyvte.safetensors").stat().st_size for one in (calibrated, tmp_path)]
    assert held[1] == pytest.approx(held[0] / 2, rel=0.01)


def test_what_gates_read_may_be_deleted(
    calibrated: Path, tmp_path: Path, run: Any, labelled: list[int]
) -> None:
    copied(calibrated, tmp_path)
    next((tmp_path / "dyvte.work").glob("*-*.safetensors")).unlink()
    assert run(*asked(calibrated)).code == ExitCode.OK
    assert len(labelled) == 1
    same_gates(calibrated, tmp_path)


def test_a_disk_that_is_full_is_told_with_the_file(
    calibrated: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what gates read, for the gates and for the report; the samples stay, and serve again."""
    copied(calibrated, tmp_path)
    before = (tmp_path / "dyvte.samples.jsonl").read_bytes()
    next((tmp_path / "dyvte.work").glob("*-*.safetensors")).unlink()
    for module, name, ending in (
        ("mvw_cli.calibrate.dyvte.search.replacing", ".work/", ".safetensors"),
        ("mvw_cli.calibrate.dyvte.gates.replacing", ".safetensors", ""),
        ("mvw_cli.files.replacing", ".report.json", ""),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, no_space)
            ran = run(*asked(calibrated))
        assert ran.code == ExitCode.FAILURE
        what, cause, hint = ran.err.splitlines()[-3:]
        assert what.startswith(f"Error: Cannot write dyvte{name}") and what.endswith(ending)
        assert cause.startswith("  No space left on device; ")
        assert hint == f"Hint: df -h {tmp_path}{'/dyvte.work' if ending else ''}"
        assert (tmp_path / "dyvte.samples.jsonl").read_bytes().startswith(before)
        assert not (tmp_path / "dyvte.yaml").exists()
    assert run(*asked(calibrated)).code == ExitCode.OK
    same_gates(calibrated, tmp_path)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nx")])
def test_memory_that_runs_out_in_the_training_has_its_own_code(
    calibrated: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def train(*given: Any, **more: Any) -> Any:
        raise error

    copied(calibrated, tmp_path)
    monkeypatch.setattr(dyvte_search, "train", train)
    text = refused(run(*asked(calibrated)), ExitCode.OUT_OF_MEMORY)
    what, cause, hint = text.splitlines()[-3:]
    assert what == "Error: out of memory" and hint.startswith("Hint: mvw calibrate dyvte ")
    assert (
        cause
        == f"  {str(error).splitlines()[0] if str(error) else 'the machine has no more to give'}"
    )


def test_references_can_be_followed(calibrated: Path, tmp_path: Path, run: Any) -> None:
    ran = run(*asked(calibrated), "--along", "reference", "--limit", "4", "--json")
    assert ran.code == 0, ran.err
    samples = json.loads(ran.out)["samples"]
    assert len(samples) == 4
    assert all(one["answer_tokens"] < 10 for one in samples)  # a word or two, and the end


def test_missing_references_are_refused(calibrated: Path, run: Any) -> None:
    text = refused(run("--images", str(calibrated / "scenes"), "How many?", "--along", "reference"))
    assert "has no reference answer" in text


def test_the_same_question_twice_is_asked_once(calibrated: Path, tmp_path: Path) -> None:
    session = open_session(resolve(None, {}).profile)
    source = Source((str(calibrated / "scenes" / "scene-0001.png"),), question="How many?")
    (item,) = own_items(source, 1, one=True).items
    search = dyvte_search.DyvteSearch()
    with SampleStore(tmp_path / "samples.jsonl", {}) as store:
        run = SearchRun(session, [item, item], store, tmp_path / "dyvte.yaml")
        samples = measure_all(search, run)
        assert [one["number"] for one in samples] == [1, 2] and len(store) == 1
        assert len(dyvte_search.read_dataset(run, samples).questions) == 1
