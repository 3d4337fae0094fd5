"""The adapter of Kimi-VL: Instruct, Thinking and Thinking-2506.

A checkpoint is read as it lies on the hub, under its own names, with none of the code beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvw_hf.model import HuggingFace, complete, explained
from mvw_hf.patches import merged
from mvw_hf.problems import check_kind
from PIL.Image import Image
from torch import Tensor

from mvw_cli import Answer, BadImage, LoadedModel, ModelSpec, UsageProblem, parse_thinking
from mvw_kimi_vl.absorbed import absorbed
from mvw_kimi_vl.images import MOST_PATCHES, ImagePreparation, read_preparation
from mvw_kimi_vl.modeling import (
    MODEL_TYPE,
    KimiVLForConditionalGeneration,
    config_from_hub,
    load_config,
)
from mvw_kimi_vl.processor import KimiProcessor
from mvw_kimi_vl.published import IN_TOKEN_LIMIT, published
from mvw_kimi_vl.stand_in import stand_in_processor
from mvw_kimi_vl.tiny import tiny_kimi
from mvw_kimi_vl.tokenizer import read_tokenizer

CHECKPOINT = "moonshotai/Kimi-VL-A3B-Thinking-2506"
_FILES = ("tiktoken.model", "tokenizer_config.json", "preprocessor_config.json")
_OPTIONAL = ("chat_template.jinja",)


class KimiVL(HuggingFace):
    """Kimi-VL; the answer is what follows ◁/think▷, for the releases that think."""

    name = "kimi-vl"
    kinds = (MODEL_TYPE,)

    def load(self, spec: ModelSpec) -> LoadedModel:
        return replace(super().load(spec), serving=absorbed)

    def load_processor(self, spec: ModelSpec) -> KimiProcessor:
        check_kind(KimiVLForConditionalGeneration, str(spec.model), spec.revision)
        folder = _folder(spec)
        return KimiProcessor(read_tokenizer(folder), read_preparation(folder))

    def stand_in(self, config: Any) -> Any:
        return stand_in_processor(config)

    def load_model(self, spec: ModelSpec) -> Any:
        return complete(KimiVLForConditionalGeneration, spec)

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        processor: KimiProcessor = loaded.processor
        for image in images:
            _tokens(processor.images, *image.size)
        content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if loaded.spec.system is not None:
            messages.insert(0, {"role": "system", "content": loaded.spec.system})
        try:
            return processor(messages, images)
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
        return merged(inputs["image_grid_thw"], loaded.processor.images.merge_kernel_size)

    def areas(
        self, loaded: LoadedModel, images: Sequence[Image]
    ) -> Sequence[tuple[float, float, float, float]]:
        return [loaded.processor.images.area(*image.size) for image in images]

    def parse(self, text: str) -> Answer:
        return parse_thinking(text, opening="◁think▷", closing="◁/think▷")

    def tiny(self) -> LoadedModel:
        model, processor = tiny_kimi()
        spec = ModelSpec(model="tiny")
        return LoadedModel(self.name, "tiny", model, processor, spec, serving=absorbed)

    def shape(self, spec: ModelSpec) -> Any:
        if spec.model in (None, CHECKPOINT) and not Path(CHECKPOINT).exists():
            return config_from_hub(published(), in_token_limit=IN_TOKEN_LIMIT)
        with explained(str(spec.model), spec.revision, kinds=self.kinds):
            return load_config(str(spec.model), revision=spec.revision)

    def build(self, config: Any) -> Any:
        return KimiVLForConditionalGeneration(config)

    def image_tokens(self, config: Any, width: int, height: int) -> int:
        limit = getattr(config, "in_token_limit", ImagePreparation().in_token_limit)
        return _tokens(ImagePreparation(in_token_limit=limit), width, height)


def _tokens(images: ImagePreparation, width: int, height: int) -> int:
    """Count the vision tokens of an image.

    Raises:
        BadImage: it has too many patches a side.
    """
    try:
        return images.vision_tokens(width, height)
    except ValueError as error:
        longest = (MOST_PATCHES - max(images.merge_kernel_size)) * images.patch_size
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
    from transformers.utils import cached_file

    found = [cached_file(str(spec.model), name, revision=spec.revision) for name in _FILES]
    for name in _OPTIONAL:
        cached_file(
            str(spec.model),
            name,
            revision=spec.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    return Path(str(found[0])).parent
