"""The work list: each item once, in order, in little memory; and what of it is left to do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from making import noise
from peak_memory import run_measured
from records import QUESTION, answered, failed, fingerprint, image, item
from waiting import until

from mvw_cli.batch.items import ImageRef, Item, shard_of
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store import worklist as module
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.record import clean
from mvw_cli.batch.store.worklist import WorkList, pending
from mvw_cli.errors import ExitCode, UsageProblem


def items(count: int) -> Iterator[Item]:
    return (item(f"{n}.png") for n in range(count))


def test_items_come_back_whole_and_in_order() -> None:
    listed = [
        Item("b", (ImageRef("b.png"), ImageRef("t.parquet", 3, "image")), "Größer?\n", "yes"),
        Item("a", (ImageRef("a.png"),), "What?", None),
        *items(3),
    ]
    worklist = WorkList(iter(listed))
    assert list(worklist) == listed
    assert len(worklist) == len(listed)
    assert list(worklist) == listed  # a second time


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f.png")
    (tmp_path / name).touch()
    [found] = WorkList(list_items(Source((str(tmp_path),), "What?")))
    assert found.id == name and os.path.exists(found.images[0].path)
    odd = Item(name, (ImageRef(name),), "half a pair \ud83d", "\udc80")
    worklist = WorkList([odd])
    assert list(worklist) == [odd]
    assert clean(name) in worklist  # as a record has it


def test_a_limit_stops_the_listing() -> None:
    listing = items(100)
    worklist = WorkList(listing, limit=3)
    assert [one.id for one in worklist] == ["0.png", "1.png", "2.png"]
    assert "3.png" not in worklist
    assert next(listing).id == "3.png"


@pytest.mark.parametrize("limit", [None, 57])
def test_shards_divide_the_list(limit: int | None) -> None:
    parts = []
    for i in range(3):
        worklist = WorkList(items(100), limit=limit, shard=(i, 3))
        parts.append([one.id for one in worklist])
        assert len(worklist) == len(parts[-1])
        assert "0.png" in worklist and "56.png" in worklist  # whoever does them
    whole = WorkList(items(100), limit=limit)
    assert sorted(id for part in parts for id in part) == sorted(one.id for one in whole)
    assert all(len(part) > 8 for part in parts)


def test_the_shard_of_an_item_is_the_same_everywhere() -> None:
    digest = 0x0F25CC56A5248ACAFF1DEA34989E04C0A94A321DA43E1F806EB49B8551432759  # by sha256sum
    assert shard_of("0.png", 7) == digest % 7
    assert shard_of("anything", 1) == 0


@pytest.mark.parametrize("shard", [None, (shard_of("7", 4), 4)])
def test_an_id_used_for_two_items_is_refused(shard: tuple[int, int] | None) -> None:
    one = Item("7", (ImageRef("a.parquet", 0, "image"),), "What?")
    other = Item("7", (ImageRef("b.parquet", 5, "image"),), "What?")
    with pytest.raises(UsageProblem) as caught:
        WorkList([one, other], shard=shard)
    assert caught.value.message == "Two items have the id 7"
    assert caught.value.cause == "one is a.parquet#image/0, the other b.parquet#image/5"
    assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(UsageProblem):
        WorkList([item("7", path="x.png"), item("7", "Why?", path="x.png")])


_MEMORY = """
from records import ok, fingerprint
from mvw_cli.batch.items import ImageRef, Item, item_key
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.record import dumps
from mvw_cli.batch.store.worklist import WorkList

def items(count):
    for n in range(count):
        name = f"folder/{n:060}.png"
        yield Item(name, (ImageRef("images/" + name),), f"How many circles are there in {n}?")

path, record = Path(sys.argv[1]), ok("a")
with path.open("wb") as file:
    for item in items(100_000):
        key = item_key([item.id], item.question)
        file.write(dumps(record | {"id": item.id, "question": item.question, "key": key}))
before = peak_kib()
worklist = WorkList(items(100_000))
with RecordLog(path, fingerprint(), listed=worklist) as log:
    assert log.done == sum(log.is_done(item, [item.id]) for item in worklist) == len(worklist)
"""


def test_memory_over_100_000_items(tmp_path: Path) -> None:
    """Names of 70 bytes, twice, a question of its own, and a record of each."""
    assert run_measured(_MEMORY, tmp_path / "log.jsonl") < 110 * 1024, "KiB"


# What is left to do: by content, by id, and without waiting for what hangs


class Work:
    """Files, the list of them, and a log."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.skipped = folder, folder / "log.jsonl", 0

    def put(self, *names: str) -> None:
        for name in names:
            (self.folder / name).write_bytes(noise(int(name.split(".")[0])))

    def items(self, *names: str) -> list[Item]:
        return [Item(n, (ImageRef(str(self.folder / n)),), QUESTION) for n in names]

    def answer(self, *items: Item) -> None:
        """Record an answer to each, with the content that its files have now."""
        with RecordLog(self.log, fingerprint()) as log:
            for one in items:
                files = [Path(image.path) for image in one.images]
                images = [image(file.read_bytes(), str(file)) for file in files]
                log.append(answered(one, images))

    def record(self, *names: str) -> None:
        self.answer(*self.items(*names))

    def pending(self, log: RecordLog, *items: Item, **options: Any) -> Iterator[Item]:
        self.skipped = 0

        def skip() -> None:
            self.skipped += 1

        given = {"threads": 2, "timeout_s": 5.0, **options}
        return pending(WorkList(items), log, skipped=skip, **given)

    def left(self, *items: Item, **options: Any) -> list[str]:
        with RecordLog(self.log, fingerprint(), listed=WorkList(items)) as log:
            return [item.id for item in self.pending(log, *items, **options)]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    until(lambda: all(t.name != "mvw-hash" for t in threading.enumerate()))


