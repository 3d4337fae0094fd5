"""The adapter for any decoder-only VLM of transformers.

Everything is read off the checkpoint: the architecture, the image token, the chat template, the
generation settings. Adapters for one family override what differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_torchvision_available

from mvw_cli import (
    Adapter,
    Answer,
    BadImage,
    LoadedModel,
    ModelProblem,
    ModelSpec,
    MvwError,
    UsageProblem,
    VisionLayout,
    parse_thinking,
)
from mvw_hf.loading import (
    NO_CODE,
    build_random,
    check_files,
    check_kind,
    check_placement,
    choose_device,
    complete,
    device_map_of,
    explained,
    input_device,
    of_base,
    offloaded,
    place,
    read_published,
    said,
    with_processor,
    without_video,
)
from mvw_hf.packages import check_packages, needs_torchvision

# Classes of transformers are imported where they are used: each brings modules of its own, and
# adapters for one family need others.

Grids = tuple[tuple[int, int], ...]

_MERGED = (
    *("glm4v", "glm4v_moe", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
    *("qwen3_5", "qwen3_5_moe"),
)
"""Model types whose `image_grid_thw` counts the patches before they are merged, and whose merged
tokens go row by row (`get_image_features` of their model files)."""
_SQUARE = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Vision towers of LLaVA, and the selection of features that leaves the patches and nothing else:
CLIP's class token comes first and is dropped, SigLIP has none."""
_INPUTS = ("image_token", "video_token", "audio_token", "boi_token")
"""What processors, tokenizers and configurations call the tokens in whose place images go."""
THINK = "<think>"
CHANNEL = ("<|channel>", "<channel|>")
"""Between which Gemma 4 thinks; the name of the channel comes first, on a line of its own."""
_CHANNEL_NAME = "thought\n"
FALLBACK = (
    "The model's processor can't be had: a fallback takes its place. Vision tokens are counted as "
    "its own would be, tokens of text are guessed at four characters each."
)


