"""`mvw batch` in this process, with a tiny model: each option does what its help says."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import shlex
import struct
import sys
import termios
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import pytest
import torch
from docs_pages import dotted, rows, section
from hints import parse_hint
from making import hub_table, noise, table_rows, write_parquet
from PIL import Image
from processes import Ran
from records import ok

from mvw_cli.batch.items import ImageRef, Item, shard_of
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.store.record import cause_of, failure
from mvw_cli.batch.workers import worker
from mvw_cli.cli.batch import split
from mvw_cli.cli.batch import view as batch_view
from mvw_cli.cli.options import Size
from mvw_cli.engine.slots import Slots
from mvw_cli.errors import BadImage, ExitCode

ITEMS = 4
Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny LLaVA of random weights, as a user would have it."""
    from mvw_hf.tiny import tiny_llava

    folder = str(tmp_path_factory.mktemp("tiny"))
    model, processor = tiny_llava()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with four pictures in `images`, and with what the command mutes taken back."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)
    disable_progress_bar()
    muted = ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")
    for name in (*muted, "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    put("images", *range(ITEMS))


@pytest.fixture
def batch(tiny_folder: str, monkeypatch: pytest.MonkeyPatch, mvw: Run) -> Run:
    def run(*words: str, stdin: bytes = b"", model: bool = True, m: str = "2") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        chosen = ["--model", tiny_folder, "--max-new-tokens", "5", "-m", m] if model else []
        return mvw("batch", *words, *chosen)

    return run


def put(folder: str, *numbers: int) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Path(folder, f"{number}.png").write_bytes(noise(number))


def records(path: str = "images.results.jsonl") -> dict[str, dict[str, Any]]:
    lines = Path(path).read_bytes().splitlines()
    found = {record["id"]: record for record in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def texts(path: str = "images.results.jsonl") -> dict[str, str]:
    return {id: record["text"] for id, record in records(path).items()}


def refused(ran: Ran, code: int = ExitCode.USAGE) -> list[str]:
    """The lines of an error: what, why, and a command that works."""
    assert ran.code == code, ran.err
    lines = ran.err.splitlines()
    assert lines[0].startswith("Error: ") and lines[1].startswith("  "), ran.err
    assert lines[2].startswith("Hint: ") and len(lines) == 3, ran.err
    if lines[2].startswith("Hint: mvw"):
        parse_hint(lines[2].removeprefix("Hint: "))
    else:
        assert re.match(r"Hint: (ls|sed|pip|mkdir|df) ", lines[2])
    return lines


def documented(heading: str) -> list[str]:
    """The keys that docs/json.md lists, in its order."""
    return [key for key, *_ in rows(section("json.md", heading))]


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is to be loaded in this test."""

    def fail(*args: object, **more: object) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr("mvw_cli.batch.workers.worker.open_session", fail)


# --- what is asked about what ---


def test_a_folder_and_a_question(batch: Run) -> None:
    ran = batch("images", "w1 w2")
    assert (ran.code, ran.out) == (0, "")
    found = records()
    assert sorted(found) == ["0.png", "1.png", "2.png", "3.png"]
    for record in found.values():
        assert (record["status"], record["question"], record["attempts"]) == ("ok", "w1 w2", 1)
        assert record["vision_tokens"] == 16 and record["generated_tokens"] <= 5
        assert record["text"] == record["answer"] and record["error"] is None
        assert record["withdrawal"]["step"] == 2
    assert len({record["text"] for record in found.values()}) > 1
    assert "Items" in ran.err and "4 answered" in ran.err
    assert re.search(r"^\d+ slots: .* free after the weights, 20% kept back; ", ran.err, re.M)


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (("images",), None),
        (("images", "What is it?"), "What is it?"),
        (("images", "Describe"), "Describe"),
        (("images", "images/0.png"), None),
        (("images", "imgaes/0.png"), None),
        (("images", "0.pgn"), None),
        (("images", "s3://bucket/x"), None),
        (("images", "-"), None),
        (("-", "Yes or no: 1/2?"), "Yes or no: 1/2?"),
        (("images", "images/0.png", "Is it a .png file"), "Is it a .png file"),
        (("images", ""), ""),
    ],
)
def test_the_question_comes_last(words: tuple[str, ...], question: str | None) -> None:
    paths = words if question is None else words[:-1]
    assert split(words) == (paths, question)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["imgaes", "w1 w2"], "There is no imgaes"),
        (["images", "imgaes/0.png"], "There is no imgaes"),
        (["image", "w1 w2"], "did you mean images?\nHint: mvw batch images 'w1 w2'"),
        (["images"], "There is no question"),
        (["images", "  "], "the question is empty"),
        ([], "There is nothing to ask about"),
        (["-", "w1 w2"], "There is no path on standard input"),
        (["data.parquet", "w1 w2"], "There is no column image in data.parquet"),
        (["images", "w1 w2", "-o", "out.json"], "-o out.json"),
        (["images", "w1 w2", "-o", "gone/out.jsonl"], "there is no folder"),
        (["images", "w1 w2", "-o", "images"], "-o images"),
        (["images", "w1 w2", "-o", "out.parquet/"], "-o out.parquet/"),
        (["images", "w1 w2", "-o", "s3://bucket/out.csv"], "a file of this machine"),
        (["images", "w1 w2", "-o", "answers.csv"], "answers.csv is there already"),
        (["images", "w1 w2", "--overwrite", "--retry-failed"], "contradict"),
    ],
)
def test_what_can_not_be_done_is_told_before_a_model_is_loaded(
    batch: Run, unloadable: None, words: list[str], told: str
) -> None:
    write_parquet(Path("data.parquet"), pa.table({"text": ["a", "b"]}))
    Path("answers.csv").write_text("mine\n1\n")
    before = sorted(os.listdir())
    assert told in "\n".join(refused(batch(*words)))
    assert sorted(os.listdir()) == before
    assert Path("answers.csv").read_text() == "mine\n1\n"


def test_the_profiles_question(batch: Run, tiny_folder: str) -> None:
    prompt = f"adapter: hf\nmodel: {tiny_folder}\nprompt: {{question: w3 w4}}\n"
    Path("mine.yaml").write_text(f"{prompt}generation: {{max_new_tokens: 3}}\n")
    for words, question in ((["images"], "w3 w4"), (["images", "w5 w6", "--overwrite"], "w5 w6")):
        ran = batch(*words, "--profile", "mine.yaml", "--limit", "1", model=False)
        assert ran.code == 0
        [record] = records().values()
        assert (record["question"], record["generated_tokens"]) == (question, 3)


def test_a_file_of_questions(batch: Run) -> None:
    asked = [
        {"image": "images/0.png", "question": "w1", "id": "first", "answer": "3"},
        {"image": "images/0.png", "question": "w2 w3", "id": "second", "answer": None},
        {"image": ["images/1.png", "images/2.png"], "question": "w4", "answer": "a, b"},
    ]
    Path("asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    assert batch("--questions", "asked.jsonl").code == 0
    found = records("asked.results.jsonl")
    assert {id: (one["question"], one["reference"]) for id, one in found.items()} == {
        "first": ("w1", "3"),
        "second": ("w2 w3", None),
        "images/1.png+images/2.png": ("w4", "a, b"),
    }
    assert (
        found["first"]["vision_tokens"],
        found["images/1.png+images/2.png"]["vision_tokens"],
    ) == (16, 32)


def test_recursion_and_globs(batch: Run) -> None:
    put("images/sub", 10, 11)
    globs = ("-r", "--include", "1*.png", "--exclude", "11.png")
    assert batch("images", "w1 w2", *globs).code == 0
    assert sorted(records()) == ["1.png", "sub/10.png"]


def test_paths_on_standard_input(batch: Run) -> None:
    assert batch("-", "w1 w2", stdin=b"images/2.png\nimages/0.png\n").code == 0
    assert sorted(records("stdin.results.jsonl")) == ["images/0.png", "images/2.png"]


@pytest.mark.parametrize(
    "names", [("image", "question", "id", "answer"), ("photo", "was", "name", "gold")]
)
def test_a_table_of_images(batch: Run, names: tuple[str, ...]) -> None:
    asked = dict(zip(names[1:], (["w5", "w6"], ["x", "y"], ["1", "2"]), strict=True))
    table = hub_table(2, **asked)
    write_parquet(Path("data.parquet"), table.rename_columns([names[0], *asked]))
    options = [f"--{kind}-column" for kind in ("image", "question", "id", "answer")]
    given = [word for pair in zip(options, names, strict=True) for word in pair]
    assert batch("data.parquet", *(given if names[0] != "image" else ())).code == 0
    found = records("data.results.jsonl")
    assert {id: (one["question"], one["reference"]) for id, one in found.items()} == {
        "x": ("w5", "1"),
        "y": ("w6", "2"),
    }
    places = {
        id: (one["images"][0]["row"], one["images"][0]["column"]) for id, one in found.items()
    }
    assert places == {"x": (0, names[0]), "y": (1, names[0])}
    lines = refused(batch("data.parquet", "w1 w2", "--image-column", "nope", "-o", "y.jsonl"))
    assert "nope" in " ".join(lines)


# --- where records go ---


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_records(batch: Run, ending: str) -> None:
    ran = batch("images", "w1 w2", "-o", f"out.{ending}")
    assert ran.code == 0 and re.search(rf"^Records +out\.{ending}$", ran.err, re.M)
    log = records(f"out.{ending}.jsonl")
    rows = {row["id"]: row["text"] for row in table_rows(Path(f"out.{ending}"))}
    assert rows == {id: one["text"] for id, one in log.items()}
    assert batch("images", "w1 w2", "-o", f"out.{ending}").code == 0


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("images", "w1 w2"), "images.results.jsonl"),
        (("images/", "w1 w2"), "images.results.jsonl"),
        (("images/2.png", "images", "w1 w2"), "2.results.jsonl"),
        (("images/../images/.", "w1 w2"), "images.results.jsonl"),
        (("-", "w1 w2"), "stdin.results.jsonl"),
        (("--questions", "asked.v2.jsonl"), "asked.v2.results.jsonl"),
        (("images", "--questions", "asked.v2.jsonl"), "images.results.jsonl"),
        (("photos.v2", "w1 w2"), "photos.v2.results.jsonl"),
        (("images", "w1 w2", "--shard", "1/2"), "images.results.1-of-2.jsonl"),
    ],
)
def test_the_default_name(batch: Run, unloadable: None, words: Any, name: str) -> None:
    put("photos.v2", 1)
    Path("asked.v2.jsonl").write_text('{"image": "0.png", "question": "w1"}\n')
    ran = batch(*words, "--dry-run", "--json", stdin=b"images/0.png\n")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["output"] == name
    os.chdir("images")
    ran = batch(".", "w1 w2", "--dry-run", "--json")
    assert json.loads(ran.out)["output"] == "images.results.jsonl"


# --- going on ---


def test_the_same_command_goes_on(batch: Run) -> None:
    whole = batch("images", "w1 w2", "-o", "whole.jsonl", "--slots", "1")
    assert whole.code == 0
    assert batch("images", "w1 w2", "--limit", "2", "--slots", "2").code == 0
    before = Path("images.results.jsonl").read_bytes()
    os.rename("images", "pictures")
    os.rename("pictures/1.png", "pictures/new-name.png")
    put("pictures", 9)
    paths = b"9.png\n3.png\n2.png\nnew-name.png\n0.png\n"
    os.chdir("pictures")
    output = "../images.results.jsonl"
    ran = batch("-", "w1 w2", "-o", output, "--slots", "3", stdin=paths)
    os.chdir("..")
    assert ran.code == 0
    assert "Going on with ../images.results.jsonl: 2 answered, 0 failed before." in ran.err
    assert "3 answered, 2 had their record before" in ran.err
    assert Path("images.results.jsonl").read_bytes().startswith(before)
    found = texts()
    del found["9.png"]
    assert found == texts("whole.jsonl")  # the record of 1.png stands for new-name.png


def test_what_is_done_is_done(batch: Run, request: pytest.FixtureRequest) -> None:
    Path("images/0.png").write_bytes(b"no picture")
    first = batch("images", "w1 w2")
    assert first.code == ExitCode.ITEMS_FAILED
    assert "failed: 0.png: " in first.err
    assert "Retry failed  mvw batch images 'w1 w2'" in first.err
    failed = records()["0.png"]
    assert (failed["status"], failed["error"]["type"]) == ("failed", "BadImage")
    assert failed["text"] == "" and failed["attempts"] == 1

    Path("images/0.png").write_bytes(noise(0))
    retried = batch("images", "w1 w2", "--retry-failed")
    assert retried.code == 0
    assert "1 answered, 3 had their record before" in retried.err
    assert records()["0.png"]["status"] == "ok"

    before = Path("images.results.jsonl").read_bytes()
    request.getfixturevalue("unloadable")
    ran = batch("images", "w1 w2")
    assert ran.code == 0
    assert "There is nothing left to do: each of 4 items has its record." in ran.err
    assert Path("images.results.jsonl").read_bytes() == before


def test_another_setting_is_refused_and_can_start_afresh(batch: Run) -> None:
    assert batch("images", "w1 w2", "--limit", "2").code == 0
    assert batch("images", "w1 w2", "--limit", "3").code == 0
    assert sorted(records()) == ["0.png", "1.png", "2.png"]
    before = Path("images.results.jsonl").read_bytes()
    lines = refused(batch("images", "w1 w2", m="3"))
    assert "withdrawal.m: 2 before, 3 now" in lines[1]
    assert "-o images.results-2.jsonl" in lines[2] and "--overwrite" not in lines[2]
    assert Path("images.results.jsonl").read_bytes() == before
    assert batch("images", "w1 w2", "--overwrite", "--limit", "2", m="3").code == 0
    assert sorted(records()) == ["0.png", "1.png"]


# --- how ---


def test_sizes() -> None:
    sizes = {"800MiB": 800 * 2**20, "20G": 20 * 2**30, "1.5 GiB": 3 * 2**29}
    sizes |= {"64k": 65536, "4096": 4096, "2tb": 2**41}
    assert {text: Size().convert(text, None, None) for text in sizes} == sizes


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--slots", ["0", "many", "-1", "2.5"]),
        ("--kv-memory", ["", "0", "-1G", "lots", "20Gi GiB", "0.0M", "1e9", "0.1"]),
        ("--shard", ["2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"]),
    ],
)
def test_values_that_are_refused(
    batch: Run, unloadable: None, option: str, values: list[str]
) -> None:
    for value in values:
        ran = batch("images", "w1 w2", f"{option}={value}")
        assert ran.code == ExitCode.USAGE and option in ran.err, value


def test_memory_that_is_given_is_kept_to(batch: Run) -> None:
    ran = batch("images", "w1 w2", "--kv-memory", "40KiB", "--json")
    assert ran.code == 0
    assert "40.0 KiB for the KV cache" in ran.err
    assert 0 < json.loads(ran.out)["kv_allocated_bytes_peak"] <= 40 * 1024
    assert texts() and {one["status"] for one in records().values()} == {"ok"}


def test_shards_are_the_whole_together(batch: Run) -> None:
    put("images", *range(4, 11))
    assert batch("images", "w1 w2", "-o", "whole.jsonl").code == 0
    together: dict[str, str] = {}
    for shard in range(3):
        assert batch("images", "w1 w2", "--shard", f"{shard}/3").code == 0
        part = texts(f"images.results.{shard}-of-3.jsonl")
        assert not part.keys() & together.keys()
        together |= part
    assert together == texts("whole.jsonl")


def test_a_shard_without_items(batch: Run, unloadable: None) -> None:
    without = 1 - shard_of("images/0.png", 2)
    ran = batch("images/0.png", "w1 w2", "--shard", f"{without}/2", "--json")
    assert ran.code == 0 and json.loads(ran.out)["listed"] == 0
    assert "there are no items" in ran.err
    assert records(f"0.results.{without}-of-2.jsonl") == {}  # so that a merge knows of it


def test_without_withdrawal(batch: Run, tiny_folder: str) -> None:
    chosen = ("--model", tiny_folder, "--max-new-tokens", "5", "--no-withdrawal")
    ran = batch("images", "w1 w2", *chosen, "--slots", "2", model=False)
    assert ran.code == 0 and "Withdrawal" not in ran.err and " slots: " not in ran.err
    assert {one["withdrawal"] for one in records().values()} == {None}


def test_random_weights_are_no_answers(batch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    open_session = worker.open_session

    def spied(profile: Any, **options: Any) -> Any:
        told.update(options)
        return open_session(profile, **options)

    monkeypatch.setattr(worker, "open_session", spied)
    more = ("--allow-pickle", "--workers", "1", "--limit", "1")
    ran = batch("images", "w1 w2", "--random-weights", *more)
    assert ran.code == 0
    assert "The weights are random: answers are noise." in ran.err
    expected = {"slots": None, "kv_bytes": None, "allow_pickle": True, "random_weights": True}
    assert told == {**expected, "sharers": 1}
    lines = refused(batch("images", "w1 w2"))
    assert "random" in lines[1]


# --- dry runs ---


def test_a_dry_run_writes_and_loads_nothing(batch: Run, unloadable: None) -> None:
    before = sorted(map(str, Path().rglob("*")))
    ran = batch("images", "w1 w2", "--dry-run")
    assert ran.code == 0
    told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in ran.out.splitlines()[1:])
    assert told["to do"] == "4 of 4 items"
    assert told["vision tokens"] == "16 an item (median; 16 at most), 64 in all"
    assert told["generated tokens"] == "up to 5 an item"
    assert re.fullmatch(r"\d+ slots: .*", told["slots"])
    assert told["records to"] == "images.results.jsonl"
    assert "weights" in told
    assert sorted(map(str, Path().rglob("*"))) == before


def test_a_dry_run_as_json_and_of_what_failed(batch: Run) -> None:
    Path("images/3.png").write_bytes(b"no picture")
    assert batch("images", "w1 w2", "--limit", "1").code == 0
    ran = batch("images", "w1 w2", "--dry-run", "--json", "--slots", "3", "--kv-memory", "1MiB")
    plan = json.loads(ran.out)
    assert list(dotted(plan)) == documented("The plan of `mvw batch`")
    assert (plan["listed"], plan["recorded"], plan["to_do"]) == (4, 1, 3)
    assert (plan["images_looked_at"], plan["images_unreadable"]) == (4, 1)
    assert (plan["vision_tokens_median"], plan["vision_tokens_total"]) == (16, 48)
    assert (plan["limits"]["slots"], plan["limits"]["kv_bytes"]) == (3, 2**20)
    token = 2 * 2 * 8 * 4
    assert plan["kv_bytes_per_slot_before"] == (1 + 2 + 16) * token
    assert plan["kv_bytes_per_slot_after"] == (1 + 5) * token
    assert len(records()) == 1

    assert batch("images", "w1 w2").code == ExitCode.ITEMS_FAILED
    kept = Path("images.results.jsonl").read_bytes()
    for option, to_do in (("--retry-failed", 1), ("--quiet", 0), ("--overwrite", 4)):
        ran = batch("images", "w1 w2", "--dry-run", option, "--json")
        assert json.loads(ran.out)["to_do"] == to_do
    assert Path("images.results.jsonl").read_bytes() == kept


# --- what is told ---


def test_the_summary_as_json(batch: Run) -> None:
    Path("images/3.png").write_bytes(b"no picture")
    Path("images/notes.txt").touch()
    ran = batch("images", "w1 w2", "--json")
    assert ran.code == ExitCode.ITEMS_FAILED
    assert "Left out, since they are no images: 1 .txt" in ran.err
    summary = json.loads(ran.out)
    assert list(dotted(summary, whole=("errors", "left_out"))) == documented(
        "The summary of `mvw batch`"
    )
    counts = [summary[key] for key in ("listed", "skipped", "answered", "failed", "remaining")]
    assert counts == [4, 0, 3, 1, 0]
    assert summary["errors"] == {"BadImage": 1}
    assert summary["left_out"] == {".txt": 1}
    assert summary["generated_tokens"] == sum(
        one["generated_tokens"] or 0 for one in records().values()
    )
    assert summary["withdrawal"]["withdrawals"] == 3
    assert 0 < summary["withdrawal"]["kv_bytes_freed"] < summary["withdrawal"]["kv_bytes_before"]
    assert (summary["interrupted"], summary["go_on"]) == (False, None)
    parse_hint(summary["retry"])
    assert "--json" not in summary["retry"] and "--retry-failed" in summary["retry"]


def test_lines_of_progress_where_nobody_redraws(
    batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_view, "EVERY_S", 0.004)
    monkeypatch.setattr(batch_view, "_REDRAWS_PER_S", 500)
    put("images", *range(4, 24))
    ran = batch("images", "w1 w2", "--slots", "3")
    lines = re.findall(r"^\d+ of 24, .*slots \d/3.*$", ran.err, re.M)
    whole = r"slots \d/3, [\d,.]+ items/s, .* left$"
    assert any(re.search(whole, line) for line in lines)
    done = [int(line.partition(" ")[0]) for line in lines]
    assert done == sorted(done)
    assert "\x1b" not in ran.err and "\r" not in ran.err


class Screen:
    """A terminal in place of stderr, read all the while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 140, 0, 0))
        self._stream = os.fdopen(slave, "w", encoding="utf-8")
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setattr(sys, "stderr", self._stream)

    def _read(self) -> None:
        with suppress(OSError):
            while data := os.read(self._master, 1 << 16):
                self._shown += data

    def close(self) -> str:
        self._stream.close()
        self._reader.join(5)
        os.close(self._master)
        return self._shown.decode().replace("\r\n", "\n")


