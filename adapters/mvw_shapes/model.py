"""The adapter of the embedded model: loads the packaged weights, and says where its world ends."""

from __future__ import annotations

from collections.abc import Sequence
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
from mvw_shapes.questions import recognise, unknown_words
from mvw_shapes.scenes import COLOURS

EMBEDDED = "embedded"
WEIGHTS = Path(__file__).parent / "weights"
_SIDE = 168  # px; the picture is examined at this size
_STRETCH = 1.25  # the most by which one side may be the longer
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

    def remarks(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> list[str]:
        reasons = []
        if len(images) > 1:
            reasons.append("it reads one image at a time")
        if not all(looks_like_scene(image) for image in images):
            reasons.append("this image is not a scene of coloured shapes")
        unknown = unknown_words(question)
        if unknown:
            reasons.append(f"it does not know {_listed(unknown)}")
        elif recognise(question) is None:
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


def _listed(words: list[str]) -> str:
    quoted = [f"“{word}”" for word in words[:3]]
    return ", ".join(quoted) + (" …" if len(words) > 3 else "")


def looks_like_scene(image: Image) -> bool:
    """Whether a picture could be one of the scenes that the embedded model was trained on.

    A check for honesty, not a classifier: what passes has a near-white ground and plain palette
    colours, one to a cell of the 3x3 grid.
    """
    width, height = image.size
    if min(width, height) < 48 or max(width, height) > _STRETCH * min(width, height):
        return False
    small = image.convert("RGB").resize((_SIDE, _SIDE), Resampling.BOX)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(_SIDE, _SIDE, 3).float() / 255  # (H, W, 3)
    ground = pixels.amin(-1) > _WHITE
    palette = torch.tensor(list(COLOURS.values())) / 255  # (C, 3)
    distance, colour = (pixels[:, :, None] - palette).norm(dim=-1).min(-1)  # (H, W)
    painted = distance < _NEAR
    if not ground.float().mean() > 0.45 or not painted.float().mean() > 0.004:
        return False
    return _on_grid(ground) and _plain(pixels, ground, painted) and _one_each(painted, colour)


def _on_grid(ground: torch.Tensor) -> bool:
    """Shapes keep inside their cells, so the lines between the cells stay empty."""
    third = _SIDE // 3
    lines = [ground[cut - 1 : cut + 1] for cut in (third, 2 * third)]
    lines += [ground[:, cut - 1 : cut + 1].T for cut in (third, 2 * third)]
    return bool(torch.cat(lines).float().mean() > 0.965)


def _plain(pixels: torch.Tensor, ground: torch.Tensor, painted: torch.Tensor) -> bool:
    """Whatever is neither ground nor paint must be the narrow seam between the two."""
    white = pixels[ground].mean(0)
    palette = torch.tensor(list(COLOURS.values())) / 255
    ray = palette - white  # (C, 3)
    rest = pixels[~ground & ~painted]  # (N, 3)
    if not len(rest):
        return True
    along = ((rest - white) @ ray.T / ray.square().sum(-1)).clamp(0, 1.1)  # (N, C)
    off = (rest[:, None] - white - along[..., None] * ray).norm(dim=-1).amin(-1)
    odd = (off > 0.16).sum() / ground.numel()
    seam = len(rest) / ground.numel()
    return bool(odd < 0.012) and seam < 0.9 * float(painted.float().mean()) + 0.02


def _one_each(painted: torch.Tensor, colour: torch.Tensor) -> bool:
    """Every cell is empty, or holds enough of one colour to be a shape."""
    third = _SIDE // 3
    for row in range(3):
        for column in range(3):
            cell = (
                slice(row * third, (row + 1) * third),
                slice(column * third, (column + 1) * third),
            )
            found = colour[cell][painted[cell]]
            share = len(found) / third**2
            if share < 0.004:
                continue
            if share < 0.04 or found.bincount().max() < 0.8 * len(found):
                return False
    return True
