"""Kimi-VL in vLLM without remote code: this adapter's tokenizer and images in its place.

vLLM has the model, and takes tokenizer and processor from the code beside the checkpoint. What it
is offered here (`mvw_kimi_vl.offer_to_vllm`) goes in at the places that it has for models of other
packages; an engine that trusts remote code runs that as before.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from PIL.Image import Image
from transformers import BatchFeature
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.models import kimi_vl
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform
from vllm.tokenizers.hf import get_cached_tokenizer

from mvw_kimi_vl.processing import PLACEHOLDER, ImageProcessor, read_processor

_read = lru_cache(read_processor)


class Tokenizer:
    """What `tokenizer_mode` names: makes the tokenizer, as vLLM asks for it."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: Any,
        *args: Any,
        revision: str | None = None,
        truncation_side: str = "left",
        **kwargs: Any,
    ) -> Any:
        name = str(path_or_repo_id)
        tokenizer = _read(name, revision).tokenizer
        tokenizer.name_or_path, tokenizer.truncation_side = name, truncation_side
        return get_cached_tokenizer(tokenizer)


class _Images:
    """The image processor with the names that the checkpoint's own code has for its output."""

    image_token = PLACEHOLDER

    def __init__(self, processor: ImageProcessor) -> None:
        self.image_processor = processor

    def __call__(
        self,
        images: list[Image],
        text: str | None = None,
        truncation: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Cut images into patches. vLLM has the prompt in tokens; its text is a stand-in.

        `image_grid_hws` is  # (images, 2): rows and columns of patches.
        """
        made = self.image_processor(images)
        grids = made["image_grid_thw"][:, 1:]
        return BatchFeature({"pixel_values": made["pixel_values"], "image_grid_hws": grids})


class Info(kimi_vl.KimiVLProcessingInfo):  # type: ignore[misc]
    """What vLLM asks of a processor."""

    def get_hf_processor(self, **kwargs: Any) -> Any:
        config = self.ctx.model_config
        if config.trust_remote_code:
            return super().get_hf_processor(**kwargs)
        processor = _read(config.model, config.revision).image_processor
        # `mm_processor_kwargs` of engine or request: `in_token_limit`, as for the original.
        told = self.ctx.get_merged_mm_kwargs(kwargs)
        known = {one.name for one in fields(processor)} & told.keys()
        return _Images(replace(processor, **{name: told[name] for name in known}))


@MULTIMODAL_REGISTRY.register_processor(
    kimi_vl.KimiVLMultiModalProcessor, info=Info, dummy_inputs=kimi_vl.KimiVLDummyInputsBuilder
)
class KimiVLForConditionalGeneration(kimi_vl.KimiVLForConditionalGeneration):  # type: ignore[misc]
    """vLLM's model; its images are prepared as above."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if not current_platform.is_cpu():
            return
        # The operator for CPUs takes queries for one head, and MLA's are # (T, H, D): in 0.32 an
        # engine that is not compiled rotates them wrongly.
        for module in self.language_model.modules():
            if isinstance(module, RotaryEmbedding):
                module.forward = module.forward_native
