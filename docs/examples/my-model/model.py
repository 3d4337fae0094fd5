"""The adapter `my-model`: Gemma 3, asked to describe the picture before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mvw_hf.model import HuggingFace

from mvw_cli import Answer, LoadedModel, parse_stages

if TYPE_CHECKING:
    from PIL.Image import Image

_REQUEST = (
    "First describe the picture: <CAPTION>…</CAPTION>. Then answer: <CONCLUSION>…</CONCLUSION>."
)


class MyModelAdapter(HuggingFace):
    """Loading, images and vision tokens are the base class's; prompt and answer are ours."""

    name = "my-model"
    checkpoint = "google/gemma-3-12b-it"

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        return super().tokenize(loaded, images, f"{text}\n{_REQUEST}")

    def parse(self, text: str) -> Answer:
        return parse_stages(text)
