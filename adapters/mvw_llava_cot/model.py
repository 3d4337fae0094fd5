"""The adapter of LLaVA-CoT, and of any checkpoint of `MllamaForConditionalGeneration`.

Prompt and settings are those of the model's own inference script
(PKU-YuanGroup/LLaVA-CoT, inference/demo/simple_inference.py): one user message, image first, and
the processor called on the text of the chat template. That script lets the model judge several
candidates for each stage; this adapter writes one answer, as a plain call of `generate` does.
Vision lies in cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mvw_hf.model import HuggingFace, conversation
from PIL.Image import Image
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import (
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)

from mvw_cli import Answer, LoadedModel, ModelSpec, Patch, VisionLayout, clipped_patch, parse_stages

CHECKPOINT = "Xkev/Llama-3.2V-11B-cot"


class LlavaCot(HuggingFace):
    """Mllama with the four stages of LLaVA-CoT; the answer is its CONCLUSION."""

    name = "llava-cot"
    published = Path(__file__).parent / "published"
    checkpoint = CHECKPOINT

    def model_class(self) -> Any:
        return MllamaForConditionalGeneration

    def fallback_processor(self, config: MllamaConfig) -> Any:
        from mvw_llava_cot.standins import fallback_processor

        return fallback_processor(config)

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        messages = conversation(loaded.spec.system, images, text)
        processor = loaded.processor
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        # As the script calls it. The template has written <|begin_of_text|>, and Llama's tokenizer
        # writes it again: the published results were obtained with both.
        return dict(processor(images=list(images) or None, text=prompt, return_tensors="pt"))

    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        nothing = torch.zeros_like(inputs["input_ids"][0], dtype=torch.bool)
        if "cross_attention_mask" not in inputs:
            return VisionLayout(entries=nothing)
        # Every generated token sees what the last token of the prompt sees: transformers repeats
        # that row of the mask (`_update_model_kwargs_for_generation` of Mllama).
        seen = inputs["cross_attention_mask"][0, -1].bool()  # (images, tiles)
        states = states_per_tile(loaded.model.config)
        counts = tuple(int(tiles.sum()) * states for tiles in seen)
        return VisionLayout(nothing, seen.flatten().repeat_interleave(states), images=counts)

    def patches(
        self, loaded: LoadedModel, inputs: Mapping[str, Tensor], images: Sequence[Image]
    ) -> Sequence[Patch | None] | None:
        if "cross_attention_mask" not in inputs:
            return []
        seen = inputs["cross_attention_mask"][0, -1].bool().tolist()  # (images, tiles)
        return [
            patch
            for number, (image, tiles) in enumerate(zip(images, seen, strict=True))
            for tile, here in enumerate(tiles)
            if here
            for patch in tile_patches(loaded.model.config.vision_config, number, image.size, tile)
        ]

    def parse(self, text: str) -> Answer:
        return parse_stages(text)

    def tiny(self) -> LoadedModel:
        from mvw_llava_cot.standins import tiny_mllama

        model, processor = tiny_mllama()
        return LoadedModel(self.name, "tiny", model, processor, ModelSpec(model="tiny"))

    def image_tokens(self, config: MllamaConfig, width: int, height: int) -> int:
        """Count the vision states of one image: its tiles, each with a class token.

        Tiles are chosen as `MllamaImageProcessor` does; those of padding are not held.
        """
        vision = config.vision_config
        canvas = get_optimal_tiled_canvas(height, width, vision.max_num_tiles, vision.image_size)
        tiles = (canvas[0] // vision.image_size) * (canvas[1] // vision.image_size)
        return int(tiles) * states_per_tile(config)


def states_per_tile(config: MllamaConfig) -> int:
    """Count the vision states that one tile becomes: its patches and a class token."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 + 1)


def tile_patches(
    vision: MllamaVisionConfig, image: int, size: tuple[int, int], tile: int
) -> list[Patch | None]:
    """List the patches of one tile; the first state is its class token, which has no place.

    Tiles are chosen, and the picture fitted into their canvas, as `MllamaImageProcessor` does.
    They go row by row; `image` is the number of the picture, `size` its width and height in px.
    """
    width, height = size
    side = vision.image_size
    canvas_height, canvas_width = get_optimal_tiled_canvas(
        height, width, vision.max_num_tiles, side
    )
    high, wide = map(
        int, get_image_size_fit_to_canvas(height, width, canvas_height, canvas_width, side)
    )
    row, column = divmod(tile, canvas_width // side)
    found: list[Patch | None] = [None]
    for y in range(row * side, (row + 1) * side, vision.patch_size):
        for x in range(column * side, (column + 1) * side, vision.patch_size):
            right, bottom = x + vision.patch_size, y + vision.patch_size
            found.append(clipped_patch(image, x / wide, y / high, right / wide, bottom / high))
    return found
