"""`mvw eval` as a user runs it: real images in a table, the embedded model, kills, wrong files."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, start
from judge_server import Server
from mvw_shapes.samples import write_samples
from PIL import Image
from processes import Ran

Run = Callable[..., Ran]
ARMS = ("--m", "1,never", "--no-image", "--slots", "3")
QUICK = ("--m", "1,never", "--max-new-tokens", "2", "--slots", "3")


def rows_of(folder: Path, count: int) -> list[dict[str, str]]:
    """A table as VLMEvalKit's, of scenes: PNG, JPEG, a reference, a list, and a row of text."""
    lines = write_samples(folder / "samples", count, seed=3).read_text().splitlines()
    rows = []
    for index, line in enumerate(lines):
        sample = json.loads(line)
        png = (folder / "samples" / sample["image"]).read_bytes()
        if index % 2:
            jpeg = io.BytesIO()
            Image.open(io.BytesIO(png)).save(jpeg, "JPEG", quality=95)
            png = jpeg.getvalue()
        rows.append(
            {
                "index": str(index),
                "image": base64.b64encode(png).decode(),
                "question": sample["question"],
                "answer": sample["answer"],
                "category": sample["kind"],
            }
        )
    rows[2]["image"] = repr([rows[2]["image"]])
    rows.append({**rows[1], "index": "100", "image": "1"})
    rows.append({**rows[1], "index": "101", "image": ""})
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def begun(folder: Path, *words: str) -> Forked:
    """Start `mvw` in a process of its own."""
    files = folder / "files"
    files.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120"}
    return start([*words], files=files, cwd=folder, environment=environment)


def ended(process: Forked) -> tuple[int | None, str, str]:
    out, err = process.communicate(300)
    return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and its whole evaluation, by a process of its own."""
    folder = tmp_path_factory.mktemp("eval")
    write(folder / "scenes.tsv", rows_of(folder, 3))
    code, out, err = ended(begun(folder, "eval", "scenes.tsv", *ARMS, "--html", "report.html"))
    assert code == 0, err
    (folder / "screen.txt").write_text(out)
    return folder


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be spoiled."""
    shutil.copytree(shared, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scenes.eval" / "report.json").read_text())
    return found


def records(path: Path) -> dict[str, Any]:
    """What a log has, by id; each line whole, and no id twice."""
    found: dict[str, Any] = {}
    for line in path.read_bytes().splitlines():
        one = json.loads(line)
        assert one["id"] not in found
        found[one["id"]] = (one["status"], one["answer"], one["text"], one["key"])
    return found


def test_the_report_says_what_the_records_say(shared: Path) -> None:
    told = report(shared)
    assert [arm["name"] for arm in told["arms"]] == ["never", "m=1", "no image"]
    assert told["questions"] == 4 and told["left_out"] == {"without an image": 1}
    never, early, blind = told["arms"]
    assert never["score"] > 0.8 > early["score"], "the embedded model reads scenes"
    answers = {row["index"]: row["answer"] for row in rows_of(shared / "again", 3)}
    for arm, log in ((never, "never"), (early, "m=1"), (blind, "no-image")):
        logged = records(shared / "scenes.eval" / f"{log}.jsonl")
        right = sum(answers[id] == answer for id, (_, answer, *_) in logged.items())
        assert len(logged) == 4 == arm["items"] and arm["score"] == pytest.approx(right / 4)
        low, high = arm["interval_95"]
        assert low <= arm["score"] <= high + 1e-9
        assert arm["generated_tokens"] > 0 and arm["seconds"] > 0
        groups = arm["groups"]["category"]
        assert sum(part["items"] for part in groups.values()) == 4
    change = early["change"]
    assert never["change"] is None and change["pairs"] == 4
    assert change["change"] == pytest.approx(early["score"] - never["score"])
    assert change["interval_95"][0] <= change["change"] <= change["interval_95"][1] <= 1
    assert (change["lost"] - change["won"]) / 4 == pytest.approx(-change["change"])
    assert early["kv_bytes_end"] < never["kv_bytes_end"] and blind["vision_tokens"] == 0
    items = (shared / "scenes.eval" / "items.jsonl").read_text().splitlines()
    assert len(items) == 4 and json.loads(items[0])["arms"]["m=1"]["status"] == "ok"


def test_one_screen_begins_with_the_verdict(shared: Path) -> None:
    lines = (shared / "screen.txt").read_text().splitlines()
    assert lines[0].startswith("mvw eval scenes: ") and lines[2] == "VERDICT"
    assert lines[3].startswith("never: ") and len(lines) <= 40
    assert "1 row without an image left out." in lines
    assert any(line.startswith("CATEGORY") for line in lines)
    page = (shared / "report.html").read_text()
    assert "<svg" in page and "CHANGE, POINTS" in page


def test_killed_at_any_moment_and_gone_on_with(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "scenes.tsv", tmp_path)
    words = ["eval", "scenes.tsv", "--m", "1,never", "--slots", "2"]
    log = tmp_path / "scenes.eval" / "m=1.jsonl"
    process = begun(tmp_path, *words)
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") >= 1):
            assert time.monotonic() < deadline and process.returncode is None
            time.sleep(0.02)
    finally:
        process.kill()
    process.wait(30)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "scenes.eval" / "report.json").exists()
    with log.open("ab") as file:
        file.write(b'{"schema_version":1,"id":"cut')
    kept = (tmp_path / "scenes.eval" / "never.jsonl").read_bytes()
    code, _, err = ended(begun(tmp_path, *words))
    assert code == 0, err
    assert (tmp_path / "scenes.eval" / "never.jsonl").read_bytes() == kept
    for name in ("never", "m=1"):
        whole = records(shared / "scenes.eval" / f"{name}.jsonl")
        assert records(tmp_path / "scenes.eval" / f"{name}.jsonl") == whole
    one, other = (report(path)["arms"] for path in (tmp_path, shared))
    assert [arm["score"] for arm in one] == [arm["score"] for arm in other[:2]]


