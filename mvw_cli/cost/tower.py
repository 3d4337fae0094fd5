"""FLOPs of looking at one image: vision tower and projector, from a model without weights.

How many patches stand behind a vision token, and how far each of them looks, follows from the
configuration as transformers' towers read it. Running the tower on meta tensors under
`FlopCounterMode` would not do: some towers choose their tiles by a mask, so that shapes depend on
data, and a bound needs the FLOPs of any number of vision tokens. The tests hold it against that
counter, for every family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

_PER_TOKEN = ("merger", "projector", "connector", "downsample")
"""Parts of names whose weights work on vision tokens; all others work on patches."""
_EMBED = re.compile(r"patch_(embed|conv)")
"""Names of what reads pixels."""
_TABLE = re.compile(r"pos(ition(al)?)?_emb|tile_embedding|(class|cls|mask)_(token|embedding)")
"""Names of what is added to patches, not multiplied with them."""
_MULTIPLE = 8
"""Mllama's tower pads the patches of a tile to a multiple of this (`MllamaVisionModel.forward`)."""


@dataclass(frozen=True, slots=True)
class Tower:
    """What the vision tower and the projector multiply."""

    embed_parameters: int
    """In the matrix that makes a patch of pixels."""
    patch_parameters: int
    """In matrices that every patch goes through, class tokens and padding too."""
    token_parameters: int
    """In matrices that every vision token goes through: merger or projector."""
    width: int
    """Of queries and keys, over all heads."""
    full_layers: int
    """Layers whose patches look at all of the image, or of the tile."""
    window_layers: int = 0
    window_patches: int = 0
    patches_per_token: float = 1.0
    """Of an image that is read as one."""
    tile_patches: int | None = None
    """Patches of a tile, which the tower reads apart; None where it reads the image as one."""
    tile_tokens: float = 0.0
    """Vision tokens of a tile, at most."""
    extra_patches: int = 0
    """Class token and padding that each tile carries besides."""
    fixed_tiles: int | None = None
    """Tiles that it reads at every image, padding included, and all as one; None: as needed."""

    def flops(self, tokens: int) -> float:
        """Count the FLOPs of an image of so many vision tokens: 2 for a multiply and add.

        Images are taken to fill their tiles and windows.
        """
        if not tokens:
            return 0.0
        tokens = self.made(tokens)
        real, patches, span = self._patches(tokens)
        linear = 2 * (
            real * self.embed_parameters
            + patches * self.patch_parameters
            + tokens * self.token_parameters
        )
        seen = self.full_layers * span + self.window_layers * min(span, self.window_patches)
        return float(linear + 4 * self.width * patches * seen)

    def made(self, tokens: int) -> int:
        """Count the vision tokens that are computed, padding included, where so many are kept."""
        return tokens if not self.states else math.ceil(tokens / self.states) * self.states

    @property
    def states(self) -> int:
        """Vision states that are made of every image whatever its size; 0 where that depends."""
        if self.fixed_tiles is None or self.tile_patches is None:
            return 0
        return self.fixed_tiles * (self.tile_patches + 1)  # with its class token

    def _patches(self, tokens: int) -> tuple[float, float, float]:
        """Count the patches of so many vision tokens, the same with what is added to them, and how
        many each of them looks at."""
        if self.tile_patches is None:
            patches = tokens * self.patches_per_token
            return patches, patches, patches
        tile = self.tile_patches + self.extra_patches
        if self.fixed_tiles is not None:
            images = math.ceil(tokens / self.states)
            real, whole = self.fixed_tiles * self.tile_patches, self.fixed_tiles * tile
            return images * real, images * whole, whole
        tiles = math.ceil(round(tokens / self.tile_tokens, 6))
        return tiles * self.tile_patches, tiles * tile, tile


def tower_of(model: Any) -> Tower:
    """Read the tower off a model, on the meta device or not."""
    config, vision = model.config, model.config.vision_config
    language = {id(p) for p in model.get_decoder().parameters()}
    head = model.get_output_embeddings()
    language |= {id(p) for p in head.parameters()} if head is not None else set()
    named = [(name, p) for name, p in model.named_parameters() if id(p) not in language]
    matrices = list(_matrices(named))
    token = sum(n for name, n in matrices if any(part in name for part in _PER_TOKEN))
    embed = sum(n for name, n in matrices if _EMBED.search(name))
    layers = int(_first(vision, "num_hidden_layers", "depth"))
    layers += int(getattr(vision, "num_global_layers", 0))
    full = getattr(vision, "fullatt_block_indexes", None)
    tower = Tower(
        embed_parameters=embed,
        patch_parameters=sum(n for _, n in matrices) - token - embed,
        token_parameters=token,
        width=int(_first(vision, "embed_dim", "hidden_size")),
        full_layers=layers if full is None else len(full),
        window_layers=0 if full is None else layers - len(full),
        window_patches=0 if full is None else (vision.window_size // _side(vision.patch_size)) ** 2,
    )
    return replace(tower, **_layout(config, vision, [name for name, _ in named]))


def _matrices(named: list[tuple[str, Any]]) -> Iterator[tuple[str, int]]:
    for name, parameter in named:
        if parameter.ndim > 1 and not _TABLE.search(name):
            yield name, parameter.numel()


def _layout(config: Any, vision: Any, names: list[str]) -> dict[str, Any]:
    """Read how patches make tiles and tokens: fields of `Tower`."""
    for holder in (vision, config):
        merge = getattr(holder, "merge_kernel_size", None)
        merge = merge or getattr(holder, "spatial_merge_size", None)
        if merge:
            across, down = merge if isinstance(merge, list | tuple) else (merge, merge)
            return {"patches_per_token": float(across * down)}
    side = _side(vision.image_size) // _side(vision.patch_size)
    tile = side**2
    fixed = getattr(vision, "max_num_tiles", None)
    if fixed is not None:
        padded = -(-(tile + 1) // _MULTIPLE) * _MULTIPLE
        return {"tile_patches": tile, "extra_patches": padded - tile, "fixed_tiles": int(fixed)}
    tokens = float(getattr(config, "mm_tokens_per_image", 0))
    if not tokens:
        shrink = getattr(config, "scale_factor", None) or 1 / getattr(config, "downsample_ratio", 1)
        tokens = tile / shrink**2
    if any(name.endswith("image_newline") for name in names):
        tokens += side  # LLaVA-OneVision's token at the end of each row
    extra = int(any(re.search(r"(class|cls)_(token|embedding)", name) for name in names))
    return {"tile_patches": tile, "tile_tokens": tokens, "extra_patches": extra}


def _first(config: Any, *names: str) -> Any:
    return next(getattr(config, name) for name in names if getattr(config, name, None) is not None)


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)
