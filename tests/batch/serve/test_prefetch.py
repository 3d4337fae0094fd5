"""Reading ahead: order, bounds, what hangs or is broken, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from making import files
from peak_memory import run_measured
from waiting import until

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.serve import prefetch as background
from mvw_cli.batch.serve.prefetch import Prefetcher, Ready, Unreadable
from mvw_cli.batch.source import reading
from mvw_cli.errors import BadImage
from mvw_cli.images.reading import ImageFile

TINY = 3 * 8 * 6
"""Bytes of the pixels of one of the images below."""


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
    items: Iterable[Item],
    encode: Callable[[Item, list[ImageFile]], Any] = lambda item, images: item.id,
    **options: Any,
) -> Iterator[Prefetcher]:
    given: dict[str, Any] = {"threads": 1, "ahead": 4, "ahead_bytes": 2**30, "timeout_s": 60.0}
    with Prefetcher(iter(items), encode=encode, **{"max_pixels": None, **given, **options}) as feed:
        yield feed


def take_all(feed: Prefetcher, most_s: float = 10.0) -> list[Ready | Unreadable]:
    found = []
    end = time.monotonic() + most_s
    while not feed.exhausted:
        assert time.monotonic() < end
        found += filter(None, [feed.take(wait=True)])
    assert feed.take(wait=True) is None
    return found


def take_one(feed: Prefetcher, most_s: float = 10.0) -> Ready | Unreadable:
    end = time.monotonic() + most_s
    while (result := feed.take(wait=True)) is None:
        assert time.monotonic() < end
    return result


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

    def slow(image: ImageRef, max_pixels: int | None) -> ImageFile:
        if image.path.endswith("/0.png"):
            assert opened.wait(10)
        return real(image, max_pixels)

    monkeypatch.setattr(reading, "read_image", slow)
    return opened


# What comes out


def test_one_reader_keeps_the_order_of_items_and_of_their_images(tmp_path: Path) -> None:
    with prefetching([]) as feed:
        assert take_all(feed) == []
    items = listed(*files(tmp_path / "images", 12, size=(40, 30)))
    items.append(Item("pair", (*items[7].images, *items[3].images), "?"))
    with prefetching(items, lambda item, images: (item.id, images[0].size), max_pixels=300) as feed:
        found = [ready(result) for result in take_all(feed)]
    assert [result.item for result in found] == items
    assert [result.value for result in found] == [(item.id, (20, 15)) for item in items]
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


def settled(feed: Prefetcher, asked: list[str], count: int) -> None:
    """Wait until so much is ready, and see that it gets no more."""
    until(lambda: feed.waiting == count)
    time.sleep(0.05)
    assert (feed.waiting, len(asked)) == (count, count)


@pytest.mark.parametrize(
    ("options", "encoded", "most"),
    [
        ({"ahead": 5}, None, 5),
        ({"ahead": 5, "threads": 3}, None, 5),
        ({"ahead": 10, "ahead_bytes": 3 * TINY}, None, 3),
        ({"ahead": 9, "ahead_bytes": 2 * (1000 + TINY)}, {"values": torch.zeros(250)}, 2),
    ],
)
def test_no_more_items_and_bytes_are_ahead_than_allowed(
    tmp_path: Path, options: dict[str, int], encoded: Any, most: int
) -> None:
    items, asked = started(listed(*files(tmp_path / "images", 20)))
    with prefetching(items, lambda item, images: encoded, **options) as feed:
        settled(feed, asked, most)
        feed.take(wait=False)
        until(lambda: feed.waiting == most)
        assert len(asked) == most + 1
        assert len(take_all(feed)) == 19


def test_an_item_larger_than_all_bytes_is_read_alone(tmp_path: Path) -> None:
    items, asked = started(listed(*files(tmp_path / "images", 5)))
    with prefetching(items, ahead=10, ahead_bytes=1, threads=2) as feed:
        # Two readers may begin before it is known how large items are.
        until(lambda: feed.waiting >= 1)
        time.sleep(0.05)
        taken = 0
        assert feed.waiting <= 2
        while not feed.exhausted:
            taken += feed.take(wait=True) is not None
            assert feed.waiting <= 2
        assert (taken, len(asked)) == (5, 5)


def test_what_can_not_be_read_takes_no_room_for_ever(tmp_path: Path) -> None:
    items = listed(*(f"{tmp_path}/{number}.png" for number in range(50)))
    with prefetching(items, ahead=2, ahead_bytes=1) as feed:
        assert len([unreadable(result) for result in take_all(feed)]) == 50


# What goes wrong


class Odd(dict[str, Any]):
    """A value whose size can't be told."""

    def values(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize("result", [ValueError("no"), Odd(), SystemExit(3), KeyboardInterrupt()])
def test_encoding_that_fails_is_one_failure(tmp_path: Path, result: Any) -> None:
    items = listed(*files(tmp_path / "images", 3))

    def encode(item: Item, images: list[ImageFile]) -> Any:
        if item.id == "1.png" and isinstance(result, BaseException):
            raise result
        return result if item.id == "1.png" else item.id

    with prefetching(items, encode) as feed:
        zero, one, two = take_all(feed)
    assert (ready(zero).item, ready(two).item) == (items[0], items[2])
    failure = unreadable(one)
    assert isinstance(failure.error, Exception)
    assert [image.path for image in failure.images] == [items[1].images[0].path]
    if isinstance(result, Exception):
        assert failure.error is result
    else:
        assert str(failure.error).startswith(("no", type(result).__name__))


def test_several_readers_bring_every_item_once_and_encode_one_at_a_time(tmp_path: Path) -> None:
    items = listed(*files(tmp_path / "images", 20))
    at_once = [0, 0]

    def encode(item: Item, images: list[ImageFile]) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        time.sleep(0.002)
        at_once[0] -= 1

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
        with pytest.raises(BadImage, match="too early"):
            feed.take(wait=False)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path whose reading blocks in the kernel until the test is over."""
    path = tmp_path / "hangs"
    os.mkfifo(path)
    real = reading.read_image

    def read(image: ImageRef, max_pixels: int | None) -> ImageFile:
        if image.path == str(path):
            os.close(os.open(path, os.O_RDONLY))
        return real(image, max_pixels)

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
    items[5] = Item("again", items[5].images, "?")
    began = time.monotonic()
    with prefetching(items, threads=threads, ahead=2, timeout_s=0.3) as feed:
        found = take_all(feed)
    took = time.monotonic() - began
    assert sorted(result.item.id for result in found) == sorted(item.id for item in items)
    late = {result.item.id: result for result in found if isinstance(result, Unreadable)}
    assert set(late) == {"hangs", "again"}
    error = late["hangs"].error
    assert isinstance(error, BadImage)
    assert error.message == f"Cannot read the image {hanging}"
    assert error.cause == "reading it took longer than 0.3 s"
    assert error.hint == f"ls -l {hanging}"
    assert 0.6 / threads <= took < 5.0
    assert len(readers()) == 2  # in the kernel, and of no further use


def test_the_images_before_one_that_hangs_or_is_missing_are_known(
    tmp_path: Path, hanging: Path
) -> None:
    (there,) = files(tmp_path / "images", 1)
    for bad in (hanging, tmp_path / "gone.png"):
        pair = Item("pair", (ImageRef(str(there)), ImageRef(str(bad))), "?")
        with prefetching([pair], timeout_s=0.1) as feed:
            (found,) = take_all(feed)
        assert [image.path for image in unreadable(found).images] == [str(there)]


@pytest.mark.parametrize("fails", [False, True])
def test_what_comes_or_fails_too_late_is_dropped(
    tmp_path: Path, gate: threading.Event, fails: bool
) -> None:
    paths, encoded = files(tmp_path / "images", 3), []
    if fails:
        paths[0].unlink()
    with prefetching(
        listed(*paths), lambda item, images: encoded.append(item.id), timeout_s=0.2, ahead=1
    ) as feed:
        late = unreadable(take_one(feed))
        assert isinstance(late.error, BadImage) and late.item.id == "0.png"
        assert "longer than" in (late.error.cause or "")
        gate.set()
        until(lambda: len(readers()) == 1)
        assert [ready(result).item.id for result in take_all(feed)] == ["1.png", "2.png"]
    until(lambda: not readers())
    assert encoded == ["1.png", "2.png"]


def test_encoding_has_no_time_limit(tmp_path: Path) -> None:
    items = listed(*files(tmp_path / "images", 2))

    def encode(item: Item, images: list[ImageFile]) -> str:
        time.sleep(0.3)
        return item.id

    with prefetching(items, encode, threads=2, timeout_s=0.1) as feed:
        assert sorted(ready(result).value for result in take_all(feed)) == ["0.png", "1.png"]


# Waiting and stopping


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[tuple[list[Item], Callable[..., Any], threading.Event]]:
    """Items of which nothing gets ready before the event."""
    released = threading.Event()
    items = listed(*files(tmp_path / "images", 8))
    yield items, lambda item, images: released.wait(10), released
    released.set()


def test_taking_waits_for_a_fifth_of_a_second_at_most(blocked: Any) -> None:
    items, encode, released = blocked
    with prefetching(items, encode) as feed:
        began = time.monotonic()
        assert feed.take(wait=False) is None
        assert time.monotonic() - began < 0.15
        began = time.monotonic()
        assert feed.take(wait=True) is None
        assert 0.15 < time.monotonic() - began < 2
        assert not feed.exhausted
        released.set()
        assert ready(take_one(feed)).item == items[0]
        feed.stop()


@pytest.mark.parametrize("by_signal", [False, True])
def test_stopping_wakes_whoever_waits(
    blocked: Any, monkeypatch: pytest.MonkeyPatch, by_signal: bool
) -> None:
    items, encode, released = blocked
    monkeypatch.setattr(background, "WAIT_S", 30.0)
    with prefetching(items, encode, threads=3) as feed:
        before = signal.signal(signal.SIGALRM, lambda *_: feed.stop())
        try:
            if by_signal:
                signal.setitimer(signal.ITIMER_REAL, 0.1)
            else:
                threading.Timer(0.1, feed.stop).start()
            began = time.monotonic()
            assert feed.take(wait=True) is None
            assert time.monotonic() - began < 2
        finally:
            signal.signal(signal.SIGALRM, before)
        assert feed.exhausted
        assert (feed.take(wait=True), feed.waiting) == (None, 0)
        released.set()


def test_many_signals_while_taking(tmp_path: Path) -> None:
    """The handler runs wherever the main thread happens to be, holding the lock too."""
    items = listed(*files(tmp_path / "images", 4)) * 200
    struck = []
    with prefetching(items, threads=2) as feed:

        def handler(*_: Any) -> None:
            struck.append(feed.exhausted)  # takes the same lock as stop

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            assert len(take_all(feed)) == 800
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert struck


def test_leaving_early_reads_nothing_more(tmp_path: Path) -> None:
    items, asked = started(listed(*files(tmp_path / "images", 30)))
    with prefetching(items, threads=3, ahead=4) as feed:
        assert take_one(feed) is not None
    count = len(asked)
    assert count <= 5
    assert readers() == []
    assert feed.exhausted
    assert feed.take(wait=True) is None
    time.sleep(0.05)
    assert len(asked) == count


def test_leaving_does_not_wait_for_what_hangs(
    hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "GRACE_S", 0.2)
    began = time.monotonic()
    with prefetching(listed(hanging), timeout_s=60.0) as feed:
        assert feed.take(wait=True) is None
    assert time.monotonic() - began < 2


def test_no_threads_or_no_room_is_a_mistake() -> None:
    for wrong in ({"threads": 0}, {"ahead": 0}):
        with pytest.raises(ValueError, match="at least 1"), prefetching([], **wrong):
            pass


MEMORY = """
from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.serve.prefetch import Prefetcher
count = 20_000
items = (Item(str(n), (ImageRef(sys.argv[1]),), "?") for n in range(count))
taken, before = 0, 0
with Prefetcher(
    items, encode=lambda item, images: bytes(1000), threads=2, ahead=16, ahead_bytes=2**20,
    timeout_s=60.0, max_pixels=None,
) as feed:
    while not feed.exhausted:
        taken += feed.take(wait=True) is not None
        if taken == 1000:
            before = peak_kib()
assert taken == count, taken
"""


def test_memory_is_flat_over_20000_items(tmp_path: Path) -> None:
    (path,) = files(tmp_path / "images", 1)
    # All images together would be 2.9 MiB and all values 20.
    assert run_measured(MEMORY, path) < 4 * 1024
