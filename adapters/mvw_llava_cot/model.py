"""The adapter of LLaVA-CoT, and of any checkpoint of `MllamaForConditionalGeneration`.

Prompt and settings are those of the model's own inference script
(PKU-YuanGroup/LLaVA-CoT, inference/demo/simple_inference.py): one user message, image first, and
the processor called on the text of the chat template. That script lets the model judge several
candidates for each stage; this adapter writes one answer, as a plain call of `generate` does.

Vision lies in cross-attention here. What becomes of those layers once it has been withdrawn is the
engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mvw_hf.model import HuggingFace, complete
from mvw_hf.problems import check_kind
from PIL.Image import Image
from torch import Tensor

from mvw_cli import Answer, LoadedModel, ModelSpec, Patch, VisionLayout, parse_stages
from mvw_llava_cot.patches import tile_patches
from mvw_llava_cot.published import published_config
from mvw_llava_cot.stand_in import stand_in_processor
from mvw_llava_cot.tiny import tiny_mllama

CHECKPOINT = "Xkev/Llama-3.2V-11B-cot"


class LlavaCot(HuggingFace):
    """Mllama with the four stages of LLaVA-CoT; the answer is its CONCLUSION."""

    name = "llava-cot"

    def load_processor(self, spec: ModelSpec) -> Any:
        from transformers import MllamaForConditionalGeneration

        check_kind(MllamaForConditionalGeneration, str(spec.model), spec.revision)
        return super().load_processor(spec)

    def stand_in(self, config: Any) -> Any:
        return stand_in_processor(config)

    def load_model(self, spec: ModelSpec) -> Any:
        from transformers import MllamaForConditionalGeneration

        return complete(MllamaForConditionalGeneration, spec)

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if loaded.spec.system is not None:
            system = [{"type": "text", "text": loaded.spec.system}]
            messages.insert(0, {"role": "system", "content": system})
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
        model, processor = tiny_mllama()
        return LoadedModel(self.name, "tiny", model, processor, ModelSpec(model="tiny"))

    def shape(self, spec: ModelSpec) -> Any:
        if spec.model in (None, CHECKPOINT) and not Path(CHECKPOINT).exists():
            return published_config()
        return super().shape(spec)

    def build(self, config: Any) -> Any:
        from transformers import MllamaForConditionalGeneration

        return MllamaForConditionalGeneration(config)

    def image_tokens(self, config: Any, width: int, height: int) -> int:
        """Count the vision states of one image: its tiles, each with a class token.

        Tiles are chosen as `MllamaImageProcessor` does; those of padding are not held.
        """
        from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

        vision = config.vision_config
        canvas = get_optimal_tiled_canvas(height, width, vision.max_num_tiles, vision.image_size)
        tiles = (canvas[0] // vision.image_size) * (canvas[1] // vision.image_size)
        return int(tiles) * states_per_tile(config)


def states_per_tile(config: Any) -> int:
    """Count the vision states that one tile becomes: its patches and a class token."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 + 1)
