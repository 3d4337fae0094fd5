"""What a measurement asks about: the user's own images, or generated ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from PIL import Image

from mvw_cli.adapter import Adapter
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.bench.documents import ItemSource
from mvw_cli.engine.types import GenerationSettings, Request
from mvw_cli.errors import UsageProblem
from mvw_cli.images.reading import ImageFile, open_image
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.session import Session

QUESTION = "Describe this image in detail."
"""Asked of generated images, where the user asks nothing."""
_CELLS = 24


@dataclass(frozen=True, slots=True)
class ItemSpec:
    """One question about one or more image files."""

    images: tuple[str, ...]
    """Paths."""
    question: str
    reference: str | None = None
    """The right answer, where the user has it; no measurement of speed reads it."""


@dataclass(frozen=True, slots=True)
class Items:
    """The items, and where they come from."""

    items: tuple[ItemSpec, ...]
    source: ItemSource
    meaningful: bool
    """Whether answers to them tell anything: not so of noise."""


def own_items(source: Source, limit: int, *, one: bool) -> Items:
    """Take the user's images; `one` where a single one was named, no folder or file of questions.

    Raises:
        MvwError: as `list_items`; or an image lies in a table or at an address.
    """
    found = []
    for item in islice(list_items(source), limit):
        if any(image.row is not None or "://" in image.path for image in item.images):
            raise UsageProblem(
                f"{item.id} is no file on this machine",
                cause="only images in files can be measured",
                hint=source.help,
            )
        paths = tuple(image.path for image in item.images)
        found.append(ItemSpec(paths, item.question, item.reference))
    return Items(tuple(found), "given" if one else "folder", meaningful=True)


def own_files(source: Source) -> Iterator[str]:
    """List the file of questions and all images, those beyond a limit too."""
    yield from filter(None, (source.questions, *source.paths))
    if "-" not in source.paths:  # which has been read
        yield from (image.path for item in list_items(source) for image in item.images)


def generated_items(
    adapter: Adapter, folder: Path, count: int, *, size: tuple[int, int], seed: int, question: str
) -> Items:
    """Draw pictures into a folder: those that the model can read, where its adapter has any.

    Args:
        size: width and height of the noise that it is else, in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = adapter.samples(folder, count, seed)
    if samples is not None:
        drawn = own_items(Source((), questions=str(samples)), count, one=False)
        return Items(drawn.items, "generated", meaningful=True)
    found = []
    for number in range(count):
        # Smooth noise, which compresses and scales like a photograph rather than like static.
        pixels = random.Random(seed + number).randbytes(3 * _CELLS * _CELLS)
        path = folder / f"{number}.png"
        small = Image.frombytes("RGB", (_CELLS, _CELLS), pixels)
        small.resize(size, Image.Resampling.BICUBIC).save(path)
        found.append(ItemSpec((str(path),), question))
    return Items(tuple(found), "generated", meaningful=False)


def read_images(session: Session, item: ItemSpec) -> list[ImageFile]:
    """Open an item's images, scaled down to what the session's profile allows.

    Raises:
        BadImage: an image can't be read.
    """
    spec = session.loaded.spec
    return [
        open_image(path, max_pixels=spec.max_pixels, max_decoded_pixels=spec.max_decoded_pixels)
        for path in item.images
    ]


def ask(session: Session, item: ItemSpec, settings: GenerationSettings) -> Request:
    """Open an item's images and encode its question, without any withdrawal.

    Raises:
        BadImage: an image can't be read.
        OutOfMemory: the device has no room for the encoded images.
    """
    images = read_images(session, item)
    asked = session.request([file.image for file in images], item.question)
    return replace(asked, policy=NoWithdrawal(), settings=settings)