class HuggingFace(Adapter):
    """Any model that `AutoModelForImageTextToText` loads and whose config names an image token."""

    name = "hf"
    published: ClassVar[Path] = Path(__file__).parent / "published"
    """The `config.json` of checkpoints, by hub id, that are known without a network."""
    checkpoint: ClassVar[str | None] = None
    """The hub id whose configuration is meant where a spec names no model, and made small."""

    def load(self, spec: ModelSpec) -> LoadedModel:
        if spec.model is None:
            raise no_model()
        check_placement(spec)
        device = choose_device(spec.device)
        reads = not spec.random_weights
        with explained(spec.model, spec.revision, weights=reads):
            if reads:
                # An adapter that loads its own knows what its names stand for.
                if type(self).load_model is HuggingFace.load_model:
                    check_files(spec, weights=True)
                processor = self.load_processor(spec)
                check_template(processor, spec)
                if type(self).tokenize is HuggingFace.tokenize:
                    check_image_place(processor, spec)
                model = self.load_model(spec)
            else:
                config = self.shape(spec)
                processor = self._processor_or_fallback(spec, config)
                model = build_random(self.build, config, spec.dtype, device)
        check_image_token(model, spec.model)
        return LoadedModel(
            adapter=self.name,
            name=spec.model,
            model=place(model, device, spec.model),
            processor=processor,
            spec=spec,
            revision=getattr(model.config, "_commit_hash", None),
        )

    def model_class(self) -> Any:
        """Return the class, or auto class, of transformers that holds the model."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    def load_processor(self, spec: ModelSpec) -> Any:
        """Load the checkpoint's processor."""
        from transformers import AutoProcessor

        check_kind(self.model_class(), spec)
        check_packages(str(spec.model), self.missing_packages(spec))
        spec = with_processor(spec)
        with without_video():
            processor = AutoProcessor.from_pretrained(spec.model, revision=spec.revision, **NO_CODE)
        template = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
        if getattr(processor, "chat_template", None) is None and template is not None:
            # In `tokenizer_config.json` alone: transformers gives it to the tokenizer.
            processor.chat_template = template
            if not takes_images(processor):
                processor.chat_template = None  # that of the language model
        return processor

    def _processor_or_fallback(self, spec: ModelSpec, config: PreTrainedConfig) -> Any:
        try:
            return self.load_processor(spec)
        except Exception as error:
            from mvw_hf.problems import processor_is_missing

            if not processor_is_missing(error, str(spec.model), spec.revision):
                raise  # it is there, and damaged
            made = self.fallback_processor(config)
            if made is None:
                raise
            return made

    def fallback_processor(self, config: PreTrainedConfig) -> Any:
        """Make a processor for random weights, where the checkpoint's own can't be had.

        It has to prepare images and count their tokens as the checkpoint's does. Its `tokenizer`
        is one of `fallback.py`. None where that can't be done from the configuration.
        """
        if type(self).tokenize is not HuggingFace.tokenize:
            return None  # it calls a processor of its own kind
        from mvw_hf.fallback import fallback_processor

        return fallback_processor(config)

    def load_model(self, spec: ModelSpec) -> PreTrainedModel:
        """Load the checkpoint's model, on the CPU or where the spec spreads it."""
        return complete(self.model_class(), spec)

    def encode(
        self, loaded: LoadedModel, images: Sequence[Image], question: str
    ) -> dict[str, Tensor]:
        try:
            encoder, text = _asked(loaded, question)
            inputs = self.tokenize(encoder, images, text)
        except (MvwError, MemoryError):
            raise
        except Exception as error:
            raise _not_prepared(loaded, images, error) from error
        model = loaded.model
        device = input_device(model)
        on_device = {
            name: value.to(device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        ids, image_id = on_device.get("input_ids"), model.config.image_token_id
        rows = getattr(model.get_input_embeddings(), "num_embeddings", math.inf)
        if ids is None or bool(((ids >= rows) & (ids != image_id)).any()):
            raise ModelProblem(
                f"The tokenizer of {loaded.name} belongs to another model.",
                cause="It writes tokens that the weights have no embedding of.",
                hint="mvw list profiles",
            )
        if images and not bool((ids == image_id).any()):
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
            prompt = self.prompt_text(loaded, images, text)
            return dict(processor(text=prompt, images=list(images) or None, return_tensors="pt"))
        return dict(
            processor.apply_chat_template(
                conversation(loaded.spec.system, images, text),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )

    def prompt(
        self, loaded: LoadedModel, images: Sequence[Image], question: str
    ) -> dict[str, Tensor]:
        encoder, asked = _asked(loaded, question)
        text = self.prompt_text(encoder, images, asked)
        tokenizer = getattr(encoder.processor, "tokenizer", encoder.processor)
        # As processors do it: a template that begins with the BOS token has it already.
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        encoded = tokenizer(text, add_special_tokens=not begun, return_tensors="pt")
        return {"input_ids": encoded["input_ids"]}

    def prompt_text(self, loaded: LoadedModel, images: Sequence[Image], text: str) -> str:
        """Fill in the chat template, with one placeholder for each image."""
        processor = loaded.processor
        if getattr(processor, "chat_template", None) is None:
            token = processor.tokenizer.convert_ids_to_tokens(loaded.model.config.image_token_id)
            if loaded.model.config.model_type == "gemma3":  # whose processor writes the rest
                token = getattr(processor, "boi_token", token)
            return f"{token}\n" * len(images) + text
        filled: str = processor.apply_chat_template(
            conversation(loaded.spec.system, images, text),
            add_generation_prompt=True,
            tokenize=False,
        )
        return filled

    def processor(self, spec: ModelSpec) -> Any:
        if spec.model is None:
            raise no_model()
        with explained(spec.model, spec.revision, weights=False):
            if spec.random_weights:
                processor = self._processor_or_fallback(spec, self.shape(spec))
            else:
                processor = self.load_processor(spec)
            check_template(processor, spec)
        return processor

    def vision(self, loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> VisionLayout:
        entries = inputs["input_ids"][0] == loaded.model.config.image_token_id
        grids = self.grids(loaded, inputs, int(entries.sum()))
        images = None if grids is None else tuple(rows * columns for rows, columns in grids)
        return VisionLayout(entries, images=images, grids=grids)

    def grids(self, loaded: LoadedModel, inputs: Mapping[str, Tensor], tokens: int) -> Grids | None:
        """Return rows and columns of each image's vision tokens, of so many in all.

        None where they form no such grids, or that is not known.
        """
        config = loaded.model.config
        settings = getattr(loaded.processor, "image_processor", None)
        if not tokens:
            return ()
        if config.model_type in _MERGED and "image_grid_thw" in inputs:
            merge = config.vision_config.spatial_merge_size
            found = merged_grids(inputs["image_grid_thw"], (merge, merge))
        elif config.model_type == "llava" and "pixel_values" in inputs:
            found = _square_grids(config, len(inputs["pixel_values"]))
        elif config.model_type == "gemma3" and not getattr(settings, "do_pan_and_scan", True):
            # Patches are pooled square by square, and go row by row (`Gemma3MultiModalProjector`).
            side = math.isqrt(config.mm_tokens_per_image)
            found = ((side, side),) * len(inputs["pixel_values"])
        elif config.model_type == "gemma4" and "image_position_ids" in inputs:
            # Columns and rows of patches; padding is at -1.
            pool = config.vision_config.pooling_kernel_size
            ends = (inputs["image_position_ids"].amax(dim=1) + 1) // pool
            found = tuple((rows, columns) for columns, rows in ends.tolist())
        else:
            return None
        return found if sum(rows * columns for rows, columns in found) == tokens else None

    def areas(
        self, loaded: LoadedModel, images: Sequence[Image]
    ) -> Sequence[tuple[float, float, float, float]] | None:
        from mvw_hf.image_processing import areas_of

        return areas_of(loaded.model.config, loaded.processor, images)

    def parse(self, text: str) -> Answer:
        opening, closing = CHANNEL
        if opening not in text and closing not in text:
            return parse_thinking(text)
        found = parse_thinking(text, opening=opening, closing=closing)
        if _CHANNEL_NAME.startswith(found.reasoning):  # empty, or cut in the name
            return replace(found, reasoning="")
        return replace(found, reasoning=found.reasoning.removeprefix(_CHANNEL_NAME).strip())

    def opening(self, loaded: LoadedModel) -> str:
        """Templates of models that always think end in the tag that opens it."""
        prompt = filled_in(loaded.processor, loaded.spec.system)
        return THINK if prompt.rstrip().endswith(THINK) else ""

    def shape(self, spec: ModelSpec) -> PreTrainedConfig:
        from transformers import CONFIG_MAPPING, AutoConfig

        known = self.published_config(spec)
        if known is not None and known["model_type"] in CONFIG_MAPPING:
            return AutoConfig.for_model(known.pop("model_type"), **known)
        with explained(str(spec.model), spec.revision):
            check_files(spec, weights=False)
            check_kind(self.model_class(), spec)
            base = of_base(spec)
            config = AutoConfig.from_pretrained(base.model, revision=base.revision, **NO_CODE)
            return getattr(config, "thinker_config", config)  # of a model that also speaks

    def missing_packages(self, spec: ModelSpec) -> Sequence[str]:
        in_its_own_way = type(self).load_processor is not HuggingFace.load_processor
        if in_its_own_way or is_torchvision_available():  # most have it, and nothing is read then
            return ()
        if self.published_config(spec) is None:
            spec = of_base(spec)
        told = self.config_dict(spec)
        return ("torchvision",) if needs_torchvision(str(spec.model), spec.revision, told) else ()

    def config_dict(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the content of a checkpoint's `config.json`, by heart or as it lies there."""
        told = self.published_config(spec)
        if told is None:
            base = of_base(spec)
            told, _ = PreTrainedConfig.get_config_dict(str(base.model), revision=base.revision)
        return told

    def published_config(self, spec: ModelSpec) -> dict[str, Any] | None:
        """Return the content of a checkpoint's `config.json` where it is known by heart."""
        name = spec.model or self.checkpoint
        return None if name is None or spec.revision else read_published(self.published, name)

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        made = self.model_class()
        return made.from_config(config) if hasattr(made, "from_config") else made(config)

    def image_tokens(self, config: PreTrainedConfig, width: int, height: int) -> int:
        from mvw_hf.image_processing import image_tokens

        return image_tokens(config, width, height)

    def text_tokens(self, spec: ModelSpec, config: PreTrainedConfig) -> Callable[[str, int], int]:
        with explained(str(spec.model), spec.revision):
            processor = self.load_processor(spec)
        model = SimpleNamespace(config=config)
        loaded = LoadedModel(self.name, str(spec.model), model, processor, spec)
        blank = new_image("RGB", (64, 64))  # a square: the most tiles, where a prompt marks them

        def count(question: str, images: int) -> int:
            encoder, text = _asked(loaded, question)
            ids = self.tokenize(encoder, [blank] * images, text)["input_ids"]
            return int((ids != config.image_token_id).sum())

        return count

    def remarks(self, loaded: LoadedModel, images: Sequence[Image], question: str) -> list[str]:
        tokenizer = getattr(loaded.processor, "tokenizer", None)
        remarks = [FALLBACK] if getattr(tokenizer, "is_fallback", False) else []
        if not remarks and getattr(loaded.processor, "chat_template", "") is None:
            remarks.append("The model has no chat template: it reads images and question alone.")
        parts = offloaded(loaded.model).get("cpu", 0)
        if parts:
            remarks.append(
                f"{parts} of {len(device_map_of(loaded.model))} parts of the model wait in the "
                "machine's memory and are sent to the GPU for every token, which is slow."
            )
        return remarks

    def tiny(self) -> LoadedModel:
        """Make the configuration of `checkpoint` small; a LLaVA where there is none."""
        from mvw_hf.tiny import tiny_llava, tiny_of

        if self.checkpoint is None:
            model, processor = tiny_llava()
            return LoadedModel(self.name, "tiny", model, processor, ModelSpec(model="tiny"))
        spec = ModelSpec(self.checkpoint)
        if type(self).shape is HuggingFace.shape and self.published_config(spec) is None:
            raise _no_tiny(
                f"The configuration of {self.checkpoint} is not known: put its config.json into "
                f"your package as published/{self.checkpoint}.json, name the folder as `published`"
            )
        model, processor = tiny_of(self.shape(spec), self.build)
        if processor is None:
            raise _no_tiny(f"How {model.config.model_type} prepares images is not known here")
        return LoadedModel(self.name, "tiny", model, processor, ModelSpec(model="tiny"))

    def tiny_checkpoint(self, folder: Path) -> None:
        from mvw_hf.tiny_checkpoint import write_tiny_qwen

        write_tiny_qwen(folder)


def no_model() -> UsageProblem:
    """Make the error of a spec that names no model."""
    return UsageProblem(
        "No model is named.",
        cause="The adapter `hf` serves any checkpoint, so it has no default one.",
        hint="mvw infer IMAGE QUESTION --model Qwen/Qwen2.5-VL-7B-Instruct",
    )


def _no_tiny(lacking: str) -> ModelProblem:
    cause = f"{lacking}, or override tiny() with a small model and its processor"
    return ModelProblem("There is no tiny model.", cause=cause, hint="mvw list adapters")


def _not_prepared(loaded: LoadedModel, images: Sequence[Image], error: Exception) -> MvwError:
    """Tell whose fault it is that a processor has failed: an image's, or the processor's own."""
    prepare = getattr(loaded.processor, "image_processor", None)
    try:
        for image in images:
            if prepare is not None:
                prepare(images=[image], return_tensors="pt")
    except Exception:
        return BadImage(
            f"{loaded.name} takes no image of {image.width} x {image.height} pixels.",
            cause=said(error),
            hint="mvw list profiles",
        )
    return ModelProblem(
        f"The processor of {loaded.name} can't prepare the question.",
        cause=said(error),
        hint="mvw list profiles",
    )


def check_image_token(model: Any, name: str) -> None:
    """Refuse a model whose vision can't be told from its text.

    Raises:
        ModelProblem: its configuration names no image token.
    """
    if not isinstance(getattr(model.config, "image_token_id", None), int):
        cause = (
            "Its configuration names no token that stands in the prompt for a piece of an image, "
            "so which entries of its cache are vision can't be told."
        )
        if getattr(model.config, "is_encoder_decoder", False):
            cause = "It is an encoder-decoder; only decoder-only models are served."
        raise ModelProblem(f"{name} names no image token.", cause=cause, hint="mvw list profiles")


def check_template(processor: Any, spec: ModelSpec) -> None:
    """Fill in a chat template before the weights are read, which may take minutes.

    Raises:
        UsageProblem: it has no place for the system prompt.
        ModelProblem: it can't be filled in at all.
    """
    template = getattr(processor, "chat_template", None)
    if template is None and spec.system is not None:
        raise UsageProblem(
            f"{spec.model} has no chat template, and so no place for a system prompt.",
            cause="prompt.system is set",
            hint="mvw infer IMAGE QUESTION --set prompt.system=null",
        )
    try:
        filled_in(processor, None)
    except MemoryError:
        raise
    except Exception as error:  # it is a program: of types, of numbers, of what is not there
        raise ModelProblem(
            f"The chat template of {spec.model} can't be filled in.",
            cause=said(error),
            hint="mvw list profiles",
        ) from None
    try:
        filled_in(processor, spec.system)
    except Exception as error:
        raise UsageProblem(
            f"The chat template of {spec.model} takes no system prompt.",
            cause=f"prompt.system is set; it says: {' '.join(str(error).split())}",
            hint="mvw infer IMAGE QUESTION --set prompt.system=null",
        ) from None


def check_image_place(processor: Any, spec: ModelSpec) -> None:
    """Refuse a chat template that leaves images out.

    Raises:
        ModelProblem: it does.
    """
    if getattr(processor, "chat_template", None) is not None and not takes_images(processor):
        raise ModelProblem(
            f"The chat template of {spec.model} has no place for images.",
            cause="With an image and without one it writes the same prompt.",
            hint="mvw list profiles",
        )


def takes_images(processor: Any) -> bool:
    """Whether a processor's chat template has a place for images."""
    try:
        with_image, without = (filled_in(processor, None, images) for images in (1, 0))
    except Exception:  # of text alone, it may join or strip what is a list
        return False
    return with_image != without and "'image'" not in with_image


def filled_in(processor: Any, system: str | None, images: int = 1) -> str:
    """Fill in the chat template with images and some question; empty where there is none."""
    if getattr(processor, "chat_template", None) is None:
        return ""
    messages = conversation(system, [None] * images, "?")
    prompt: str = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    return prompt


def _asked(loaded: LoadedModel, question: str) -> tuple[LoadedModel, str]:
    """Put a question into the template; return by what and which text to encode.

    Raises:
        UsageProblem: it holds a control token that can't be read as text.
    """
    text = loaded.spec.template.replace("{question}", question)
    prompt = f"{loaded.spec.system or ''}\n{text}"
    held = {token: one for token, one in control_tokens(loaded).items() if token in prompt}
    encoder = loaded
    if held:
        from mvw_hf.control_tokens import as_text

        encoder, text = as_text(loaded, text, held)
    return encoder, text


def control_tokens(loaded: LoadedModel) -> dict[str, bool]:
    """List the control tokens of a model, each with whether images or the like go in its place."""
    processor, config = loaded.processor, loaded.model.config
    tokenizer = getattr(processor, "tokenizer", None)
    ids = {getattr(config, f"{name}_id", None) for name in _INPUTS}
    found = {
        token.content: number in ids
        for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if token.special or number in ids
    }
    named = (getattr(one, name, None) for one in (processor, tokenizer) for name in _INPUTS)
    return found | {token: True for token in named if token}


def conversation(system: str | None, images: Sequence[Any], text: str) -> list[dict[str, Any]]:
    """Write the messages of a chat template: the system prompt, if any, then images and text."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


def merged_grids(grid: Tensor, merge: tuple[int, int]) -> Grids:
    """Turn frames, rows and columns of patches, # (images, 3), into those of merged tokens."""
    return tuple(
        (frames * rows // merge[0], columns // merge[1]) for frames, rows, columns in grid.tolist()
    )


def _square_grids(config: PreTrainedConfig, images: int) -> Grids:
    vision = config.vision_config
    if _SQUARE.get(vision.model_type) != config.vision_feature_select_strategy:
        return ()
    side = vision.image_size // vision.patch_size
    return ((side, side),) * images