def test_the_bar_on_a_terminal(
    batch: Run, monkeypatch: pytest.MonkeyPatch, tiny_folder: str
) -> None:
    monkeypatch.setattr(batch_view, "_REDRAWS_PER_S", 100)
    put("images", *range(4, 40))
    Path("images/0.png").write_bytes(b"no picture")
    screen = Screen(monkeypatch)
    ran = batch("images", "w1 w2", "--slots", "3")
    shown = screen.close()
    assert ran.code == ExitCode.ITEMS_FAILED and ran.err == ""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"Answering .*[━╸╺]+ +\d+ of 40", plain)
    assert re.search(r"1 failed  slots \d/3  [\d,.]+ items/s  .* left", plain)
    assert "failed: 0.png: " in plain
    assert plain.rstrip().splitlines()[-1].startswith("Retry failed")
    assert f"Loading {tiny_folder}"[:40] in plain.replace("\n", "")
    # The cursor is hidden as long as the bar moves, and comes back.
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") >= 1
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    # What is left on the screen is no bar.
    assert "Answering" not in shown[shown.rindex("\x1b[?25h") :]


@pytest.mark.parametrize(("option", "unseen"), [("-q", "."), ("--no-color", r"\x1b\[[0-9;]*m")])
def test_what_is_not_wanted_on_a_terminal(
    batch: Run, monkeypatch: pytest.MonkeyPatch, option: str, unseen: str
) -> None:
    screen = Screen(monkeypatch)
    assert batch("images", "w1 w2", option).code == 0
    assert not re.search(unseen, screen.close(), re.S)


