"""The adapter for any decoder-only VLM of transformers.

Everything is read off the checkpoint: the architecture, the image token, the chat template, the
generation settings. It knows no model by name; adapters for one family override what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL.Image import Image
from torch import Tensor

from mvw_cli import (
    Adapter,
    Answer,
    LoadedModel,
    ModelProblem,
    ModelSpec,
    UsageProblem,
    VisionLayout,
    parse_thinking,
)
from mvw_hf.hub_problems import disk_is_full, http_error, of_the_hub
from mvw_hf.image_tokens import image_tokens
from mvw_hf.loading import NO_CODE, build_random, complete
from mvw_hf.patches import areas_of, grids_of
from mvw_hf.placement import (
    check_placement,
    choose_device,
    device_map_of,
    input_device,
    offloaded,
    place,
)
from mvw_hf.problems import explained
from mvw_hf.processor_files import processor_lacks
from mvw_hf.published import published
from mvw_hf.stand_in import is_stand_in
from mvw_hf.stand_in_processor import stand_in_processor
from mvw_hf.tiny import tiny_llava

__all__ = ["HuggingFace", "choose_device", "complete", "explained", "place"]

STAND_IN = (
    "The model's processor can't be had: a stand-in takes its place. Vision tokens are counted as "
    "its own would be, tokens of text are guessed at four characters each."
)


class HuggingFace(Adapter):
    """Any model that `AutoModelForImageTextToText` loads and whose config names an image token."""

    name = "hf"
    kinds: ClassVar[tuple[str, ...]] = ()
    """Values of `model_type` that transformers does not know and the adapter serves."""

    def load(self, spec: ModelSpec) -> LoadedModel:
        if spec.model is None:
            raise UsageProblem(
                "No model is named.",
                cause="The adapter `hf` serves any checkpoint, so it has no default one.",
                hint="mvw infer scene.png QUESTION --model Qwen/Qwen2.5-VL-7B-Instruct",
            )
        check_placement(spec)
        device = choose_device(spec.device)
        reads = not spec.random_weights
        with explained(spec.model, spec.revision, kinds=self.kinds, weights=reads):
            if reads:
                processor = self.load_processor(spec)
                model = self.load_model(spec)
            else:
                config = self.shape(spec)
                processor = self._processor_or_stand_in(spec, config)
                model = build_random(self.build, config, spec.dtype, device)
        if getattr(model.config, "image_token_id", None) is None:
            raise ModelProblem(
                f"{spec.model} names no image token.",
                cause=f"{type(model).__name__} is not a model that reads images as tokens.",
                hint="mvw list profiles",
            )
        return LoadedModel(
            adapter=self.name,
            name=spec.model,
            model=place(model, device, spec.model),
            processor=processor,
            spec=spec,
            revision=getattr(model.config, "_commit_hash", None),
        )

    def load_processor(self, spec: ModelSpec) -> Any:
        """Load the checkpoint's processor."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(spec.model, revision=spec.revision, **NO_CODE)

    def _processor_or_stand_in(self, spec: ModelSpec, config: Any) -> Any:
        try:
            return self.load_processor(spec)
        except (OSError, ValueError, http_error()) as error:
            name = str(spec.model)
            if of_the_hub(error, name, spec.revision) is None and not processor_lacks(
                name, spec.revision
            ):
                raise  # it is there, and damaged
            made = None if disk_is_full(error) else self.stand_in(config)
            if made is None:
                raise
            return made

    def stand_in(self, config: Any) -> Any:
        """Make a processor for random weights, where the checkpoint's own can't be had.

        It has to prepare images and count their tokens as the checkpoint's does. Its `tokenizer`
        is one of `stand_in.py`. None where that can't be done from the configuration.
        """
        if type(self).tokenize is not HuggingFace.tokenize:
            return None  # it calls a processor of its own kind
        return stand_in_processor(config)

    def load_model(self, spec: ModelSpec) -> Any:
        """Load the checkpoint's model, on the CPU or where the spec spreads it."""
        from transformers import AutoModelForImageTextToText

        return complete(AutoModelForImageTextToText, spec)

    def encode(
        self, loaded: LoadedModel, images: Sequence[Image], question: str
    ) -> dict[str, Tensor]:
        inputs = self.tokenize(loaded, images, loaded.spec.template.replace("{question}", question))
        model = loaded.model
        device = input_device(model)
        on_device = {
            name: value.to(device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        if images and not bool((on_device["input_ids"] == model.config.image_token_id).any()):
            raise ModelProblem(
                f"{loaded.name} was given an image and wrote no vision tokens for it.",
                cause="Its processor does not put the image token that its config names.",
                hint="mvw list profiles",
            )
        return on_device

    def tokenize(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> dict[str, Any]:
        """Run processor and chat template; models without a template get image tokens and text."""
        processor = loaded.processor
        if getattr(processor, "chat_template", None) is None:
            token = processor.tokenizer.convert_ids_to_tokens(loaded.model.config.image_token_id)
            prompt = f"{token}\n" * len(images) + text
            return dict(processor(text=prompt, images=list(images) or None, return_tensors="pt"))
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if loaded.spec.system is not None:
            system = [{"type": "text", "text": loaded.spec.system}]
            messages.insert(0, {"role": "system", "content": system})
        return dict(
            processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )

    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        entries = inputs["input_ids"][0] == loaded.model.config.image_token_id
        grids = self.grids(loaded, inputs, int(entries.sum()))
        images = None if grids is None else tuple(rows * columns for rows, columns in grids)
        return VisionLayout(entries, images=images, grids=grids)

    def grids(
        self, loaded: LoadedModel, inputs: Mapping[str, Tensor], tokens: int
    ) -> tuple[tuple[int, int], ...] | None:
        """Tell rows and columns of each image's vision tokens, of so many in all.

        None where they form no such grids, or that is not known.
        """
        return grids_of(loaded.model.config, loaded.processor, inputs, tokens)

    def areas(
        self, loaded: LoadedModel, images: Sequence[Image]
    ) -> Sequence[tuple[float, float, float, float]] | None:
        return areas_of(loaded.model.config, loaded.processor, images)

    def parse(self, text: str) -> Answer:
        return parse_thinking(text)

    def shape(self, spec: ModelSpec) -> Any:
        from transformers import AutoConfig

        assert spec.model is not None
        known = published(spec.model) if spec.revision is None else None
        if known is not None:
            return known
        with explained(spec.model, spec.revision, kinds=self.kinds):
            return AutoConfig.from_pretrained(spec.model, revision=spec.revision, **NO_CODE)

    def build(self, config: Any) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_config(config)

    def image_tokens(self, config: Any, width: int, height: int) -> int:
        return image_tokens(config, width, height)

    def remarks(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> list[str]:
        remarks = [STAND_IN] if is_stand_in(loaded.processor) else []
        parts = offloaded(loaded.model).get("cpu", 0)
        if parts:
            remarks.append(
                f"{parts} of {len(device_map_of(loaded.model))} parts of the model wait in the "
                "machine's memory and are sent to the GPU for every token, which is slow."
            )
        return remarks

    def tiny(self) -> LoadedModel:
        model, processor = tiny_llava()
        return LoadedModel(self.name, "tiny", model, processor, ModelSpec(model="tiny"))
