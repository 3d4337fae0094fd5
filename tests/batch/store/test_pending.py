"""What is left to do of a work list: by content, by id, and without waiting for what hangs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from making import noise
from records import QUESTION, answered, failed, fingerprint, image

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.store.export import export
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.worklist import WorkList, pending


class Work:
    """Files, the list of them, and a log."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.skipped = folder, folder / "log.jsonl", 0

    def put(self, *names: str, content: bytes | None = None) -> None:
        for name in names:
            (self.folder / name).write_bytes(content or noise(int(name.split(".")[0])))

    def items(self, *names: str, question: str = QUESTION) -> list[Item]:
        return [Item(n, (ImageRef(str(self.folder / n)),), question) for n in names]

    def record(self, *names: str, **more: Any) -> None:
        """Answer these, with the content that their files have now."""
        self.answer(*self.items(*names, **more))

    def answer(self, *items: Item) -> None:
        with RecordLog(self.log, fingerprint()) as log:
            for one in items:
                files = [Path(image.path) for image in one.images]
                images = [image(file.read_bytes(), str(file)) for file in files]
                log.append(answered(one, images))

    def fail(self, *names: str) -> None:
        with RecordLog(self.log, fingerprint()) as log:
            for name in names:
                log.append(failed(name))

    def left(self, *items: Item, threads: int = 2, timeout_s: float = 5.0) -> list[str]:
        self.skipped = 0

        def skip() -> None:
            self.skipped += 1

        worklist = WorkList(items)
        with RecordLog(self.log, fingerprint()) as log:
            found = pending(worklist, log, threads=threads, timeout_s=timeout_s, skipped=skip)
            return [item.id for item in found]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(t.name == "mvw-hash" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is left"
        time.sleep(0.01)


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


def test_a_grown_folder_and_a_renamed_file(work: Work) -> None:
    work.put("1.png", "2.png")
    work.record("1.png", "2.png")
    (work.folder / "1.png").rename(work.folder / "9.png")
    work.put("3.png")
    assert work.left(*work.items("2.png", "3.png", "9.png")) == ["3.png"]


def test_a_changed_file_is_asked_about_again(work: Work) -> None:
    work.put("1.png", "2.png")
    work.record("1.png", "2.png")
    work.put("1.png", content=noise(77))
    assert work.left(*work.items("1.png", "2.png")) == ["1.png"]


def test_another_question_is_another_item(work: Work) -> None:
    work.put("1.png")
    work.record("1.png")
    other = Item("1.png#2", work.items("1.png")[0].images, "And how many squares?")
    assert work.left(*work.items("1.png"), other) == ["1.png#2"]


def test_copies_need_a_record_each(work: Work) -> None:
    work.put("1.png")
    work.put("2.png", content=noise(1))
    work.record("1.png")
    assert work.left(*work.items("1.png", "2.png")) == ["2.png"]


def test_what_failed_is_skipped_without_being_read(work: Work) -> None:
    work.put("1.png")
    work.record("1.png")
    work.fail("7.png", "8.png")
    os.mkfifo(work.folder / "7.png")  # to open it would hang
    began = time.monotonic()
    assert work.left(*work.items("1.png", "7.png", "8.png"), timeout_s=30) == []
    assert work.skipped == 3
    assert time.monotonic() - began < 10


def test_a_missing_file_is_left_to_whoever_reads_it(work: Work) -> None:
    work.put("1.png")
    work.record("1.png")
    assert work.left(*work.items("1.png", "gone.png")) == ["gone.png"]


def test_hashing_that_hangs_is_given_up(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that hangs takes a thread with it; there are always others for the rest."""
    from mvw_cli.batch.store import worklist as module

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


def test_files_are_hashed_ahead_but_not_all_at_once(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mvw_cli.batch.store import worklist as module

    hashed: list[str] = []
    hash_images = module.hash_images

    def noted(item: Item) -> list[str]:
        hashed.append(item.id)
        return hash_images(item)

    monkeypatch.setattr(module, "hash_images", noted)
    names = [f"{number}.png" for number in range(60)]
    work.put(*names)
    work.record("59.png")
    worklist = WorkList(work.items(*names))
    with RecordLog(work.log, fingerprint()) as log:
        found = pending(worklist, log, threads=2, timeout_s=5, skipped=lambda: None)
        assert next(found).id == "0.png"
        time.sleep(0.2)
        assert 1 <= len(hashed) <= 8
        assert [item.id for item in found] == names[1:59]
        assert sorted(hashed) == sorted(names)


def test_items_that_share_their_first_image_are_different_items(work: Work) -> None:
    """Whatever of an item is left out of its key is an answer that silently goes missing."""
    work.put("1.png", "2.png", "3.png")
    first, second, third = (one.images[0] for one in work.items("1.png", "2.png", "3.png"))
    one, two = Item("one", (first, second), QUESTION), Item("two", (first, third), QUESTION)
    work.answer(one)
    assert work.left(one, two) == ["two"]
    assert work.left(two) == ["two"]  # "one" is not listed any more, and "two" is no new name of it
    work.answer(two)
    assert work.left(one, two) == []
    table = work.folder / "table.csv"
    assert export(work.log, table) == 2
    work.put("2.png", content=noise(77))
    assert work.left(one, two) == ["one"]


def test_an_image_of_several_needs_all_of_its_hashes(work: Work) -> None:
    work.put("1.png", "2.png")
    images = tuple(one.images[0] for one in work.items("1.png", "2.png"))
    pair = Item("pair", images, QUESTION)
    work.answer(pair)
    assert work.left(pair) == []
    assert work.left(Item("renamed", images, QUESTION)) == []
    assert work.left(Item("swapped", images[::-1], QUESTION)) == ["swapped"]
    assert work.left(Item("alone", images[:1], QUESTION)) == ["alone"]
    assert work.left(Item("pair", images, "Another?")) == ["pair"]
