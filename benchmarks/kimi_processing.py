"""Kimi-VL's processor as vLLM's front end wants one: of transformers, beside the checkpoint.

vLLM has the model, not the processor, and would run the repository's own code for it. This is put
in its place by `vllm_gpu.py`; the work is done by the adapter `kimi-vl`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from mvw_kimi_vl.processing import PLACEHOLDER, ImageProcessor
from transformers import BaseImageProcessor, BatchFeature, ProcessorMixin


class KimiVLImageProcessor(BaseImageProcessor):
    """Images to patches."""

    model_input_names: ClassVar = ["pixel_values", "image_grid_hws"]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        known = ("patch_size", "merge_kernel_size", "in_token_limit")
        given = {name: settings[name] for name in known if name in settings}
        self._plain = ImageProcessor(**given)
        for name in known:
            setattr(self, name, getattr(self._plain, name))

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        cut = self._plain(images if isinstance(images, list) else [images])
        grids = cut["image_grid_thw"][:, 1:]
        return BatchFeature({"pixel_values": cut["pixel_values"], "image_grid_hws": grids})

    def to_dict(self) -> dict[str, Any]:
        return {key: one for key, one in super().to_dict().items() if key != "_plain"}


class KimiVLProcessor(ProcessorMixin):
    """The same beside a tokenizer."""

    attributes: ClassVar = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"
    image_token = PLACEHOLDER

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        texts = [text] if isinstance(text, str) else list(text or [""])
        pictures = images if isinstance(images, list) else [] if images is None else [images]
        found = self.image_processor(pictures) if pictures else {}
        sizes = iter(found["image_grid_hws"].prod(-1).tolist() if pictures else ())
        down, across = self.image_processor.merge_kernel_size
        written = []
        for one in texts:
            first, *pieces = one.split(PLACEHOLDER)
            written.append(
                first + "".join(PLACEHOLDER * (next(sizes) // down // across) + p for p in pieces)
            )
        encoded = self.tokenizer(written, add_special_tokens=False, return_tensors="pt")
        ids = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        return BatchFeature({**ids, **found})
