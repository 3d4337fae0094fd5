"""Reading ahead: order, bounds, what hangs or is broken, and that nothing stays behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from making import files
from waiting import until

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.serve import prefetch as module
from mvw_cli.batch.serve.prefetch import Encoded, Prefetcher, Ready, Unreadable
from mvw_cli.batch.source import reading
from mvw_cli.errors import BadImage
from mvw_cli.images.reading import ImageFile

TINY = 3 * 8 * 6
"""Bytes of the pixels of one of the images below."""
Encode = Callable[[Item, list[ImageFile]], Any]


def sized(nbytes: int = 0) -> Any:
    """What stands for an encoded item of so many bytes."""
    return SimpleNamespace(nbytes=nbytes)


def listed(*paths: Path | str) -> list[Item]:
    return [Item(Path(path).name, (ImageRef(str(path)),), "?") for path in paths]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mvw-reader"]


@pytest.fixture(autouse=True)
def no_reader_left() -> Iterator[None]:
    yield
    until(lambda: not readers())


@contextmanager
def prefetching(
    items: Iterable[Item], encode: Encode = lambda item, images: sized(), **options: Any
) -> Iterator[Prefetcher]:
    given: dict[str, Any] = {"threads": 1, "ahead": 4, "ahead_bytes": 2**30, "timeout_s": 60.0}
    with Prefetcher(iter(items), encode=encode, **{"max_pixels": None, **given, **options}) as feed:
        yield feed


def take_one(feed: Prefetcher, most_s: float = 10.0) -> Ready | Unreadable:
    end = time.monotonic() + most_s
    while (result := feed.take(wait=True)) is None:
        assert time.monotonic() < end
    return result


def take_all(feed: Prefetcher) -> list[Ready | Unreadable]:
    found = []
    while not feed.exhausted:
        found += filter(None, [feed.take(wait=True)])
    assert feed.take(wait=True) is None
    return found


def unreadable(result: Ready | Unreadable) -> Unreadable:
    assert isinstance(result, Unreadable)
    return result


def ready(result: Ready | Unreadable) -> Ready:
    assert isinstance(result, Ready)
    return result


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, no 0.png is read."""
    opened, real = threading.Event(), reading.read_image

    def slow(image: ImageRef, *limits: int | None) -> ImageFile:
        if image.path.endswith("/0.png"):
            assert opened.wait(10)
        return real(image, *limits)

    monkeypatch.setattr(reading, "read_image", slow)
    return opened


# What comes out


def test_one_reader_keeps_the_order_of_items_and_of_their_images(tmp_path: Path) -> None:
    with prefetching([]) as feed:
        assert take_all(feed) == []
    items = listed(*files(tmp_path / "images", 12, size=(40, 30)))
    items.append(Item("pair", (*items[7].images, *items[3].images), "?"))
    with prefetching(items, lambda item, images: sized(images[0].size[0]), max_pixels=300) as feed:
        found = [ready(result) for result in take_all(feed)]
    assert [result.item for result in found] == items
    assert {result.encoded.nbytes for result in found if result.encoded} == {20}
    assert [[image.path for image in result.images] for result in found] == [
        [ref.path for ref in item.images] for item in items
    ]
    assert all(result.read_ms > 0 and result.preprocess_ms >= 0 for result in found)


def test_a_slow_item_holds_up_no_other(tmp_path: Path, gate: threading.Event) -> None:
    with prefetching(listed(*files(tmp_path / "images", 6)), threads=2) as feed:
        first = [take_one(feed).item.id for _ in range(5)]
        assert first == [f"{number}.png" for number in range(1, 6)]
        assert feed.take(wait=False) is None
        assert not feed.exhausted
        gate.set()
        assert [result.item.id for result in take_all(feed)] == ["0.png"]


# What is ahead is bounded


