"""The adapter of the embedded model: loads the packaged weights, and says where its world ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mvw_hf.model import HuggingFace
from PIL.Image import Image, Resampling
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from mvw_cli import Answer, LoadedModel, ModelSpec, parse_stages
from mvw_shapes.questions import recognise
from mvw_shapes.scenes import COLOURS

EMBEDDED = "embedded"
WEIGHTS = Path(__file__).parent / "weights"
_SIDE = 168  # px; the picture is examined at this size
_WHITE = 0.90  # least brightness of every channel of the ground
_NEAR = 0.20  # distance in RGB, each channel in [0, 1], that still counts as a palette colour


class Shapes(HuggingFace):
    """The embedded model; `model` may also name the folder of one trained by `training/`."""

    name = "shapes"

    def load(self, spec: ModelSpec) -> LoadedModel:
        folder = _folder(spec)
        loaded = super().load(replace(spec, model=str(folder)))
        return replace(loaded, name=EMBEDDED) if folder == WEIGHTS else loaded

    def load_processor(self, spec: ModelSpec) -> LlavaProcessor:
        return LlavaProcessor.from_pretrained(spec.model, trust_remote_code=False)

    def model_class(self) -> Any:
        return LlavaForConditionalGeneration

    def parse(self, text: str) -> Answer:
        return parse_stages(text)

    def shape(self, spec: ModelSpec) -> PreTrainedConfig:
        return super().shape(replace(spec, model=str(_folder(spec))))

    def text_tokens(self, spec: ModelSpec, config: PreTrainedConfig) -> Callable[[str, int], int]:
        return super().text_tokens(replace(spec, model=str(_folder(spec))), config)

    def remarks(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> list[str]:
        reasons = []
        if len(images) > 1:
            reasons.append("it reads one image at a time")
        if not all(looks_like_scene(image) for image in images):
            reasons.append("this image is not a scene of coloured shapes")
        if recognise(question) is None:
            reasons.append("this is not a question of the kinds it was trained on")
        if not reasons:
            return []
        return [
            "The embedded model only reads scenes of coloured shapes, and "
            f"{' and '.join(reasons)}: do not trust this answer."
        ]

    def samples(self, folder: Path, count: int, seed: int) -> Path:
        from mvw_shapes.samples import write_samples

        return write_samples(folder, count, seed, overwrite=True)

    def tiny(self) -> LoadedModel:
        config = LlavaConfig.from_pretrained(WEIGHTS)
        vision, text = config.vision_config, config.text_config
        vision.num_hidden_layers, vision.num_attention_heads = 1, 1
        vision.hidden_size, vision.intermediate_size, vision.projection_dim = 32, 128, 32
        text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = 2, 1, 1
        text.hidden_size, text.intermediate_size = 40, 112
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = LlavaForConditionalGeneration(config)
        model.generation_config = GenerationConfig.from_pretrained(WEIGHTS)
        spec = ModelSpec("tiny")
        processor = self.load_processor(ModelSpec(str(WEIGHTS)))
        return LoadedModel(self.name, "tiny", model.eval(), processor, spec)


def _folder(spec: ModelSpec) -> Path:
    return WEIGHTS if spec.model in (None, EMBEDDED) else Path(str(spec.model))


def looks_like_scene(image: Image) -> bool:
    """Whether a picture could be a scene: near-white ground, plain palette colours, little else."""
    small = image.convert("RGB").resize((_SIDE, _SIDE), Resampling.BOX)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(_SIDE, _SIDE, 1, 3).float() / 255
    palette = torch.tensor(list(COLOURS.values())) / 255  # (C, 3)
    ground = (pixels.amin(-1) > _WHITE).float().mean()
    painted = ((pixels - palette).norm(dim=-1) < _NEAR).any(-1).float().mean()
    # The rest is seams: JPEG and resizing make them wide.
    return bool(ground > 0.5 and painted > 0.004 and ground + painted > 0.88)