def test_scored_again_without_a_model(folder: Path) -> None:
    before = report(folder)
    (folder / "scenes.eval" / "report.json").unlink()
    code = (
        "import sys\n"
        "from mvw_cli.__main__ import main\n"
        "code = main(['eval', 'scenes.tsv', '--rescore', '--json'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'a model is not needed'\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == report(folder) == before


def test_another_rule_and_the_users_own(folder: Path, mvw: Run) -> None:
    (folder / "mine.py").write_text("def never(answer, row): return False\n")
    assert mvw("eval", "scenes.tsv", "--rescore", "--scorer", "mine:never").code == 0
    assert [arm["score"] for arm in report(folder)["arms"]] == [0, 0, 0]
    assert mvw("eval", "scenes.tsv", "--rescore", "--scorer", "contains").code == 0
    assert report(folder)["arms"][0]["vlmevalkit"] == report(folder)["arms"][0]["score"]
    ran = mvw("eval", "scenes.tsv", "--rescore", "--scorer", "wrong")
    assert ran.code == 2 and len(ran.err.splitlines()) == 3


def test_a_judge_decides_what_the_rule_could_not(folder: Path, mvw: Run) -> None:
    server = Server()
    try:
        words = ("--rescore", "--judge", server.url, "--judge-model", "judge-1")
        ran = mvw("eval", "scenes.tsv", *words)
        assert ran.code == 0, ran.err
        assert mvw("eval", "scenes.tsv", *words).code == 0
    finally:
        server.close()
    found = report(folder)
    assert "JUDGED" in ran.out
    wrong = set()
    items = (folder / "scenes.eval" / "items.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in items]
    for arm in found["arms"]:
        answers = [one["arms"][arm["name"]] for one in told]
        # Who has said nothing is not asked about.
        right = sum(one["value"] == 1 or bool(one["answer"]) for one in answers)
        assert arm["judged"] == right / 4 >= arm["score"]
        for one, answer in zip(told, answers, strict=True):
            if answer["value"] < 1 and answer["answer"]:
                assert answer["judge"] is True
                wrong.add((one["id"], answer["answer"]))
    assert 1 <= len(server.asked) <= len(wrong), "each wrong answer once, also by two runs"
    assert problem(mvw("eval", "scenes.tsv", "--judge", "x"))[0].endswith("go together")


def test_arms_are_added_and_shards_come_together(folder: Path, mvw: Run) -> None:
    shutil.rmtree(folder / "scenes.eval")
    for shard in ("0/2", "1/2"):
        ran = mvw("eval", "scenes.tsv", *QUICK, "--shard", shard)
        assert ran.code == 0, ran.err
        assert ("Not answered yet" in ran.out) == (shard == "0/2")
    logs = sorted(path.name for path in (folder / "scenes.eval").glob("*.jsonl"))
    assert logs == [
        *("items.jsonl", "m=1.0-of-2.jsonl", "m=1.1-of-2.jsonl"),
        *("never.0-of-2.jsonl", "never.1-of-2.jsonl"),
    ]
    assert [arm["items"] for arm in report(folder)["arms"]] == [4, 4]
    policy = "random:layer=1,keep=0.5"
    ran = mvw("eval", "scenes.tsv", *QUICK[2:], "--policy", policy, "--limit", "2")
    assert ran.code == 0, ran.err
    arms = {arm["name"]: arm for arm in report(folder)["arms"]}
    assert [*arms] == ["never", "m=1", policy]
    assert arms[policy]["items"] == 2 == arms["m=1"]["items"]


def test_answers_to_other_images_are_no_pairs(folder: Path, mvw: Run) -> None:
    rows = rows_of(folder / "new", 3)
    rows[0]["image"] = rows[1]["image"]
    write(folder / "scenes.tsv", rows)
    ran = mvw("eval", "scenes.tsv", "--m", "never")
    assert ran.code == 0, ran.err
    never, early, blind = report(folder)["arms"]
    assert (never["missing"], early["missing"], blind["missing"]) == (0, 1, 0)
    assert (early["change"]["pairs"], blind["change"]["pairs"]) == (3, 4)
    assert "Arm m=1: 1 answer left out, to other images than those of never." in ran.out
    ran = mvw("eval", "scenes.tsv", "--m", "1")
    assert ran.code == 0 and "left out, to" not in ran.out
    assert [arm["missing"] for arm in report(folder)["arms"]] == [0, 0, 0]


def problem(ran: Ran, code: int = 2) -> list[str]:
    """The three lines of an error, which is all that there is."""
    assert ran.code == code, ran.err
    lines = ran.err.splitlines()[-3:]
    assert lines[0].startswith("Error: ") and lines[2].startswith("Hint: "), ran.err
    return lines


def test_answers_of_other_settings_or_data_are_not_mixed(folder: Path, mvw: Run) -> None:
    what, cause, hint = problem(mvw("eval", "scenes.tsv", "--m", "2", "--max-new-tokens", "5"))
    assert "scenes.eval holds answers of other settings" in what
    assert "generation.max_new_tokens" in cause
    again = "mvw eval scenes.tsv --m 2 --max-new-tokens 5"
    assert hint == f"Hint: {again} -o scenes.eval-2"
    *_, hint = problem(mvw(*again.split()[1:], "--output", "scenes.eval"))
    assert hint == f"Hint: {again} -o scenes.eval-2"
    shutil.copy("scenes.tsv", "others.tsv")
    what, cause, _ = problem(mvw("eval", "others.tsv", "--m", "2", "-o", "scenes.eval"))
    assert "scenes.eval holds answers to scenes" in what and "this is others" in cause
    what, *_ = problem(mvw("eval", "others.tsv", "--rescore"))
    assert "There are no answers in others.eval" in what
    shutil.copytree("scenes.eval", "logs.eval")
    (folder / "logs.eval" / "arms.json").unlink()
    what, cause, _ = problem(mvw("eval", "scenes.tsv", "--rescore", "-o", "logs.eval"))
    assert "There are no answers in logs.eval" in what and "by its arms.json" in cause
    (folder / "scenes.eval" / "arms.json").write_text('{"data": "scenes", "arms": {"x": "../y"}}')
    assert "is no list of arms" in problem(mvw("eval", "scenes.tsv", "--rescore"))[0]


def test_a_page_does_not_go_over_what_is_kept(folder: Path, mvw: Run) -> None:
    kept = {file: file.read_bytes() for file in (folder / "scenes.eval").iterdir()}
    (folder / "link.html").symlink_to("scenes.eval/report.json")
    (folder / "hard.html").hardlink_to("scenes.eval/never.jsonl")
    for page in ("scenes.eval/never.jsonl", "scenes.eval/m=7.jsonl", "link.html", "hard.html"):
        what, *_ = problem(mvw("eval", "scenes.tsv", "--rescore", "--html", page))
        assert page in what
    assert problem(mvw("eval", "scenes.tsv", "--html", "scenes.eval/arms.json"))[2] == (
        "Hint: mvw eval scenes.tsv --html scenes.html"
    )
    assert kept == {file: file.read_bytes() for file in (folder / "scenes.eval").iterdir()}
    for _ in range(2):
        ran = mvw("eval", "scenes.tsv", "--rescore", "--html", "scenes.eval/report.html")
        assert ran.code == 0, ran.err


def test_what_rescore_does_not_go_by_is_told(folder: Path, mvw: Run) -> None:
    words = ("--rescore", "--limit", "2", "--scorer", "contains")
    assert "Warning" not in mvw("eval", "scenes.tsv", *words).err
    ran = mvw("eval", "scenes.tsv", *words, "--m", "9,10", "--model", "x")
    assert ran.code == 0 and "goes by none of --m, --model" in ran.err
    assert [arm["name"] for arm in report(folder)["arms"]] == ["never", "m=1", "no image"]


def test_a_folder_is_told_to_name_its_table(folder: Path, mvw: Run) -> None:
    what, _, hint = problem(mvw("eval", "samples"))
    assert "samples is no data set" in what
    assert hint == "Hint: mvw eval samples/questions.jsonl"
    (folder / "samples" / "questions.jsonl").unlink()
    assert problem(mvw("eval", "samples"))[2] == "Hint: ls samples"


def test_wrong_tables(folder: Path, mvw: Run) -> None:
    rows = rows_of(folder / "new", 3)[:3]
    write(folder / "twice.tsv", [*rows, rows[0]])
    assert "have the index 0" in problem(mvw("eval", "twice.tsv"))[0]
    write(folder / "unasked.tsv", [{"index": "1", "image": rows[0]["image"], "answer": "x"}])
    assert "it lacks question" in problem(mvw("eval", "unasked.tsv"))[1]
    write(folder / "unanswered.tsv", [{**one, "answer": ""} for one in rows])
    assert "no column answer" in problem(mvw("eval", "unanswered.tsv"))[1]
    assert "There is no absent" in problem(mvw("eval", "absent"))[0]
    assert "is no data set" in problem(mvw("eval", "report.html"))[0]
    before = (folder / "samples" / "scene-0001.png").read_bytes()
    for written in ("samples/scene-0001.png", "samples/questions.jsonl", "scenes.tsv"):
        data = "scenes.tsv" if written == "scenes.tsv" else "samples/questions.jsonl"
        ran = mvw("eval", data, "--html", written)
        assert "is an input, and would be written over" in problem(ran)[0]
    assert (folder / "samples" / "scene-0001.png").read_bytes() == before
    assert "profile" in problem(mvw("eval", "samples/questions.jsonl", "--profile", "absent"))[0]
    for name in ("questions.eval", "twice.eval", "unasked.eval", "unanswered.eval"):
        assert not (folder / name).exists(), "nothing is left of what could not begin"


def test_an_image_that_is_no_image_is_one_question_s_failure(folder: Path, mvw: Run) -> None:
    rows = rows_of(folder / "new", 3)[:3]
    rows[1]["image"] = rows[1]["image"][:200] + "!" + rows[1]["image"][201:]
    rows[2]["image"] = base64.b64encode(b"no picture, but long enough to be one" * 9).decode()
    write(folder / "bad.tsv", rows)
    ran = mvw("eval", "bad.tsv", *QUICK)
    assert ran.code == 3, ran.err
    assert "failed: 1: Cannot read the image" in ran.err and "failed: 2: " in ran.err
    found = json.loads((folder / "bad.eval" / "report.json").read_text())
    assert [(arm["items"], arm["failed"]) for arm in found["arms"]] == [(1, 2), (1, 2)]
    assert "Failed, and not counted: never 2, m=1 2." in ran.out
    write(folder / "bad.tsv", rows_of(folder / "newer", 3)[:3])
    again = mvw("eval", "bad.tsv", *QUICK, "--retry-failed")
    assert again.code == 0, again.err
    found = json.loads((folder / "bad.eval" / "report.json").read_text())
    assert [(arm["items"], arm["failed"]) for arm in found["arms"]] == [(3, 0), (3, 0)]


def test_wemath_by_its_name(folder: Path, mvw: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two problems of two steps, of which the second lacks a step."""
    image = rows_of(folder / "new", 3)[0]["image"]
    keys = ("2steps_1", "2steps_2", "2steps_multi")
    rows = [
        {
            "index": str(3 * n + place),
            "ID": str(n),
            "key": key,
            "image": image,
            "question": "How long is it?",
            "A": "1 cm",
            "B": "2 cm",
            "answer": "A",
        }
        for n in range(2)
        for place, key in enumerate(keys)
    ][:5]
    (folder / "LMUData").mkdir()
    write(folder / "LMUData" / "WeMath.tsv", rows)
    monkeypatch.setenv("LMUData", str(folder / "LMUData"))
    ran = mvw("eval", "WeMath", *QUICK)
    assert ran.code == 0, ran.err
    log = folder / "WeMath.eval" / "never.jsonl"
    asked = {json.loads(line)["question"] for line in log.read_text().splitlines()}
    assert asked == {"Question: How long is it?\nOptions:\nA. 1 cm\nB. 2 cm\n"}
    found = json.loads((folder / "WeMath.eval" / "report.json").read_text())
    never = found["arms"][0]["metrics"]["wemath"]
    assert (never["problems"], never["incomplete"], never["insufficient_knowledge"]) == (1, 1, 1)
    assert never["score_strict"] == 0 and never["vlmevalkit_score_strict"] > 0.99
    assert "WEMATH" in ran.out and "which VLMEvalKit counts as mastered: never 1" in ran.out
    assert len(ran.out.splitlines()) <= 40
