"""From read images to a request: at full size, and smaller where memory asks for it.

It does not know when either is called for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.prefetch import Ready
from mvw_cli.engine.types import Request
from mvw_cli.images.pixels import fit
from mvw_cli.images.reading import ImageFile
from mvw_cli.session import Session


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the engine gets, and what is to be said of it."""

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
        """Scale an item's largest image to half its pixels, and say so; None if that is too few.

        What was encoded does not hold for it any more.
        """
        if self.min_pixels is None or not ready.images:
            return None
        largest = max(range(len(ready.images)), key=lambda index: _pixels(ready.images[index]))
        file = ready.images[largest]
        size = fit(file.size, max(self.min_pixels, _pixels(file) // 2))
        if size == file.size:
            return None
        images = [*ready.images]
        images[largest] = replace(file, image=file.image.resize(size, _filter()), size=size)
        before, now = "×".join(map(str, file.size)), "×".join(map(str, size))
        remark = f"memory ran out, so {file.path} was scaled from {before} to {now} pixels"
        return replace(ready, images=images, value=None), remark


def _pixels(file: ImageFile) -> int:
    return file.size[0] * file.size[1]


def _filter() -> int:
    from PIL import Image

    return Image.Resampling.LANCZOS
