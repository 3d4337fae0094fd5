"""The adapter of Kimi-VL: Instruct, Thinking and Thinking-2506.

A checkpoint is read as it lies on the hub, under its own names, with none of the code beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvw_hf.loading import check_kind, complete, explained
from mvw_hf.model import HuggingFace, conversation, merged_grids
from PIL.Image import Image
from torch import Tensor
from transformers.utils import cached_file

from mvw_cli import Answer, BadImage, LoadedModel, ModelSpec, UsageProblem, parse_thinking
from mvw_kimi_vl.modeling import (
    DEFAULT_PATCHES,
    MODEL_TYPE,
    KimiVLConfig,
    KimiVLForConditionalGeneration,
    absorbed,
    config_from_hub,
    load_config,
)
from mvw_kimi_vl.processing import (
    MAX_PATCHES,
    ImageProcessor,
    KimiProcessor,
    fallback_processor,
    read_image_processor,
)
from mvw_kimi_vl.tokenizer import read_tokenizer

CHECKPOINT = "moonshotai/Kimi-VL-A3B-Thinking-2506"
_FILES = ("tiktoken.model", "tokenizer_config.json", "preprocessor_config.json")
_OPTIONAL = ("chat_template.jinja",)


class KimiVL(HuggingFace):
    """Kimi-VL; the answer is what follows ◁/think▷, for the releases that think."""

    name = "kimi-vl"
    kinds = (MODEL_TYPE,)
    published = Path(__file__).parent / "published"
    checkpoint = CHECKPOINT

    def load(self, spec: ModelSpec) -> LoadedModel:
        return replace(super().load(spec), serving=absorbed)

    def load_processor(self, spec: ModelSpec) -> KimiProcessor:
        check_kind(KimiVLForConditionalGeneration, str(spec.model), spec.revision)
        folder = _folder(spec)
        return KimiProcessor(read_tokenizer(folder), read_image_processor(folder))

    def fallback_processor(self, config: KimiVLConfig) -> KimiProcessor | None:
        return fallback_processor(config)

    def load_model(self, spec: ModelSpec) -> KimiVLForConditionalGeneration:
        model: KimiVLForConditionalGeneration = complete(KimiVLForConditionalGeneration, spec)
        return model

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        processor: KimiProcessor = loaded.processor
        for image in images:
            _tokens(processor.image_processor, *image.size)
        try:
            return processor(conversation(loaded, images, text), images)
        except ValueError as error:
            raise UsageProblem(
                "The question can't be put to Kimi-VL.",
                cause=f"{error}.",
                hint='mvw infer IMAGE "What is on the table?" --adapter kimi-vl',
            ) from error

    def grids(
        self, loaded: LoadedModel, inputs: Mapping[str, Tensor], tokens: int
    ) -> tuple[tuple[int, int], ...] | None:
        if not tokens:
            return ()
        return merged_grids(
            inputs["image_grid_thw"], loaded.processor.image_processor.merge_kernel_size
        )

    def areas(
        self, loaded: LoadedModel, images: Sequence[Image]
    ) -> Sequence[tuple[float, float, float, float]]:
        return [loaded.processor.image_processor.area(*image.size) for image in images]

    def parse(self, text: str) -> Answer:
        return parse_thinking(text, opening="◁think▷", closing="◁/think▷")

    def tiny(self) -> LoadedModel:
        from mvw_kimi_vl.tiny import tiny_kimi

        model, processor = tiny_kimi()
        spec = ModelSpec(model="tiny")
        return LoadedModel(self.name, "tiny", model, processor, spec, serving=absorbed)

    def shape(self, spec: ModelSpec) -> KimiVLConfig:
        known = self.published_config(spec)
        if known is not None:
            return config_from_hub(known)
        with explained(str(spec.model), spec.revision, kinds=self.kinds):
            return load_config(str(spec.model), revision=spec.revision)

    def build(self, config: KimiVLConfig) -> KimiVLForConditionalGeneration:
        return KimiVLForConditionalGeneration(config)

    def image_tokens(self, config: KimiVLConfig, width: int, height: int) -> int:
        limit = getattr(config, "in_token_limit", DEFAULT_PATCHES)
        return _tokens(ImageProcessor(in_token_limit=limit), width, height)


def _tokens(images: ImageProcessor, width: int, height: int) -> int:
    """Count the vision tokens of an image.

    Raises:
        BadImage: it has too many patches a side.
    """
    try:
        return images.vision_tokens(width, height)
    except ValueError as error:
        longest = (MAX_PATCHES - max(images.merge_kernel_size)) * images.patch_size
        pixels = int(width * height * (longest / max(width, height)) ** 2)
        raise BadImage(
            "An image can't be read by Kimi-VL.",
            cause=f"{error}.",
            hint=f"mvw infer IMAGE QUESTION --set images.max_pixels={pixels}",
        ) from error


def _folder(spec: ModelSpec) -> Path:
    """Find the checkpoint's folder: as it is, or in the hub's cache, with what is needed of it.

    Raises:
        OSError: a file is missing, or the hub can't be reached.
    """
    found = [cached_file(str(spec.model), name, revision=spec.revision) for name in _FILES]
    for name in _OPTIONAL:
        cached_file(
            str(spec.model),
            name,
            revision=spec.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    return Path(str(found[0])).parent
