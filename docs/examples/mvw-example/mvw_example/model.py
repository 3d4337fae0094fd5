"""The adapter: any model of transformers, asked for a boxed answer, and read accordingly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mvw_hf.model import HuggingFace

from mvw_cli import Answer, LoadedModel
from mvw_example.boxed import read_boxed

if TYPE_CHECKING:
    from PIL.Image import Image

_REQUEST = "Put the final answer in \\boxed{}."


class Boxed(HuggingFace):
    """Loading, images and vision tokens are the base class's; prompt and answer are ours."""

    name = "boxed"

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        return super().tokenize(loaded, images, f"{text}\n{_REQUEST}")

    def parse(self, text: str) -> Answer:
        return read_boxed(text)
