"""The adapter of Kimi-VL: Instruct, Thinking and Thinking-2506.

A checkpoint is read as it lies on the hub, under its own names, with none of the code beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvw_hf.loading import check_files, check_kind, explained, of_base, with_processor
from mvw_hf.model import Grids, HuggingFace, conversation, merged_grids
from mvw_hf.packages import check_packages
from PIL.Image import Image
from torch import Tensor
from transformers import Kimi_K25Config, PreTrainedModel
from transformers.utils import is_compressed_tensors_available

from mvw_cli import Answer, LoadedModel, ModelSpec, parse_thinking
from mvw_kimi_vl import TOKENIZER_MODE
from mvw_kimi_vl.modeling import (
    DEFAULT_PATCHES,
    KimiK25ForConditionalGeneration,
    KimiVLForConditionalGeneration,
    absorbed,
    config_from_hub,
    load_config,
    packing,
)
from mvw_kimi_vl.processing import (
    ImageProcessor,
    KimiProcessor,
    ScalingImageProcessor,
    fallback_processor,
    read_processor,
)

CHECKPOINT = "moonshotai/Kimi-VL-A3B-Thinking-2506"


class KimiVL(HuggingFace):
    """Kimi-VL; the answer is what follows ◁/think▷, for the releases that think."""

    name = "kimi-vl"
    published = Path(__file__).parent / "published"
    checkpoint = CHECKPOINT

    def model_class(self) -> type[PreTrainedModel]:
        return KimiVLForConditionalGeneration

    def load(self, spec: ModelSpec) -> LoadedModel:
        return replace(super().load(spec), serving=absorbed)

    def load_processor(self, spec: ModelSpec) -> KimiProcessor:
        check_kind(self.model_class(), spec)
        spec = with_processor(spec)
        return read_processor(str(spec.model), spec.revision)

    def vllm_arguments(self) -> Mapping[str, Any]:
        return {"tokenizer_mode": TOKENIZER_MODE}

    def fallback_processor(self, config: Kimi_K25Config) -> KimiProcessor | None:
        return fallback_processor(config)

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        inputs: dict[str, Any] = loaded.processor(
            conversation(loaded.spec.system, images, text), images
        )
        return inputs

    def grids(self, loaded: LoadedModel, inputs: Mapping[str, Tensor], tokens: int) -> Grids | None:
        if not tokens:
            return ()
        if "image_grid_thw" not in inputs:  # an engine that prepares the images does not tell
            return None
        kernel = loaded.processor.image_processor.merge_kernel_size
        return merged_grids(inputs["image_grid_thw"], kernel)

    def areas(
        self, loaded: LoadedModel, images: Sequence[Image]
    ) -> Sequence[tuple[float, float, float, float]]:
        # Left, top, right and bottom edge: past 1 where patches cover padding too.
        sizes = [loaded.processor.image_processor.size(*image.size) for image in images]
        return [(0.0, 0.0, right / wide, bottom / high) for wide, high, right, bottom in sizes]

    def parse(self, text: str) -> Answer:
        return parse_thinking(text, opening="◁think▷", closing="◁/think▷")

    def tiny(self) -> LoadedModel:
        from mvw_kimi_vl.tiny import tiny_kimi

        model, processor = tiny_kimi(self)
        spec = ModelSpec(model="tiny")
        return LoadedModel(self.name, "tiny", model, processor, spec, serving=absorbed)

    def shape(self, spec: ModelSpec) -> Kimi_K25Config:
        known = self.published_config(spec)
        if known is not None:
            return config_from_hub(known)
        with explained(str(spec.model), spec.revision):
            check_files(spec, weights=False)
            check_kind(self.model_class(), spec)
            base = of_base(spec)
            return load_config(str(base.model), revision=base.revision)

    def image_tokens(self, config: Kimi_K25Config, width: int, height: int) -> int:
        limit = getattr(config, "in_token_limit", DEFAULT_PATCHES)
        return ImageProcessor(in_token_limit=limit).vision_tokens(width, height)


class KimiK25(KimiVL):
    """Kimi-K2.5: the same tower and text model, larger; its experts are packed in four bits."""

    name = "kimi-k2.5"
    checkpoint = "moonshotai/Kimi-K2.5"

    def model_class(self) -> type[PreTrainedModel]:
        return KimiK25ForConditionalGeneration

    def vllm_arguments(self) -> Mapping[str, Any]:
        return {}

    def missing_packages(self, spec: ModelSpec) -> Sequence[str]:
        if spec.random_weights or is_compressed_tensors_available():
            return ()
        return () if packing(self.config_dict(spec)) is None else ("compressed-tensors",)

    def load_processor(self, spec: ModelSpec) -> KimiProcessor:
        processor = super().load_processor(spec)
        check_packages(str(spec.model), self.missing_packages(spec))
        return processor

    def parse(self, text: str) -> Answer:
        return parse_thinking(text)

    def image_tokens(self, config: Kimi_K25Config, width: int, height: int) -> int:
        limit = getattr(config, "in_token_limit", ScalingImageProcessor().in_token_limit)
        return ScalingImageProcessor(in_token_limit=limit).vision_tokens(width, height)
