"""The adapter for any decoder-only VLM of transformers.

Everything is read off the checkpoint: the architecture, the image token, the chat template, the
generation settings. It knows no model by name; adapters for one family override what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from mvw_cli import (
    Adapter,
    Answer,
    LoadedModel,
    ModelProblem,
    ModelSpec,
    OutOfMemory,
    UsageProblem,
    VisionLayout,
    parse_thinking,
)
from mvw_hf.image_tokens import image_tokens
from mvw_hf.published import published
from mvw_hf.tiny import tiny_llava


class HuggingFace(Adapter):
    """Any model that `AutoModelForImageTextToText` loads and whose config names an image token."""

    name = "hf"

    def load(self, spec: ModelSpec) -> LoadedModel:
        if spec.model is None:
            raise UsageProblem(
                "No model is named.",
                cause="The adapter `hf` serves any checkpoint, so it has no default one.",
                hint="mvw infer scene.png QUESTION --model Qwen/Qwen2.5-VL-7B-Instruct",
            )
        device = choose_device(spec.device)
        with explained(spec.model):
            processor = self.load_processor(spec)
            model = self.load_model(spec)
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

        return AutoProcessor.from_pretrained(spec.model, revision=spec.revision)

    def load_model(self, spec: ModelSpec) -> Any:
        """Load the checkpoint's model, on the CPU."""
        from transformers import AutoModelForImageTextToText

        return complete(AutoModelForImageTextToText, spec)

    def encode(
        self, loaded: LoadedModel, images: Sequence[Image], question: str
    ) -> dict[str, Tensor]:
        inputs = self.tokenize(loaded, images, loaded.spec.template.replace("{question}", question))
        model = loaded.model
        on_device = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
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
        ids = inputs["input_ids"][0]
        return VisionLayout(entries=ids == loaded.model.config.image_token_id)

    def parse(self, text: str) -> Answer:
        return parse_thinking(text)

    def shape(self, spec: ModelSpec) -> Any:
        from transformers import AutoConfig

        assert spec.model is not None
        known = published(spec.model) if spec.revision is None else None
        if known is not None:
            return known
        with explained(spec.model):
            return AutoConfig.from_pretrained(spec.model, revision=spec.revision)

    def build(self, config: Any) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_config(config)

    def image_tokens(self, config: Any, width: int, height: int) -> int:
        return image_tokens(config, width, height)

    def tiny(self) -> LoadedModel:
        model, processor = tiny_llava()
        return LoadedModel(self.name, "tiny", model, processor, ModelSpec(model="tiny"))


def choose_device(device: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that is there.

    Raises:
        UsageProblem: there is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device(device)
    there = {
        "cpu": True,
        "cuda": (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(chosen.type, False):
        raise UsageProblem(
            f"There is no device {device} here.",
            cause=f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices.",
            hint="mvw infer scene.png QUESTION --device cpu",
        )
    return chosen


def place(model: Any, device: torch.device, name: str) -> Any:
    """Put a model into eval mode on its device.

    Raises:
        OutOfMemory: its weights do not fit.
    """
    try:
        return model.eval().to(device)
    except torch.OutOfMemoryError as error:
        needed = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        raise OutOfMemory(
            f"{name} does not fit on {device}.",
            cause=f"Its weights take {needed:.1f} GiB in {model.dtype}.",
            hint=f"mvw infer scene.png QUESTION --model {name} --dtype bfloat16 --device cpu",
        ) from error


def complete(auto_class: Any, spec: ModelSpec) -> Any:
    """Load a checkpoint with a class of transformers, from safetensors only, and all of it.

    Raises:
        ModelProblem: the checkpoint lacks weights; transformers would make random ones up.
    """
    model, report = auto_class.from_pretrained(
        spec.model,
        revision=spec.revision,
        dtype=spec.dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking:
        raise ModelProblem(
            f"{spec.model} lacks weights of {type(model).__name__}.",
            cause=f"{len(lacking)} tensors are missing or of another shape; first: {lacking[0]}.",
            hint="mvw list profiles",
        )
    return model


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what transformers and the hub raise while loading into three lines.

    Raises:
        ModelProblem: the weights are gated, missing, unreachable or not of a kind that is served.
    """
    from huggingface_hub.errors import GatedRepoError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if _caused_by(error, GatedRepoError):
            raise ModelProblem(
                f"{name} is gated, and this machine has no access to it.",
                cause="Its owners want the terms accepted on its page, by a logged-in user.",
                hint="hf auth login",
            ) from error
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelProblem(
            f"{name} can't be loaded.",
            cause=cause,
            hint=f"hf download {name}" if _on_the_hub(name) else "mvw list profiles",
        ) from error


def _on_the_hub(name: str) -> bool:
    """Whether a name reads as ORG/NAME, and there is no folder of that name."""
    return name.count("/") == 1 and name[0] not in "./~" and not Path(name).exists()


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
