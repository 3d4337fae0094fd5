"""Kimi-VL's processor: images are scaled, padded and cut into patches; with PIL and torch alone.

As the checkpoint's `image_processing_kimi_vl.py` does it, whose code is not run. An image keeps its
resolution: only one of more patches than the limit is scaled down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Kimi_K25Config, PreTrainedTokenizerFast
from transformers.utils import cached_file

from mvw_cli import BadImage, ModelProblem
from mvw_kimi_vl.modeling import DEFAULT_PATCHES, KimiVLConfig
from mvw_kimi_vl.tokenizer import NEWER_TEMPLATE, OPENS, TEMPLATE, read_tokenizer

PLACEHOLDER = "<|media_pad|>"
_FILES = ("tiktoken.model", "tokenizer_config.json", "preprocessor_config.json")
_TEMPLATE = "chat_template.jinja"  # not all have it
MAX_PATCHES = 512
"""Per side; the rotary embedding of the vision tower is made for fewer."""
SPECIAL_TOKENS = {
    "[BOS]": 163584,
    "[EOS]": 163585,
    "<|im_end|>": 163586,
    "<|im_user|>": 163587,
    "<|im_assistant|>": 163588,
    "<|im_system|>": 163594,
    "<|im_middle|>": 163601,
    "<|media_start|>": 163602,
    "<|media_content|>": 163603,
    "<|media_end|>": 163604,
    "[UNK]": 163838,
    "[PAD]": 163839,
}
"""Source: `tokenizer_config.json` of Kimi-VL-A3B-Thinking-2506; the image token is the
configuration's."""


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """The settings of `preprocessor_config.json`."""

    patch_size: int = 14
    merge_kernel_size: tuple[int, int] = (2, 2)
    in_token_limit: int = DEFAULT_PATCHES
    """Most patches of an image before merging."""
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def size(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return how an image is scaled, then padded right and below: two times width and height.

        In px. `pad_input` is set in all published checkpoints.

        Raises:
            BadImage: a side has too many patches, or none.
        """
        patch = self.patch_size
        scaled_width, scaled_height = width, height
        patches = (width // patch) * (height // patch)
        if patches > self.in_token_limit:
            scale = math.sqrt(self.in_token_limit / patches)
            scaled_width, scaled_height = int(width * scale), int(height * scale)
        down, across = (patch * count for count in self.merge_kernel_size)
        final_width = -(-scaled_width // across) * across
        final_height = -(-scaled_height // down) * down
        sides = (final_width // patch, final_height // patch)
        if not min(sides) > 0 or max(sides) >= MAX_PATCHES:
            longest = (MAX_PATCHES - max(self.merge_kernel_size)) * patch
            pixels = int(width * height * (longest / max(width, height)) ** 2)
            raise BadImage(
                "An image can't be read by Kimi-VL.",
                cause=f"{width} x {height} px become {sides[0]} x {sides[1]} patches; "
                f"1 to {MAX_PATCHES - 1} a side can be read.",
                hint=f"mvw infer IMAGE QUESTION --set images.max_pixels={pixels}",
            )
        return scaled_width, scaled_height, final_width, final_height

    def vision_tokens(self, width: int, height: int) -> int:
        """Count the vision tokens of an image.

        Raises:
            BadImage: it can't be read.
        """
        _, _, final_width, final_height = self.size(width, height)
        merged = math.prod(self.merge_kernel_size)
        return (final_width // self.patch_size) * (final_height // self.patch_size) // merged

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Cut images into patches.

        Returns `pixel_values`  # (patches of all images, 3, p, p)  in [-1, 1], and
        `image_grid_thw`  # (images, 3): one frame, then rows and columns of patches.
        """
        cut = [self._patches(image) for image in images]
        return {
            "pixel_values": torch.cat([patches for patches, _, _ in cut]),
            "image_grid_thw": torch.tensor([[1, rows, columns] for _, rows, columns in cut]),
        }

    def _patches(self, image: Image.Image) -> tuple[Tensor, int, int]:
        width, height, final_width, final_height = self.size(*image.size)
        image = image.convert("RGB")
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (final_width, final_height))  # black, as published
        canvas.paste(image, (0, 0))
        pixels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(final_height, final_width, 3).permute(2, 0, 1) / 255
        mean, std = (
            torch.tensor(three)[:, None, None] for three in (self.image_mean, self.image_std)
        )
        size = self.patch_size
        rows, columns = final_height // size, final_width // size
        patches = ((pixels - mean) / std).view(3, rows, size, columns, size)
        return patches.permute(1, 3, 0, 2, 4).flatten(0, 1), rows, columns