def started(items: Iterable[Item]) -> tuple[Iterator[Item], list[str]]:
    """The items, and the names of those that were asked for."""
    asked: list[str] = []

    def noted() -> Iterator[Item]:
        for item in items:
            asked.append(item.id)
            yield item

    return noted(), asked


@pytest.mark.parametrize(
    ("options", "encoded_bytes", "most"),
    [
        ({"ahead": 5}, 0, 5),
        ({"ahead": 5, "threads": 3}, 0, 5),
        ({"ahead": 10, "ahead_bytes": 3 * TINY}, 0, 3),
        ({"ahead": 9, "ahead_bytes": 2 * (1000 + TINY)}, 1000, 2),
        ({"ahead": 9, "ahead_bytes": 1}, 0, 1),  # an item larger than all bytes is read alone
    ],
)
def test_no_more_items_and_bytes_are_ahead_than_allowed(
    tmp_path: Path, options: dict[str, int], encoded_bytes: int, most: int
) -> None:
    items, asked = started(listed(*files(tmp_path / "images", 20)))
    with prefetching(items, lambda item, images: sized(encoded_bytes), **options) as feed:
        for taken in range(2):
            until(lambda: len(feed._ready) == most)
            time.sleep(0.05)
            assert (len(feed._ready), len(asked)) == (most, most + taken)
            assert feed.take(wait=False) is not None
        assert len(take_all(feed)) == 18


def test_the_bytes_of_a_request_are_those_of_its_tensors() -> None:
    inputs = {"input_ids": sized(8), "pixel_values": sized(500), "names": ["a"]}
    request: Any = SimpleNamespace(inputs=inputs)
    assert Encoded(request, []).nbytes == 508


# What goes wrong


def test_what_fails_is_one_failure_and_takes_no_room_for_ever(tmp_path: Path) -> None:
    paths = files(tmp_path / "images", 3)
    items = listed(paths[0], *(f"{tmp_path}/gone-{number}.png" for number in range(50)), *paths[1:])
    no = ValueError("no")

    def encode(item: Item, images: list[ImageFile]) -> Any:
        if item.id == "1.png":
            raise no
        return sized()

    with prefetching(items, encode, ahead=2, ahead_bytes=1) as feed:
        zero, *gone, one, two = take_all(feed)
    assert (ready(zero).item, ready(two).item) == (items[0], items[-1])
    assert len([unreadable(result) for result in gone]) == 50
    failure = unreadable(one)
    assert failure.error is no
    assert [image.path for image in failure.images] == [str(paths[1])]


def test_several_readers_bring_every_item_once_and_encode_one_at_a_time(tmp_path: Path) -> None:
    items = listed(*files(tmp_path / "images", 20))
    at_once = [0, 0]

    def encode(item: Item, images: list[ImageFile]) -> Any:
        at_once[0] += 1
        at_once[1] = max(at_once)
        time.sleep(0.002)
        at_once[0] -= 1
        return sized()

    with prefetching(items, encode, threads=4, ahead=8) as feed:
        found = [ready(result).item.id for result in take_all(feed)]
    assert sorted(found) == sorted(item.id for item in items)
    assert at_once == [0, 1]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_listing_that_fails_is_told_after_what_came_before(tmp_path: Path, threads: int) -> None:
    items = listed(*files(tmp_path / "images", 3))

    def failing() -> Iterator[Item]:
        yield from items
        raise BadImage("the list has ended too early")

    with prefetching(failing(), threads=threads) as feed:
        found = sorted(take_one(feed).item.id for _ in items)
        assert found == ["0.png", "1.png", "2.png"]
        with pytest.raises(BadImage, match="too early"):
            take_one(feed)


