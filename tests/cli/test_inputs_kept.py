"""No command writes over one of its inputs, by whatever path and with whatever flags."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hints import parse_hint
from making import hub_table, write_parquet
from PIL import Image
from processes import Ran
from sample_report import report

from mvw_cli.bench.documents import to_json

SAID = "is an input, and would be written over"
ASKED = "infer scene.png what? --profile mine.yaml"
LISTED = "batch images what? --profile mine.yaml --overwrite"
MEASURED = "profile scene.png what? --profile mine.yaml"
SEARCHED = "calibrate vtw what? --images images --profile mine.yaml"
COMMANDS = [
    # The command, to which OUT is another path of the input; the input; the ending of OUT.
    *(
        (f"{ASKED} {option} OUT", read, "")
        for option in ("-o", "--explain")
        for read in ("scene.png", "mine.yaml", "base.yaml", "home/profiles/shapes.yaml", "gates")
    ),
    (f"{ASKED} --image images/a.png -o OUT", "images/a.png", ""),
    (f"{ASKED} --model ckpt -o OUT", "ckpt/config.json", ""),
    (f"{ASKED} --model ckpt -o OUT", "ckpt/model-1.safetensors", ""),
    *(
        (f"{LISTED} -o OUT", read, ending)
        for ending in (".jsonl", ".csv")
        for read in ("images/a.png", "mine.yaml", "base.yaml")
    ),
    (f"{LISTED} --model ckpt -o OUT", "ckpt/config.json", ".jsonl"),
    ("batch --questions q.jsonl -o OUT", "q.jsonl", ".jsonl"),
    ("batch --questions q.jsonl -o OUT --overwrite", "images/a.png", ".jsonl"),
    ("batch d.parquet -o OUT --overwrite", "d.parquet", ".parquet"),
    ("batch data -o OUT --overwrite", "data/e.parquet", ".parquet"),
    ("batch --questions r.jsonl.run.json -o r.jsonl", "r.jsonl.run.json", None),
    *(
        (f"{MEASURED} {option} OUT", read, ending)
        for option, ending in (("-o", ".json"), ("--html", ""))
        for read in ("scene.png", "mine.yaml", "base.yaml")
    ),
    ("profile --images images what? --limit 1 --html OUT", "images/b.png", ""),
    ("profile --questions q.jsonl --html OUT", "q.jsonl", ""),
    ("profile --from report.json -o OUT", "report.json", ".json"),
    ("profile --from report.json --html OUT", "report.json", ""),
    ("profile --from charts/speed.svg --plot charts", "charts/speed.svg", None),
    *((f"{SEARCHED} -o OUT", read, ".yaml") for read in ("images/a.png", "mine.yaml", "base.yaml")),
    ("calibrate vtw --questions x.samples.jsonl -o x.yaml", "x.samples.jsonl", None),
    ("calibrate vtw --questions x.report.json -o x.yaml", "x.report.json", None),
    ("calibrate dyvte --questions x.safetensors -o x.yaml", "x.safetensors", None),
    ("merge one.jsonl two.jsonl -o OUT --overwrite", "two.jsonl", ".csv"),
    ("merge d.csv -o OUT --overwrite", "d.csv", "-of-it.csv"),
    ("compare report.json report.json --html OUT", "report.json", ""),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("scene.png", "images/a.png", "images/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    question = json.dumps({"image": "images/a.png", "question": "what?"}) + "\n"
    texts = {
        "base.yaml": "extends: shapes\n",
        "mine.yaml": "extends: ./base.yaml\nwithdrawal: {policy: dyvte, gates: gates}\n",
        "gates": "trained",
        "home/profiles/shapes.yaml": "generation: {seed: 3}\n",
        "ckpt/config.json": "{}",
        "ckpt/model-1.safetensors": "weights",
        "q.jsonl": question,
        "r.jsonl.run.json": question,
        **{f"x.{end}": question for end in ("samples.jsonl", "report.json", "safetensors")},
        "report.json": to_json(report()),
        "charts/speed.svg": to_json(report()),
        "d.csv": "id,status\n",
        "d.csv.jsonl": "",
        "one.jsonl": "",
        "two.jsonl": "",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_parquet(folder / "d.parquet", hub_table(2, question=pa.array(["what?"] * 2)))
    write_parquet(folder / "data" / "e.parquet", hub_table(2, question=pa.array(["what?"] * 2)))
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(ran: Ran) -> None:
    assert ran.code == 2 and ran.out == "", ran.err
    what, cause, hint = ran.err.splitlines()[-3:]
    assert SAID in what and cause.startswith("  input and output are the same file"), ran.err
    assert hint.startswith("Hint: ls -li ") and shlex.split(hint)


@pytest.mark.parametrize(("command", "read", "ending"), COMMANDS)
def test_no_command_writes_over_its_input(
    command: str,
    read: str,
    ending: str | None,
    prepared: Path,
    mvw: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("MVW_HOME", str(prepared / "home"))
    before = content(prepared)
    outputs = [None]
    if ending is not None:
        names = [f"link{ending}", f"hard{ending}"]
        os.symlink(os.path.abspath(read), names[0])
        os.link(read, names[1])
        same = [f"./{read}", f"images/../{read}", os.path.abspath(read)]
        outputs = [*names, *(same if read.endswith(ending) else [])]
    try:
        for output in outputs:
            refused(mvw(*shlex.split(command.replace("OUT", output or ""))))
    finally:
        for output in outputs:
            if output is not None and output.startswith(("link", "hard")):
                os.unlink(output)
    assert content(prepared) == before


def test_what_standard_input_comes_from_is_an_input(prepared: Path, tmp_path: Path) -> None:
    before = content(prepared)
    home = {**os.environ, "MVW_HOME": str(prepared / "home")}
    listed = prepared / "list.csv"
    listed.write_text("images/a.png\n")
    for words, source in (
        ("infer - what? -o scene.png", "scene.png"),
        ("batch - what? -o list.csv --overwrite", "list.csv"),
    ):
        with (prepared / source).open("rb") as stdin:
            done = subprocess.run(
                [sys.executable, "-m", "mvw_cli", *words.split()],
                stdin=stdin,
                capture_output=True,
                text=True,
                cwd=prepared,
                env=home,
            )
        refused(Ran(done.returncode, done.stdout, done.stderr))
    listed.unlink()
    assert content(prepared) == before


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("merge one.jsonl two.jsonl -o report.jsonl", "report.jsonl"),
        ("merge one.jsonl -o kept.csv", "kept.csv"),
        ("samples old --count 1", "old/questions.jsonl"),
        ("profile --from nothing.json", "report.json"),
        ("calibrate vtw -o vtw.json", "vtw.yaml"),
        ("infer scene.png what? -o same --explain same", "looked.html"),
        ("infer https://example.com/scene.png what?", "scene.png"),
        ("infer a.pdf what?", "a-picture-1.png"),
        ("batch images what? -o kept.csv", "kept.csv"),
    ],
)
def test_no_hint_destroys_what_is_there(
    command: str,
    kept: str,
    tmp_path: Path,
    mvw: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("scene.png", "images/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(name)
    for name in ("one.jsonl", "two.jsonl"):
        Path(name).touch()
    Path("a.pdf").write_bytes(b"%PDF-1.7")
    Path(kept).parent.mkdir(exist_ok=True)
    if not Path(kept).exists():
        Path(kept).write_text("precious")
    ran = mvw(*shlex.split(command))
    assert ran.code != 0 and "fault in mvw" not in ran.err
    hint = ran.err.splitlines()[-1].removeprefix("Hint: ")
    assert "--overwrite" not in hint and "--force" not in hint
    assert kept not in shlex.split(hint) and "a-picture" not in shlex.split(hint)
    if hint.startswith("mvw"):
        parse_hint(hint)