NAMES = [f"{number}.png" for number in range(20)]


def test_a_new_log_leaves_everything_and_no_file_is_looked_at(work: Work) -> None:
    assert work.left(*work.items(*NAMES)) == NAMES  # none of them exists
    assert work.skipped == 0


def test_what_has_its_record_is_skipped_in_any_order(work: Work) -> None:
    work.put(*NAMES)
    work.record("3.png", "17.png", "0.png")
    left = [name for name in NAMES if name not in ("0.png", "3.png", "17.png")]
    assert work.left(*work.items(*NAMES)) == left
    assert work.skipped == 3
    assert work.left(*work.items(*reversed(NAMES)), threads=1) == [*reversed(left)]
    work.record(*left)
    assert work.left(*work.items(*NAMES)) == []
    assert work.skipped == len(NAMES)


ODD = os.fsdecode(b"a\xff.png")


@pytest.mark.parametrize(
    ("recorded", "listed", "left"),
    [
        pytest.param("a:cat b:dog", "a:cat b:dog c:cow", ["c"], id="a grown folder"),
        pytest.param("a:cat b:dog", "a:cow b:dog", ["a"], id="a changed file"),
        pytest.param("a:cat", "a:cat gone", ["gone"], id="a missing file"),
        pytest.param("a:cat", "a:cat b:cat:Why?", ["b"], id="another question"),
        pytest.param("a:cat", "a:cat:Why?", ["a"], id="another question under its name"),
        pytest.param("old:cat", "new:cat copy:cat", ["copy"], id="a renamed file claims it once"),
        pytest.param("a:cat", "a:cat copy:cat", ["copy"], id="copies need a record each"),
        pytest.param("a:cat b:cat", "c:cat a:cat b:cat", ["c"], id="a copy waits for its turn"),
        pytest.param(f"{ODD}:cat", f"copy:cat {ODD}:cat", ["copy"], id="a name that is not UTF-8"),
        pytest.param("a:cat+dog", "a:cat+dog b:cat+cow", ["b"], id="the first image is shared"),
        pytest.param("a:cat+dog", "b:cat+cow", ["b"], id="a shared image is no new name"),
        pytest.param("a:cat+dog b:cat+cow", "b:cat+cow a:cat+dog", [], id="each has its record"),
        pytest.param("a:cat+dog", "a:cat+cow", ["a"], id="the second image has changed"),
        pytest.param("a:cat+dog", "new:cat+dog", [], id="a renamed pair"),
        pytest.param("a:cat+dog", "b:dog+cat c:cat", ["b", "c"], id="another order, or one alone"),
        pytest.param("a:cat+dog", "a:cat+dog:Why?", ["a"], id="another question about a pair"),
    ],
)
def test_items_are_known_by_content_question_and_id(
    work: Work, recorded: str, listed: str, left: list[str]
) -> None:
    """An item is written `id:content+content:question`; without a content, its file is missing.

    Whatever of an item is left out of its key is an answer that silently goes missing.
    """

    def made(text: str) -> Iterator[Item]:
        for one in text.split():
            id, contents, question = (*one.split(":"), "", "")[:3]
            images = [
                ImageRef(str(work.folder / f"{id}-{n}")) for n in range(contents.count("+") + 1)
            ]
            for ref, content in zip(images, filter(None, contents.split("+")), strict=False):
                Path(ref.path).write_text(content)
            yield Item(id, tuple(images), question or QUESTION)

    work.answer(*made(recorded))
    assert work.left(*made(listed)) == left


def test_what_failed_is_skipped_without_being_read(work: Work) -> None:
    work.put("1.png")
    work.record("1.png")
    with RecordLog(work.log, fingerprint()) as log:
        for name in ("7.png", "8.png"):
            log.append(failed(name))
    os.mkfifo(work.folder / "7.png")  # to open it would hang
    began = time.monotonic()
    assert work.left(*work.items("1.png", "7.png", "8.png"), timeout_s=30) == []
    assert work.skipped == 3
    assert time.monotonic() - began < 10


def test_hashing_that_hangs_is_given_up(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that hangs takes a thread with it; there are always others for the rest."""
    released, hash_images = threading.Event(), module.hash_images

    def slow(item: Item) -> list[str]:
        if item.id in ("2.png", "3.png", "5.png"):
            released.wait(20)
        return hash_images(item)

    work.put(*NAMES)
    work.record(*NAMES[:10])
    monkeypatch.setattr(module, "hash_images", slow)
    began = time.monotonic()
    left = work.left(*work.items(*NAMES), threads=2, timeout_s=0.3)
    assert time.monotonic() - began < 10
    released.set()
    assert left == ["2.png", "3.png", "5.png", *NAMES[10:]]
    assert work.skipped == 7
