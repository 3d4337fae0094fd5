"""`mvw calibrate dyvte` on the embedded model: what it writes, and that it can be lost at any time.

The embedded model needs its vision in every layer, so that bounds are set here at which about half
of its questions may do without.
"""

from __future__ import annotations

import json
import os
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

from mvw_cli.__main__ import main
from mvw_cli.batch.source.spec import Source
from mvw_cli.bench.measure.items import own_items
from mvw_cli.bench.quality.asking import ask
from mvw_cli.calibrate.dyvte.gates import read_gates
from mvw_cli.calibrate.dyvte.labelling import label
from mvw_cli.calibrate.dyvte.looks import look
from mvw_cli.calibrate.dyvte.policy import Dyvte
from mvw_cli.calibrate.dyvte.store import Store
from mvw_cli.engine.types import Finished, Prefilled
from mvw_cli.errors import ExitCode
from mvw_cli.plugins.lookup import load_adapter
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import resolve
from mvw_cli.session import open_session

COUNT = 12
LOOSE = (
    "--agreement",
    "0.9",
    "--loss-ratio",
    "1e9",
    "--epochs",
    "6",
    "--held-out",
    "0.5",
    "--max-new-tokens",
    "40",
)
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
    for ending in ("yaml", "safetensors", "report.json", "accuracy.svg", "exits.svg"):
        assert (calibrated / f"dyvte.{ending}").stat().st_size > 0
    out = (calibrated / "stdout").read_text()
    assert "exit before layer" in out and "first layer without vision" in out


