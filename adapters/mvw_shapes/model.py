"""The adapter of the embedded model: loads the packaged weights, and says where its world ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from mvw_shapes import easy_vqa, questions
from mvw_shapes.scenes import COLOURS

EMBEDDED = "embedded"
WEIGHTS = Path(__file__).parent / "weights"
_SIDE = 168  # px; the picture is examined at this size
_WHITE = 0.90  # least brightness of every channel of the ground
# Distances in RGB, each channel in [0, 1].
_NEAR = 0.20  # that still counts as a palette colour
_STAINED = 0.35  # the same in easy-VQA, which draws small and with soft edges
_EVEN = 0.06  # of one ground
_TINTED = 0.86  # least brightness of every channel of easy-VQA's ground
_FILLED = 0.4  # share of its box that a shape covers


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
        scenes = all(looks_like_scene(image) for image in images)
        single = all(looks_like_easy_vqa(image) for image in images)
        if not scenes and not single:
            reasons.append("this image is neither")
        # A picture of neither leaves open which of them the question is about.
        worlds = [questions] if scenes or not single else []
        worlds += [easy_vqa] if single or not scenes else []
        if not any(world.recognise(question) for world in worlds):
            reasons.append("this is not a question of the kinds it was trained on")
        if not reasons:
            return []
        return [
            "The embedded model only reads scenes of coloured shapes and easy-VQA, and "
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
    pixels = _pixels(image)
    ground = (pixels.amin(-1) > _WHITE).float().mean()
    painted = (_distances(pixels, COLOURS).amin(-1) < _NEAR).float().mean()
    # The rest is seams: JPEG and resizing make them wide.
    return bool(ground > 0.5 and painted > 0.004 and ground + painted > 0.88)


def looks_like_easy_vqa(image: Image) -> bool:
    """Whether a picture could be of easy-VQA: one shape of one colour on an even ground."""
    pixels = _pixels(image)
    ground = pixels.flatten(0, 1).median(0).values  # (3,)
    even = (pixels - ground).norm(dim=-1) < _EVEN  # (S, S)
    near, colour = _distances(pixels, easy_vqa.COLOURS).min(-1)
    stained = (near < _STAINED) & ~even
    if ground.amin() <= _TINTED or not stained.any():
        return False
    shape = stained & (colour == colour[stained].mode().values)
    rows, columns = shape.any(1).nonzero(), shape.any(0).nonzero()
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    # A triangle fills half of its box.
    return bool(shape.sum() > _FILLED * box and (even | shape).float().mean() > 0.9)


def _pixels(image: Image) -> torch.Tensor:
    """Return a picture as # (S, S, 3) in [0, 1]."""
    small = image.convert("RGB").resize((_SIDE, _SIDE), Resampling.BOX)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return pixels.view(_SIDE, _SIDE, 3).float() / 255


def _distances(pixels: torch.Tensor, palette: Mapping[str, tuple[int, int, int]]) -> torch.Tensor:
    """Return how far each pixel is from each colour: # (S, S, C)."""
    colours = torch.tensor(list(palette.values())) / 255  # (C, 3)
    apart: torch.Tensor = (pixels[:, :, None] - colours).norm(dim=-1)
    return apart
