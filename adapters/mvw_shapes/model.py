"""The adapter of the embedded model: loads the packaged weights, and says where its world ends.

How it is prompted and where its vision tokens lie is read off its checkpoint, as for any other
model of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mvw_hf.loading import complete
from mvw_hf.model import HuggingFace
from PIL.Image import Image

from mvw_cli import Answer, LoadedModel, ModelSpec, parse_stages
from mvw_shapes.checkpoint import WEIGHTS, build_model, build_processor
from mvw_shapes.questions import recognise, unknown_words
from mvw_shapes.world import looks_like_scene

EMBEDDED = "embedded"


class Shapes(HuggingFace):
    """The embedded model; `model` may also name the folder of one trained by `train.py`."""

    name = "shapes"

    def load(self, spec: ModelSpec) -> LoadedModel:
        folder = _folder(spec)
        loaded = super().load(replace(spec, model=str(folder)))
        if folder != WEIGHTS:
            return loaded
        return LoadedModel(self.name, EMBEDDED, loaded.model, loaded.processor, loaded.spec)

    def load_processor(self, spec: ModelSpec) -> Any:
        from transformers import LlavaProcessor

        return LlavaProcessor.from_pretrained(spec.model, trust_remote_code=False)

    def load_model(self, spec: ModelSpec) -> Any:
        from transformers import LlavaForConditionalGeneration

        return complete(LlavaForConditionalGeneration, spec)

    def parse(self, text: str) -> Answer:
        return parse_stages(text)

    def shape(self, spec: ModelSpec) -> Any:
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
        state = torch.random.get_rng_state()
        try:
            torch.manual_seed(0)
            model = build_model(vision_layers=1, vision_width=32, text_layers=2, text_width=40)
        finally:
            torch.random.set_rng_state(state)
        return LoadedModel(self.name, "tiny", model.eval(), build_processor(), ModelSpec("tiny"))


def _folder(spec: ModelSpec) -> Path:
    return WEIGHTS if spec.model in (None, EMBEDDED) else Path(str(spec.model))


def _listed(words: list[str]) -> str:
    quoted = [f"“{word}”" for word in words[:3]]
    return ", ".join(quoted) + (" …" if len(words) > 3 else "")