def test_a_thread_that_is_ended_ends_the_run_and_not_in_silence(tmp_path: Path) -> None:
    def encode(item: Item, images: list[ImageFile]) -> Any:
        raise SystemExit(3)

    items = listed(*files(tmp_path / "images", 3))
    with prefetching(items, encode) as feed, pytest.raises(SystemExit):
        take_one(feed)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path whose reading blocks in the kernel until the test is over."""
    path = tmp_path / "hangs"
    os.mkfifo(path)
    real = reading.read_image

    def read(image: ImageRef, *limits: int | None) -> ImageFile:
        if image.path == str(path):
            os.close(os.open(path, os.O_RDONLY))
        return real(image, *limits)

    monkeypatch.setattr(reading, "read_image", read)
    yield path

    def released() -> bool:
        with suppress(OSError):  # nobody hangs on it just now
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return not readers()

    until(released)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_hangs_is_given_up_and_the_others_go_on(
    tmp_path: Path, hanging: Path, threads: int
) -> None:
    paths = files(tmp_path / "images", 6)
    items = listed(paths[0], hanging, *paths[1:4], hanging, *paths[4:])
    items[5] = Item("pair", (ImageRef(str(paths[0])), *items[5].images), "?")
    began = time.monotonic()
    with prefetching(items, threads=threads, ahead=2, timeout_s=0.3) as feed:
        found = take_all(feed)
    took = time.monotonic() - began
    assert sorted(result.item.id for result in found) == sorted(item.id for item in items)
    late = {result.item.id: result for result in found if isinstance(result, Unreadable)}
    assert set(late) == {"hangs", "pair"}
    assert [image.path for image in late["pair"].images] == [str(paths[0])]
    error = late["hangs"].error
    assert isinstance(error, BadImage)
    assert error.message == f"Cannot read the image {hanging}"
    assert error.cause == "reading it took longer than 0.3 s"
    assert error.hint == f"ls -l {hanging}"
    assert 0.6 / threads <= took < 5.0
    assert len(readers()) == 2  # in the kernel, and of no further use


@pytest.mark.parametrize("fails", [False, True])
def test_what_comes_or_fails_too_late_is_dropped(
    tmp_path: Path, gate: threading.Event, fails: bool
) -> None:
    paths, encoded = files(tmp_path / "images", 3), []
    if fails:
        paths[0].unlink()

    def encode(item: Item, images: list[ImageFile]) -> Any:
        encoded.append(item.id)
        return sized()

    with prefetching(listed(*paths), encode, timeout_s=0.2, ahead=1) as feed:
        late = unreadable(take_one(feed))
        assert isinstance(late.error, BadImage) and late.item.id == "0.png"
        assert "longer than" in (late.error.cause or "")
        gate.set()
        until(lambda: len(readers()) == 1)
        assert [ready(result).item.id for result in take_all(feed)] == ["1.png", "2.png"]
    assert encoded == ["1.png", "2.png"]


# Waiting and stopping


def test_taking_waits_for_a_fifth_of_a_second_at_most_and_encoding_may_take_its_time(
    tmp_path: Path,
) -> None:
    released = threading.Event()

    def encode(item: Item, images: list[ImageFile]) -> Any:
        assert released.wait(10)
        return sized()

    items = listed(*files(tmp_path / "images", 2))
    with prefetching(items, encode, timeout_s=0.1) as feed:
        began = time.monotonic()
        assert feed.take(wait=False) is None
        assert time.monotonic() - began < 0.15
        began = time.monotonic()
        assert feed.take(wait=True) is None
        assert 0.15 < time.monotonic() - began < 2
        assert not feed.exhausted
        released.set()
        assert [ready(result).item for result in take_all(feed)] == items


def test_leaving_early_reads_nothing_more(tmp_path: Path) -> None:
    items, asked = started(listed(*files(tmp_path / "images", 30)))
    with prefetching(items, threads=3, ahead=4) as feed:
        assert take_one(feed) is not None
    assert len(asked) <= 5
    assert readers() == []
    assert feed.exhausted
    assert feed.take(wait=True) is None


def test_leaving_does_not_wait_for_what_hangs(
    hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.2)
    began = time.monotonic()
    with prefetching(listed(hanging), timeout_s=60.0) as feed:
        assert feed.take(wait=True) is None
    assert time.monotonic() - began < 2
