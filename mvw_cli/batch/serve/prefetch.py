"""Items read, decoded and encoded ahead; scaled down where memory asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from mvw_cli.batch.items import Item
from mvw_cli.batch.source import reading
from mvw_cli.batch.source.background import Reader, Task
from mvw_cli.engine.types import Request
from mvw_cli.images.reading import ImageFile, fit
from mvw_cli.session import Session


@dataclass(frozen=True, slots=True)
class Ready:
    """An item that can be served."""

    item: Item
    images: list[ImageFile]
    value: Any
    """What `encode` returned."""
    read_ms: float
    preprocess_ms: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item whose images could not be read or encoded."""

    item: Item
    images: list[ImageFile]
    """Those that were read before."""
    error: Exception


class Prefetcher(Reader[Ready | Unreadable]):
    """Reads and encodes items ahead. A context manager; one thread takes.

    Args:
        items, threads, ahead, ahead_bytes: as `Reader`; the bytes are those of pixels and tensors.
        encode: called for one item at a time, since fast tokenizers are not to be shared.
        timeout_s: an item whose images take longer to read is given up.
        max_pixels: larger images are scaled down.
    """

    def __init__(
        self,
        items: Iterator[Item],
        *,
        encode: Callable[[Item, list[ImageFile]], Any],
        threads: int,
        ahead: int,
        ahead_bytes: int,
        timeout_s: float,
        max_pixels: int | None,
    ) -> None:
        self._encode, self._max_pixels = encode, max_pixels
        self._encode_lock = threading.Lock()
        super().__init__(
            items,
            self._prepare,
            threads=threads,
            ahead=ahead,
            ahead_bytes=ahead_bytes,
            timeout_s=timeout_s,
            give_up=self._too_slow,
        )

    def _prepare(self, task: Task) -> tuple[Ready | Unreadable, int]:
        """Read and encode an item; whatever goes wrong is that item's failure."""
        assert task.item is not None
        images: list[ImageFile] = []
        task.progress = images
        begin = time.perf_counter()
        try:
            for image in task.item.images:
                images.append(reading.read_image(image, self._max_pixels))
            read_ms = _ms_since(begin)
            with self.changed:
                task.deadline = None  # from here on, it may take its time
            if task.abandoned:
                raise TimeoutError
            with self._encode_lock:
                begin = time.perf_counter()
                value = self._encode(task.item, images)
                ready = Ready(task.item, images, value, read_ms, _ms_since(begin))
            return ready, _pixel_bytes(images) + _tensor_bytes(value)
        except BaseException as error:
            if not isinstance(error, Exception):
                error = RuntimeError(f"{type(error).__name__}: {error}")
            return Unreadable(task.item, images, error), _pixel_bytes(images)

    def _too_slow(self, task: Task) -> tuple[Unreadable, int] | None:
        assert task.item is not None
        images = list(task.progress or ())
        if len(images) == len(task.item.images):
            return None
        error = reading.too_slow(task.item.images[len(images)], self._timeout_s)
        return Unreadable(task.item, images, error), _pixel_bytes(images)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request for the engine, and the adapter's remarks on it."""

    request: Request
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes items for one session."""

    session: Session
    min_pixels: int | None = None
    """Images may be scaled down to no fewer pixels than this; None: not at all."""

    def __call__(self, item: Item, images: Sequence[ImageFile]) -> Encoded:
        """Encode an item.

        Raises:
            MvwError, or whatever the adapter raises.
        """
        pictures = [file.image for file in images]
        remarks = list(self.session.adapter.remarks(self.session.loaded, pictures, item.question))
        return Encoded(self.session.request(pictures, item.question, id=item.id), remarks)

    def scaled_down(self, ready: Ready) -> tuple[Ready, str] | None:
        """Halve the pixels of an item's largest image; None if that leaves too few.

        Returns:
            The item, which has to be encoded again, and a remark on what was done.
        """
        if self.min_pixels is None or not ready.images:
            return None
        from PIL import Image

        pixels = [file.size[0] * file.size[1] for file in ready.images]
        largest = pixels.index(max(pixels))
        file = ready.images[largest]
        size = fit(file.size, max(self.min_pixels, pixels[largest] // 2))
        if size == file.size:
            return None
        images = [*ready.images]
        smaller = file.image.resize(size, Image.Resampling.LANCZOS)
        images[largest] = replace(file, image=smaller, size=size)
        before, now = "×".join(map(str, file.size)), "×".join(map(str, size))
        remark = f"memory ran out, so {file.path} was scaled from {before} to {now} pixels"
        return replace(ready, images=images, value=None), remark


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000


def _pixel_bytes(images: Iterable[ImageFile]) -> int:
    """Bytes of decoded images, in RGB."""
    return sum(3 * file.size[0] * file.size[1] for file in images)


def _tensor_bytes(value: Any, depth: int = 5) -> int:
    """Bytes of all tensors or arrays in a value, nested in dictionaries, lists and dataclasses."""
    try:
        own = value.nbytes
    except Exception:  # no attribute, or a tensor of a layout that has no such number
        own = None
    if isinstance(own, int):
        return own
    parts: list[Any] = []
    if depth and isinstance(value, Mapping):
        parts = list(value.values())
    elif depth and isinstance(value, list | tuple):
        parts = list(value)
    elif depth and is_dataclass(value):
        parts = [getattr(value, part.name) for part in fields(value)]
    return sum(_tensor_bytes(part, depth - 1) for part in parts)