def test_the_report_holds_together(calibrated: Path) -> None:
    report = report_of(calibrated)
    data, found = report["data"], report["found"]
    assert report["kind"] == "calibrate dyvte"
    assert (data["questions"], data["held_out_questions"]) == (COUNT, COUNT // 2)
    assert data["training_images"] + data["held_out_images"] == COUNT
    assert [gate["layer"] for gate in found["gates"]] == [1, 2, 3]
    for gate in found["gates"]:
        low, high = gate["accuracy_interval_95"]
        assert low <= gate["accuracy"] <= high
        assert gate["accuracy"] <= 1 - gate["wrong_exits"] + 1e-9
    everyone = [found["exits"], found["earliest_allowed"], *found["fixed"].values()]
    assert all(sum(one["layers"].values()) == COUNT // 2 for one in everyone)
    assert found["earliest_allowed"]["allowed"] == 1
    for layer, one in found["fixed"].items():
        gone = 1 - int(layer) / 4
        assert one["layers"] == {layer: COUNT // 2}
        assert one["layers_saved"] == pytest.approx(gone)
        # Vision is most of the prompt, and the encoder saves nothing.
        assert 0.8 * gone < one["prefill_saved"] < gone
        assert 0 < one["prefill_saved_with_encoder"] < one["prefill_saved"]
        assert one["loss_nats"] > found["full_loss_nats"]


def test_gates_carry_the_settings_that_made_them(calibrated: Path) -> None:
    gates = read_gates(str(calibrated / "dyvte.safetensors"))
    assert (gates.layers, gates.hidden_size) == (4, 160)
    about = gates.about
    assert about["model"] == "embedded"
    assert (about["layers"], about["hidden_size"]) == (4, 160)
    assert about["settings"]["lr"] == 6e-5
    assert about["settings"]["agreement"] == 0.9
    assert about["profile"]["adapter"] == "shapes"
    assert about["data"]["training_questions"] == COUNT // 2
    assert about["mvw_version"]


def test_the_profile_runs_and_the_engine_exits_where_the_report_says(calibrated: Path) -> None:
    """The report's exits and agreement, seen once more: in the engine, under the policy."""
    profile = resolve(str(calibrated / "dyvte.yaml"), {}).profile
    session = open_session(profile)
    assert session.policy == Dyvte(str(calibrated / "dyvte.safetensors"))
    work = calibrated / "dyvte.work"
    entries = {entry.question: entry for entry in _entries(work)}
    source = Source((), questions=str(calibrated / "scenes" / "questions.jsonl"))
    exits: dict[str, int] = {}
    agreement = []
    for item in own_items(source, COUNT, one=False).items:
        entry = next(one for one in entries.values() if one.names == (Path(item.images[0]).name,))
        if entry.key not in _held_out(calibrated):
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
    found = report_of(calibrated)["found"]["exits"]
    assert exits == found["layers"]
    assert set(exits) != {"never"}
    assert sum(agreement) / len(agreement) == pytest.approx(found["agreement"], abs=1e-6)


def _entries(work: Path) -> Any:
    from mvw_cli.calibrate.dyvte.store import _entries as entries_of

    return [
        entry for path in sorted(work.glob("labels-*.safetensors")) for entry in entries_of(path)
    ]


def _held_out(folder: Path) -> set[str]:
    from mvw_cli.calibrate.dyvte.parts import split

    copy = folder / "copy.work"
    if not copy.exists():
        shutil.copytree(folder / "dyvte.work", copy)
    settings = json.loads((copy / "settings.json").read_text())
    store = Store(copy, settings)
    table = store.table(sorted(store.keys))
    store.close()
    parts = split(table, 0.5, 0, 0.9, 1e9)
    return {table.entries[row].key for row in parts.held_out}


def followed(session: Any, request: Any) -> tuple[torch.Tensor, Prefilled]:
    """Read an output; return the logits of its tokens, # (T, V), and the prefill."""
    rows: list[torch.Tensor] = []
    with session.serving(observe=lambda name, step, row: rows.append(row.clone())) as slots:
        events = slots.admit(request)
        while slots.active:
            events += slots.step()
    return torch.stack(rows), next(one for one in events if isinstance(one, Prefilled))


def test_a_process_that_is_killed_ends_with_the_same_gates(
    calibrated: Path, tmp_path: Path, run: Any
) -> None:
    words = [sys.executable, "-m", "mvw_cli", "calibrate", "dyvte", *asked(calibrated)]
    shard = tmp_path / "dyvte.work" / "labels-00000.safetensors"
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while not shard.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    written = shard.stat().st_mtime_ns
    assert run(*asked(calibrated)).code == ExitCode.OK
    assert shard.stat().st_mtime_ns == written
    same_gates(calibrated, tmp_path)


def test_ctrl_c_keeps_what_was_done(
    calibrated: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def interrupted(*given: Any, **more: Any) -> Any:
        if not looked:
            os.kill(os.getpid(), signal.SIGINT)
        looked.append(1)
        return look(*given, **more)

    monkeypatch.setattr("mvw_cli.calibrate.dyvte.looks.look", interrupted)
    ran = run(*asked(calibrated))
    assert ran.code == ExitCode.INTERRUPTED
    assert ran.err.endswith("Interrupted: the same command goes on from here.\n")
    assert not (tmp_path / "dyvte.yaml").exists()
    assert 0 < len(looked) < COUNT
    assert run(*asked(calibrated)).code == ExitCode.OK
    assert len(looked) == COUNT
    same_gates(calibrated, tmp_path)


def same_gates(one: Path, other: Path) -> None:
    pair = [read_gates(str(folder / "dyvte.safetensors")).gates for folder in (one, other)]
    for gate, same in zip(*pair, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(gate, same, strict=True))
    assert report_of(one)["found"] == report_of(other)["found"]


def refused(ran: Ran, code: ExitCode = ExitCode.USAGE) -> str:
    assert ran.code == code, ran.err
    hint = next(line for line in ran.err.splitlines() if line.startswith("Hint: "))
    parse_hint(hint.removeprefix("Hint: "))
    return ran.err


def test_only_the_training_is_done_again_for_other_bounds(
    calibrated: Path, tmp_path: Path, run: Any
) -> None:
    shutil.copytree(calibrated / "dyvte.work", tmp_path / "dyvte.work")
    shards = sorted((tmp_path / "dyvte.work").glob("labels-*"))
    before = [one.stat().st_mtime_ns for one in shards]
    ran = run(*asked(calibrated), "--agreement", "0.99", "--loss-ratio", "1.03", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["found"]
    assert [one.stat().st_mtime_ns for one in shards] == before
    assert found["exits"]["layers"] == {"never": COUNT // 2}
    assert found["exits"]["prefill_saved"] == 0


def test_other_settings_of_the_model_are_refused(
    calibrated: Path, tmp_path: Path, run: Any
) -> None:
    shutil.copytree(calibrated / "dyvte.work", tmp_path / "dyvte.work")
    text = refused(run(*asked(calibrated), "--set", "prompt.system=Look."))
    assert "these differ: prompt" in text


def test_references_can_be_followed(calibrated: Path, tmp_path: Path, run: Any) -> None:
    ran = run(*asked(calibrated), "--along", "reference", "--limit", "4", "--json")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)["data"]
    assert data["questions"] == 4
    assert data["answer_tokens_mean"] < 10  # a word or two, and the end


def test_missing_references_are_refused(calibrated: Path, run: Any) -> None:
    text = refused(run("--images", str(calibrated / "scenes"), "How many?", "--along", "reference"))
    assert "has no reference answer" in text


def test_one_image_is_refused(calibrated: Path, run: Any) -> None:
    text = refused(run(*asked(calibrated), "--limit", "1"))
    assert "one image" in text


def test_unreadable_images_are_left_out(calibrated: Path, tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number in (1, 2):
        shutil.copy(calibrated / "scenes" / f"scene-000{number}.png", folder)
    (folder / "broken.png").write_bytes(b"no image")
    ran = run("--images", str(folder), "How many red circles are there?", *LOOSE)
    assert ran.code == ExitCode.ITEMS_FAILED
    assert "Left out" in ran.err and "broken.png" in ran.err
    assert report_of(tmp_path)["data"]["questions"] == 2


@pytest.mark.parametrize(
    ("what", "doing"), [("dyvte_looks.look", "labelling"), ("dyvte.train", "training the gates")]
)
def test_a_lack_of_memory_has_a_way_out(
    what: str,
    doing: str,
    calibrated: Path,
    tmp_path: Path,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(f"mvw_cli.calibrate.{what}", full)
    text = refused(run(*asked(calibrated), "--limit", "2"), ExitCode.OUT_OF_MEMORY)
    assert f"out of memory while {doing}" in text and "2.00 GiB" in text


def test_gates_in_half_precision_are_half_the_size(
    calibrated: Path, tmp_path: Path, run: Any
) -> None:
    shutil.copytree(calibrated / "dyvte.work", tmp_path / "dyvte.work")
    assert run(*asked(calibrated), "--gate-dtype", "float16").code == 0
    whole, half = (
        (folder / "dyvte.safetensors").stat().st_size for folder in (calibrated, tmp_path)
    )
    assert half == pytest.approx(whole / 2, rel=0.01)
    assert report_of(tmp_path)["settings"]["gate_dtype"] == "float16"


def test_the_same_question_twice_is_asked_once(calibrated: Path, tmp_path: Path) -> None:
    session = open_session(resolve(None, {}).profile)
    source = Source((str(calibrated / "scenes" / "scene-0001.png"),), question="How many?")
    (item,) = own_items(source, 1, one=True).items
    store = Store(tmp_path / "work", {})
    seen: list[tuple[int, int]] = []
    done = label(session, [item, item], store, progress=lambda *told: seen.append(told))
    assert (len(done.keys), len(store.keys), done.complete) == (1, 1, True)
    assert seen == [(0, 2), (2, 2)]
    stopped = label(session, [item], store, stopping=lambda: True)
    assert (stopped.keys, stopped.complete) == ([], False)