@dataclass(frozen=True, slots=True)
class ScalingImageProcessor(ImageProcessor):
    """Kimi-K2.5's: a side of more than 512 patches is scaled down too."""

    in_token_limit: int = 16384

    def size(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the same of an image of any size."""
        patch, longest = self.patch_size, MAX_PATCHES * self.patch_size
        patches = max(1, width // patch) * max(1, height // patch)
        scale = min(1, math.sqrt(self.in_token_limit / patches), longest / width, longest / height)
        scaled = [min(max(1, int(side * scale)), longest) for side in (width, height)]
        down, across = (patch * count for count in self.merge_kernel_size)
        final_width, final_height = -(-scaled[0] // across) * across, -(-scaled[1] // down) * down
        return scaled[0], scaled[1], final_width, final_height


@dataclass(frozen=True, slots=True)
class Kind:
    """What prompts and images of Kimi-VL and Kimi-K2.5 differ in."""

    template: str
    images: type[ImageProcessor]
    renamed: Mapping[str, str]

    def tokens(self, ids: Mapping[str, int]) -> dict[str, int]:
        """Give ids of Kimi-VL's special tokens the names that these have here."""
        return {self.renamed.get(name, name): number for name, number in ids.items()}


KIMI_VL = Kind(TEMPLATE, ImageProcessor, {})
KIMI_K25 = Kind(NEWER_TEMPLATE, ScalingImageProcessor, OPENS)


def kind_of(config: Kimi_K25Config) -> Kind:
    """Tell the kind of a configuration."""
    return KIMI_VL if isinstance(config, KimiVLConfig) else KIMI_K25


def read_image_processor(folder: Path) -> ImageProcessor:
    """Read the settings of a checkpoint folder.

    Raises:
        OSError: `preprocessor_config.json` is missing.
    """
    told = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    newer = told.get("media_proc_cfg")
    if newer is not None:
        return ScalingImageProcessor(
            patch_size=newer["patch_size"],
            merge_kernel_size=(newer["merge_kernel_size"],) * 2,
            in_token_limit=newer["in_patch_limit"],
            image_mean=newer["image_mean"],
            image_std=newer["image_std"],
        )
    known = {field.name for field in fields(ImageProcessor)} & told.keys()
    return ImageProcessor(**{name: told[name] for name in known})


@dataclass(frozen=True, slots=True)
class KimiProcessor:
    """Tokenizer and image preparation of one checkpoint."""

    tokenizer: PreTrainedTokenizerFast
    image_processor: ImageProcessor

    @property
    def chat_template(self) -> str:
        """That of the tokenizer."""
        template: str = self.tokenizer.chat_template
        return template

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """Fill in the chat template, as the tokenizer does."""
        return self.tokenizer.apply_chat_template(messages, **options)

    def __call__(
        self, messages: list[dict[str, Any]], images: Sequence[Image.Image]
    ) -> dict[str, Tensor]:
        """Encode a conversation; each image's placeholder is repeated for its vision tokens.

        Raises:
            ModelProblem: the template writes more or fewer placeholders than there are images.
            BadImage: an image can't be read.
        """
        text = self.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pieces = text.split(PLACEHOLDER)
        if len(pieces) != len(images) + 1:
            raise ModelProblem(
                "The chat template does not say where the images stand.",
                cause=f"It writes {PLACEHOLDER} {len(pieces) - 1} times for {len(images)} images.",
                hint="mvw list profiles",
            )
        written = pieces[0]
        for image, piece in zip(images, pieces[1:], strict=True):
            written += PLACEHOLDER * self.image_processor.vision_tokens(*image.size) + piece
        encoded = self.tokenizer(written, return_tensors="pt", add_special_tokens=False)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        return {**inputs, **(self.image_processor(images) if images else {})}


def read_processor(name: str, revision: str | None = None) -> KimiProcessor:
    """Read tokenizer and image settings of a folder or hub id; this fetches their files.

    Raises:
        OSError: one is missing.
        ValueError: one is malformed.
    """
    file, *_ = [cached_file(name, needed, revision=revision) for needed in _FILES]
    cached_file(name, _TEMPLATE, revision=revision, _raise_exceptions_for_missing_entries=False)
    folder = Path(str(file)).parent
    return KimiProcessor(read_tokenizer(folder), read_image_processor(folder))


def fallback_processor(config: Kimi_K25Config) -> KimiProcessor | None:
    """Make a processor for random weights; None for a vocabulary without the special tokens."""
    from mvw_hf.fallback import fallback_tokenizer

    size = config.get_text_config().vocab_size
    if size <= max(SPECIAL_TOKENS.values()):
        return None
    kind = kind_of(config)
    tokenizer = fallback_tokenizer(
        size,
        {**kind.tokens(SPECIAL_TOKENS), PLACEHOLDER: config.image_token_id},
        template=kind.template,
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
    )
    vision = config.vision_config
    return KimiProcessor(
        tokenizer,
        kind.images(
            patch_size=vision.patch_size,
            merge_kernel_size=tuple(vision.merge_kernel_size),
            in_token_limit=config.in_token_limit,
        ),
    )