def test_quiet(batch: Run) -> None:
    Path("images/3.png").write_bytes(b"no picture")
    ran = batch("images", "w1 w2", "-q")
    assert (ran.code, ran.out) == (ExitCode.ITEMS_FAILED, "")
    what, _, hint = ran.err.partition(": ")  # a code other than 0 is never without a word
    assert what == "1 of 4 items failed" and ran.err.count("\n") == 1
    assert "--retry-failed" in hint
    parse_hint(hint.strip())
    ran = batch("images", "w1 w2", "-q", "--json", "--overwrite")
    assert ran.err.startswith("1 of 4 items failed: ") and json.loads(ran.out)["failed"] == 1
    Path("images/3.png").unlink()
    assert batch("images", "w1 w2", "-q", "--overwrite").err == ""
    assert batch("image", "w1 w2", "-q").err.startswith("Error: ")


def test_many_failures_are_counted(batch: Run) -> None:
    for number in range(14):
        Path("images", f"{number}.png").write_bytes(b"no picture %d" % number)
    Path("images", "0\x1b[2J\x9b\u202eb.png").write_bytes(b"no picture")
    ran = batch("images", "w1 w2", "--read-timeout", "30", "--readers", "1")
    assert ran.err.count("failed: ") == 10
    assert "Further failures are counted" in ran.err
    assert "0 answered, 15 failed (15 BadImage)" in ran.err
    assert "failed: 0␛[2J��b.png: " in ran.err
    assert not {*"\x1b\x9b\u202e"} & {*ran.err}


