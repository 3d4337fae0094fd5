"""From an item, which names files, to a request, which holds tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mvw_cli.policies.none import NoWithdrawal

if TYPE_CHECKING:
    from mvw_cli.bench.measure.job import ItemSpec
    from mvw_cli.engine.types import GenerationSettings, Request
    from mvw_cli.session import Session


def ask(session: Session, item: ItemSpec, settings: GenerationSettings) -> Request:
    """Open an item's images and encode its question, without any withdrawal.

    Raises:
        BadImage: an image can't be read.
        OutOfMemory: the device has no room for the encoded images.
    """
    from mvw_cli.images.reading import open_image

    limit = session.loaded.spec.max_pixels
    images = [open_image(path, max_pixels=limit).image for path in item.images]
    asked = session.request(images, item.question)
    return replace(asked, policy=NoWithdrawal(), settings=settings)