def test_the_embedded_model_says_what_it_is(mvw: Run) -> None:
    ran = mvw("batch", "images", "How many red circles are there?", "--limit", "1")
    assert ran.code == 0
    assert "No profile or model is named" in ran.err
    assert records()["0.png"]["stages"] or records()["0.png"]["text"]


LOST = "CUDA error: device-side assert triggered"


def test_a_lost_accelerator_costs_no_record(batch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Slots.step, count()

    def fail(slots: Slots) -> Any:
        if next(calls) == 10:
            raise torch.AcceleratorError(f"{LOST}\nCompile with")
        return step(slots)

    monkeypatch.setattr(Slots, "step", fail)
    ran = batch("images", "w1 w2", "--slots", "1", "-o", "out.csv")
    assert ran.code == ExitCode.FAILURE
    told = f"The accelerator has failed.*\n  {LOST}; 2 records were written, none is lost"
    assert re.search(told, ran.err) and "2 answered, 2 left" in ran.err
    parse_hint(ran.err.splitlines()[-1].removeprefix("Hint: "))
    assert [row["status"] for row in table_rows(Path("out.csv"))] == ["ok", "ok"]
    assert len(records("out.csv.jsonl")) == 2


def test_too_little_memory_fails_items_and_says_so(batch: Run) -> None:
    ran = batch("images", "w1 w2", "--kv-memory", "10k", "--limit", "1")
    assert ran.code == ExitCode.ITEMS_FAILED
    error = records()["0.png"]["error"]
    assert (error["type"], "10.0 KiB" in error["cause"]) == ("OutOfMemory", True)
    parse_hint(error["hint"])


def test_no_input_is_written_over_by_whatever_name(batch: Run) -> None:
    """Not with --overwrite either, which a hint must not suggest."""
    Path("q.jsonl").write_text('{"image": "images/0.png", "question": "w1"}\n')
    Path("also.jsonl").symlink_to("q.jsonl")
    before = Path("q.jsonl").read_bytes()
    for output in ("q.jsonl", "./images/../q.jsonl", "also.jsonl"):
        ran = batch("--questions", "q.jsonl", "-o", output, "--overwrite")
        assert ran.code == ExitCode.USAGE
        assert "would be written over" in ran.err and "--overwrite" not in ran.err
    assert Path("q.jsonl").read_bytes() == before


def embedded_questions(kind: str) -> str:
    """A file of questions about images that lie in it, most of them damaged; and their base64."""
    whole, svg = noise(1, (40, 40)), b"<svg xmlns='http://www.w3.org/2000/svg'>" + b" " * 200
    texts = [
        b64encode(whole).decode(),
        f"data:image/png;base64,{b64encode(whole).decode()}",
        b64encode(whole[:900]).decode(),  # cut
        b64encode(whole).decode()[:-7] + "!!!!",
        f"data:image/png;base64,{b64encode(whole).decode()}@",
        b64encode(b"no image at all " * 40).decode(),
        b64encode(svg).decode(),
        "data:image/svg+xml,%3Csvg%20xmlns=" + "%20" * 40,
        "data:image/png;base64,",
    ]
    rows = [{"image": text, "question": "w1 w2"} for text in texts]
    rows.append({"image": texts[1], "question": "w1 w2", "id": texts[1]})
    name = f"q.{kind}"
    if kind == "jsonl":
        rows.append({"image": ["images/0.png", texts[2]], "question": "w1"})  # type: ignore[dict-item]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        columns = {key: [row.get(key) for row in rows] for key in ("image", "question", "id")}
        write_parquet(Path(name), pa.table(columns))
    else:
        with open(name, "w", newline="") as file:
            writer = csv.DictWriter(
                file, ["image", "question", "id"], delimiter="\t" if kind == "tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return name


def pieces_of_base64(text: str) -> list[str]:
    return re.findall(r"data:[^ ]*|[A-Za-z0-9+/]{70,}", text)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_no_message_and_no_record_holds_an_image(batch: Run, kind: str) -> None:
    name = embedded_questions(kind)
    asked = [name] if kind == "parquet" else ["--questions", name]
    ran = batch(*asked, "-o", "r.csv", "--json")
    assert ran.code == ExitCode.ITEMS_FAILED, ran.err
    kept = records("r.csv.jsonl")
    statuses = [record["status"] for record in kept.values()]
    assert statuses.count("ok") == 3 and statuses.count("failed") == len(statuses) - 3
    for record in kept.values():
        if record["status"] == "failed":
            assert record["error"]["type"] == "BadImage" and record["error"]["cause"]
    for text in (ran.out, ran.err, *(path.read_text() for path in Path().glob("r.csv*"))):
        hashes = {image["sha256"] for record in kept.values() for image in record["images"]}
        for one in hashes - {None}:
            text = text.replace(one, "")
        assert pieces_of_base64(text) == []


@pytest.mark.parametrize(
    "words",
    [
        ("infer", "IMAGE", "w1"),
        ("infer", "images/0.png", "w1", "--image", "IMAGE"),
        ("batch", "IMAGE", "w1"),
        ("batch", "--questions", "IMAGE"),
        ("profile", "IMAGE"),
        ("profile", "--images", "IMAGE"),
        ("calibrate", "vtw", "--images", "IMAGE"),
        ("show", "--image", "IMAGE"),
    ],
)
def test_an_image_in_the_place_of_a_path_is_refused_unprinted(
    mvw: Run, words: tuple[str, ...]
) -> None:
    image = b64encode(noise(1, (40, 40))).decode()
    for text in (image, f"data:image/png;base64,{image}"):
        ran = mvw(*(text if word == "IMAGE" else word for word in words))
        assert ran.code == 2 and "An image is given as text" in ran.err
        assert pieces_of_base64(ran.out + ran.err) == []


def test_paths_on_standard_input_are_no_images(batch: Run) -> None:
    image = b64encode(noise(1, (40, 40)))
    ran = batch("-", "w1", stdin=b"images/0.png\n" + image + b"\n")
    assert ran.code == 2 and "An image is given as text" in ran.err
    assert pieces_of_base64(ran.out + ran.err) == [] and not Path("stdin.results.jsonl").exists()


# --- a run that can't succeed ---

MANY = 25
ONE_READER = ("--readers", "1")
"""With several, the first items may be known to have failed after later ones."""


def put_broken(count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        Path("images", f"{number:02}.png").write_bytes(b"no picture" + bytes(number))


@pytest.fixture
def broken() -> None:
    """Nothing but files that are no pictures."""
    for path in Path("images").iterdir():
        path.unlink()
    put_broken(MANY)


class Threads:
    """A launcher whose workers are threads, which takes less time than processes."""

    def __init__(self, job: worker.Job, workers: int) -> None:
        self._job, self._workers = job, workers
        self._remotes: dict[int, worker.RemoteWorker] = {}
        self._messages: SimpleQueue[tuple[int, worker.Message]] = SimpleQueue()

    def open(self) -> list[str]:
        return [f"worker {number}" for number in range(self._workers)]

    def start(self, number: int) -> None:
        loaded = threading.Event()

        def send(message: worker.Message) -> None:
            self._messages.put((number, message))
            loaded.set()

        remote = self._remotes[number] = worker.RemoteWorker(self._job, send)
        threading.Thread(target=remote.work, daemon=True).start()
        assert loaded.wait(30)

    def send(self, number: int, order: worker.Message) -> None:
        self._remotes[number].deliver(order)

    def receive(self, timeout_s: float) -> list[tuple[int, worker.Message]]:
        with suppress(Empty):
            return [self._messages.get(timeout=timeout_s)]
        return []

    def stop(self, number: int) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("workers", [1, 2])
def test_items_that_all_fail_alike_end_the_run(
    workers: int, batch: Run, broken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvw_cli.batch.workers.local.LocalProcesses", Threads)
    put_broken(200, MANY)
    words = ("images", "w1 w2", "--device", "cpu", "--workers", str(workers), *ONE_READER)
    ran = batch(*words, "--json")
    assert ran.code == ExitCode.ITEMS_FAILED
    message, cause, hint = ran.err.splitlines()[-3:]
    assert re.fullmatch(
        r"Error: The first 20 items have failed alike, and no more was begun: "
        r"The file images/\d\d\.png is not an image",
        message,
    )
    assert cause.startswith("  neither PNG") and cause.endswith(
        "--keep-going goes on with the others"
    )
    assert re.fullmatch(r"Hint: file images/\d\d\.png", hint)
    failed = len(records())
    assert 20 <= failed < 200 and (failed == 20 or workers > 1)
    summary = json.loads(ran.out)
    assert (summary["failed"], summary["remaining"]) == (failed, 225 - failed)
    assert "--keep-going" in summary["go_on"] and "--retry-failed" in summary["retry"]
    for command in (summary["go_on"], summary["retry"]):
        parse_hint(command)


def test_a_run_of_failures_goes_on_where_it_is_told_to(batch: Run, broken: None) -> None:
    assert batch("images", "w1 w2", *ONE_READER).code == ExitCode.ITEMS_FAILED
    assert len(records()) == 20
    # Those that have failed are left alone, and the five others are fewer than twenty.
    ran = batch("images", "w1 w2", *ONE_READER)
    assert ran.code == ExitCode.ITEMS_FAILED and "Error: " not in ran.err
    assert len(records()) == MANY
    # The cause is the same: all are tried again only where that is wanted.
    assert "The first 20 items" in batch("images", "w1 w2", *ONE_READER, "--retry-failed").err
    ran = batch("images", "w1 w2", *ONE_READER, "--overwrite", "--keep-going")
    assert ran.code == ExitCode.ITEMS_FAILED and "Error: " not in ran.err
    assert len(records()) == MANY


def test_what_stopped_a_run_is_put_right_by_its_hint(batch: Run) -> None:
    put("images", *range(MANY))
    ran = batch(
        "images", "w1 w2", *ONE_READER, "--set", "images.max_decoded_pixels=40", "-o", "a.csv"
    )
    message, cause, hint = ran.err.splitlines()[-3:]
    assert "is too large to decode" in message and "48 pixels" in cause
    assert (ran.code, len(records("a.csv.jsonl"))) == (ExitCode.ITEMS_FAILED, 20)
    assert len(Path("a.csv").read_text().splitlines()) == 21
    words = shlex.split(hint.removeprefix("Hint: "))
    assert words[:2] == ["mvw", "batch"] and words[-1] == "--retry-failed"
    assert batch(*words[2:], model=False).code == 0
    assert len(texts("a.csv.jsonl")) == MANY


@pytest.mark.parametrize("case", ["an answer", "two causes", "few"])
def test_an_ordinary_run_is_not_ended(case: str, batch: Run, broken: None) -> None:
    match case:
        case "an answer":
            put("images", 7)
            Path("images/7.png").rename("images/07.png")
        case "two causes":
            Path("images/03.png").write_bytes(b"%PDF-1.7")
        case "few":
            for number in range(19, MANY):
                Path(f"images/{number:02}.png").unlink()
    ran = batch("images", "w1 w2", "--readers", "1")
    assert ran.code == ExitCode.ITEMS_FAILED and "Error: " not in ran.err
    assert len(records()) == len(list(Path("images").iterdir()))


def test_what_decodes_is_finished_when_a_run_is_ended(
    batch: Run, broken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a worker that began the last item before the first twenty had failed."""

    class Scripted:
        state = State()
        revision = None

        def __enter__(self) -> Scripted:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def records(self, items: Any, *, run: str, draining: Callable[[], bool]) -> Any:
            *first, last = items
            for one in first:
                error = BadImage(f"{one.images[0].path} is odd")
                yield failure(one, [], error, run=run, attempts=1, timings={})
                if draining():
                    break
            begun = ok(last.id)
            yield {**begun, "run": run, "question": last.question}

    monkeypatch.setattr("mvw_cli.cli.batch.run.make_executor", lambda task, profile: Scripted())
    ran = batch("images", "w1 w2")
    assert ran.code == ExitCode.ITEMS_FAILED and "The first 20 items" in ran.err
    found = [record["status"] for record in records().values()]
    assert found == ["failed"] * 20 + ["ok"]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (("x/a.png", "did you mean a.jpg?"), ("x/b.png", "did you mean b.jpg?"), True),
        (("x/a/1.png", "no folder x/a"), ("x/b/1.png", "no folder x/b"), True),
        (("a.png", "it is cut (3 bytes)"), ("b.png", "it is cut (40 bytes)"), True),
        (("a.png", "<Image at 0x7F03DB>"), ("b.png", "<Image at 0x7f1c20>"), True),
        (("a.png", "it is a PDF"), ("b.png", "it is an SVG drawing"), False),
        (("a.png", "no"), ("b.png", None), False),
    ],
)
def test_causes_are_alike_without_the_items_own_name(one: Any, other: Any, alike: bool) -> None:
    def cause(path: str, told: str | None) -> str:
        item = Item("1", (ImageRef(path),), "?")
        error = BadImage(f"There is no image {path}", cause=told)
        return cause_of(failure(item, [], error, run="", attempts=1, timings={}))

    assert (cause(*one) == cause(*other)) == alike


# --- files of several pictures, and prompts beyond the context ---


def test_remarks_are_in_the_records_and_counted(batch: Run) -> None:
    first, *others = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    first.save("images/4.gif", save_all=True, append_images=others)
    first.save("images/5.tiff", save_all=True, append_images=others, big_tiff=True)
    first.save("images/6.jpg", "MPO", save_all=True, append_images=others)
    first.convert("CMYK").save("images/7.jpg", progressive=True)
    ran = batch("images", "w1 w2", "--json")
    assert ran.code == 0, ran.err
    told = {id: record["remarks"] for id, record in records().items() if record["remarks"]}
    assert told == {
        "4.gif": ["images/4.gif holds several frames: the first was read."],
        "5.tiff": ["images/5.tiff holds several pages: the first was read."],
    }
    summary = json.loads(ran.out)
    assert summary["with_remarks"] == 2
    assert summary["first_remark"] in [f"{id}: {remarks[0]}" for id, remarks in told.items()]
    assert f"on 2 answers, the first {summary['first_remark']}" in ran.err


def test_a_dry_run_tells_prompts_beyond_the_context(batch: Run, unloadable: None) -> None:
    """2,048 positions: 16 vision tokens, `<s>` and 2,031 words are as many, and one is too many."""
    rows = [("0.png", 2030), ("1.png", 2031), ("2.png", 2500), ("3.png", 3)]
    lines = [{"image": f"images/{name}", "question": "w1 " * count} for name, count in rows]
    Path("q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = batch("--questions", "q.jsonl", "--dry-run")
    assert ran.code == 0, ran.err
    [told] = [line for line in ran.out.splitlines() if line.startswith("prompts too long")]
    assert "2 of 4 items" in told and "2,048 tokens, the model was not trained for that" in told
    plan = json.loads(batch("--questions", "q.jsonl", "--dry-run", "--json").out)
    assert (plan["context_tokens"], plan["prompts_too_long"]) == (2048, 2)
    assert (plan["first_too_long"], plan["prompts_refused"]) == ("images/1.png", False)
