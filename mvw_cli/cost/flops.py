"""FLOPs of a prefill and of a decode step, from a model on the meta device.

A multiplication and an addition are 2 FLOPs. Counted are the products of matrices and those of
the attention, over the entries that causality lets a token see; norms, softmax, rotations and
lookups, below a hundredth in models of a billion weights, are not, nor is what updates a recurrent
state, a few hundredths of its layer: with or without the vision it is the same.

A vision tower is counted from its configuration, as transformers' towers read it: some choose their
tiles by a mask, so that `FlopCounterMode` can't run them on the meta device, and a bound needs any
number of vision tokens. The tests hold it against that counter, for every family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mvw_cli.adapter import Adapter
from mvw_cli.cost.shape import (
    CacheLayer,
    Role,
    Shape,
    counting,
    cross_layers,
    language_parameters,
    on_meta,
    shape_of_model,
)

_PER_TOKEN = ("merger", "projector", "connector", "downsample", "vision_adapter", "embed_vision")
"""Parts of names whose weights work on vision tokens; all others work on patches."""
_EMBED = re.compile(r"patch_(embed|conv)")
_WITHIN = "vit_merger"
"""MiniCPM-V's merger between two layers of its tower: patches go through it, not vision tokens."""
"""Names of what reads pixels."""
_MERGES = ("merge_kernel_size", "spatial_merge_size", "downsample_factor", "pooling_kernel_size")
"""What configurations call the patches in a row of those that make one vision token."""
_TABLE = re.compile(r"pos(ition(al)?)?_emb|tile_embedding|(class|cls|mask)_(token|embedding)")
"""Names of what is added to patches, not multiplied with them."""
_POOLING = re.compile(r"image_pooling_2d\.[kv]_proj\.weight")
_POOLED = 4
"""Patches that Molmo 2's processor has pooled into a token; it is no part of the configuration."""
_MULTIPLE = 8
"""Mllama's tower pads the patches of a tile to a multiple of this (`MllamaVisionModel.forward`)."""


@dataclass(frozen=True, slots=True)
class Tower:
    """What the vision tower and the projector multiply."""

    embed_parameters: int
    """In the matrix that makes a patch of pixels."""
    patch_parameters: float
    """In matrices that every patch goes through, class tokens and padding too."""
    token_parameters: int
    """In matrices that every vision token goes through: merger or projector."""
    width: int
    """Of queries and keys, over all heads."""
    full_layers: float
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


@dataclass(frozen=True, slots=True)
class Heads:
    """FLOPs of one query at one entry, in one layer of the language model."""

    pair: int
    folded: int
    """With the query turned to the space of MLA's latents, as a decode step attends to them in the
    cache; the same as `pair` without latents."""


@dataclass(frozen=True, slots=True)
class Flops:
    """What one configuration computes."""

    shape: Shape
    tower: Tower | None
    """None for a model without one."""
    heads: Heads
    token: int
    """Matrix weights that a token goes through in all layers that read the sequence: with the
    routed experts that it takes, without the output head."""
    head: int
    """Weights of the output head, which only the last token of a prompt needs."""
    cross: int
    """Weights that a token goes through in cross-attention layers: queries, output, MLP."""
    cross_attention: int
    """Those of `cross` in the attention itself."""
    cross_states: int
    """Weights of cross-attention layers that a vision state goes through, once."""
    token_by_layer: tuple[int, ...] = ()
    """Those of `token`, layer by layer; empty: as many in each."""
    widths: tuple[float, ...] = ()
    """How wide the heads of each layer are, in parts of those of `heads`; empty: all as these."""

    def prefill(
        self,
        text: int,
        vision: int,
        read: Sequence[int] | None = None,
        *,
        keep_mlp: bool = False,
    ) -> float:
        """Count the FLOPs of reading one prompt: its image, and `text` tokens around it.

        Args:
            read: vision tokens that each layer reads, of those that hold any; all without it.
            keep_mlp: as in `step`, of layers that read none.
        """
        own = [layer for layer in self.shape.layers if not layer.cross]
        crossed = len(self.shape.layers) - len(own)
        linear, pairs = float(self.head), 0.0
        if crossed:
            made = self.tower.made(vision) if self.tower else vision
            linear += self.token * text
            pairs += sum(_pairs(layer, text) for layer in own)
            for states in (read or [vision] * crossed) if vision else ():
                seen = states + made - vision if states else 0  # padding is read along
                through = self.cross if states else (self.cross - self.cross_attention) * keep_mlp
                linear += (through * text + self.cross_states * seen) / crossed
                pairs += text * seen
        else:
            each = self.token_by_layer or (self.token / len(own),) * len(own)
            linear += (self.token - sum(each)) * (text + vision)
            left, widths = iter(read or [vision] * len(own)), self.widths or (1.0,) * len(own)
            for layer, weights, width in zip(own, each, widths, strict=True):
                if layer.shared:  # nothing comes of it but the first token: its last row will do
                    linear += weights
                    pairs += width * (layer.kept(text + vision - 1) + 1)
                    continue
                # A recurrent one reads all that there is.
                some = next(left) if layer.elements else vision
                linear += weights * (text + some)
                pairs += width * _pairs(layer, text + some)
        looked = self.tower.flops(vision) if self.tower else 0.0
        return looked + 2.0 * linear + float(self.heads.pair * pairs)

    def step(
        self,
        text: int,
        vision: int,
        sequences: int = 1,
        *,
        keep_mlp: bool = False,
    ) -> float:
        """Count the FLOPs of a decode step that attends to so many entries in each sequence.

        Args:
            text: entries besides the vision, the newest token's included.
            vision: vision tokens that are held; 0 once withdrawn.
            keep_mlp: whether cross-attention layers without vision keep their gated MLP.
        """
        cross_vision = vision if self.shape.has_cross_attention else 0
        linear = self.token + self.head
        if cross_vision:
            linear += self.cross
        elif keep_mlp:
            linear += self.cross - self.cross_attention
        sequence = text + vision - cross_vision
        widths = self.widths or (1.0,) * len(self.shape.layers)
        seen = sum(
            width * (cross_vision if layer.cross else layer.kept(sequence - 1) + 1)
            for layer, width in zip(self.shape.layers, widths, strict=True)
            if layer.read
        )
        return float(sequences * (2 * linear + self.heads.folded * seen))


def flops_of(adapter: Adapter, config: Any) -> Flops:
    """Count the model of a configuration; nothing is downloaded or allocated.

    Raises:
        ModelProblem: the model can't be built or run on the meta device.
    """
    model = on_meta(adapter, config)
    with counting(model):
        return _flops(model)


def _flops(model: Any) -> Flops:
    text = model.config.get_text_config()
    shape = shape_of_model(model)
    matrices = [one for one in language_parameters(model, cross_layers(text)) if one.matrix]

    def count(*roles: Role) -> int:
        return sum(one.count for one in matrices if one.role in roles)

    weights, layers = shape.weights, shape.layers
    taken = weights.experts_per_token / weights.experts_total
    by_layer = [0.0] * len(layers)
    for one in matrices:
        if one.layer is not None:
            by_layer[one.layer] += one.count * (taken if one.role == "experts" else 1)
    return Flops(
        shape=shape,
        tower=tower_of(model) if getattr(model.config, "vision_config", None) else None,
        heads=_heads(text),
        token=count("layers") + round(weights.experts.numbers * taken),
        head=count("head"),
        cross=count("cross_attention", "cross_mlp"),
        cross_attention=count("cross_attention"),
        cross_states=count("cross_states"),
        token_by_layer=() if any(layer.cross for layer in layers) else tuple(map(round, by_layer)),
        widths=_widths(text),
    )


def _heads(text: Any) -> Heads:
    count = int(text.num_attention_heads)
    latent = getattr(text, "kv_lora_rank", None)
    if latent:
        rotary = int(text.qk_rope_head_dim)
        own = int(text.qk_nope_head_dim) + rotary + int(text.v_head_dim)
        return Heads(2 * count * own, 2 * count * (2 * int(latent) + rotary))
    size = next(iter(_head_sizes(text)), 0) or text.hidden_size // count
    return Heads(4 * count * size, 4 * count * size)


def _widths(text: Any) -> tuple[float, ...]:
    sizes = _head_sizes(text)
    return tuple(size / sizes[0] for size in sizes) if len(set(sizes)) > 1 else ()


def _head_sizes(text: Any) -> list[int]:
    """List the width of a head, layer by layer where they may differ; 0: as ever."""
    each = getattr(text, "per_layer_config", None) or [text]
    return [int(getattr(one, "head_dim", None) or 0) for one in each]


def _pairs(layer: CacheLayer, sequence: int) -> int:
    """Count pairs of a token and an entry that it sees, over a whole prompt."""
    if not layer.read:
        return 0
    full = sequence if layer.window is None else min(sequence, layer.window)
    return full * (full + 1) // 2 + (sequence - full) * full


# -- the vision tower -------------------------------------------------------------------------


def tower_of(model: Any) -> Tower:
    """Read the tower off a model, on the meta device or not."""
    config, vision = model.config, model.config.vision_config
    language = {id(p) for p in model.get_decoder().parameters()}
    head = model.get_output_embeddings()
    language |= {id(p) for p in head.parameters()} if head is not None else set()
    beside = [(name, p) for name, p in model.named_parameters() if id(p) not in language]
    named = [(name, p) for name, p in beside if "audio" not in name]
    matrices = [(name, p.numel()) for name, p in named if p.ndim > 1 and not _TABLE.search(name)]
    token = sum(
        n
        for name, n in matrices
        if any(part in name for part in _PER_TOKEN) and _WITHIN not in name
    )
    embed = sum(n for name, n in matrices if _EMBED.search(name))
    patches = sum(n for _, n in matrices) - token - embed
    # Molmo 2 pools by attention: keys and values are made of each of the patches of a token.
    token += sum((_POOLED - 1) * n for name, n in matrices if _POOLING.search(name))
    layers = int(_first(vision, "num_hidden_layers", "depth"))
    layers += int(getattr(vision, "num_global_layers", 0))
    full = getattr(vision, "fullatt_block_indexes", None)
    kinds = getattr(vision, "layer_types", None)
    if kinds is not None:  # LFM3's others are convolutions
        layers = sum(kind == "full_attention" for kind in kinds)
    tower = Tower(
        embed_parameters=embed,
        patch_parameters=patches,
        token_parameters=token,
        width=int(_first(vision, "embed_dim", "hidden_size")),
        full_layers=layers if full is None else len(full),
        window_layers=0 if full is None else layers - len(full),
        window_patches=0 if full is None else (vision.window_size // _side(vision.patch_size)) ** 2,
        **_layout(config, vision, [name for name, _ in named]),
    )
    if getattr(vision, "insert_layer_id", None) is None or not _merges_within(config):
        return tower
    return _merged_within(tower, vision, matrices)


def _merges_within(config: Any) -> bool:
    return bool(config.downsample_mode != "4x" and config.vision_config.insert_layer_id >= 0)


def _merged_within(tower: Tower, vision: Any, matrices: Sequence[tuple[str, int]]) -> Tower:
    """Reckon with MiniCPM-V's merger after one of the layers: fewer patches go on from there.

    It attends within each window of patches, then makes one of them.
    """
    window = math.prod(vision.window_kernel_size)
    late = vision.num_hidden_layers - vision.insert_layer_id - 1
    layer = re.compile(r"encoder\.layers\.(\d+)\.")
    fewer = sum(
        n
        for name, n in matrices
        if (found := layer.search(name)) and int(found[1]) > vision.insert_layer_id
    )
    fewer += sum(n for name, n in matrices if f"{_WITHIN}.linear_" in name)
    return replace(
        tower,
        patch_parameters=tower.patch_parameters - fewer * (1 - 1 / window),
        full_layers=tower.full_layers - late * (1 - 1 / window**2),
        window_layers=1,
        window_patches=window,
    )


def _layout(config: Any, vision: Any, names: list[str]) -> dict[str, Any]:
    """Read how patches make tiles and tokens: fields of `Tower`."""
    for holder in (vision, config):
        merge = next((getattr(holder, name) for name in _MERGES if hasattr(holder, name)), None)
        if merge:
            across, down = merge if isinstance(merge, list | tuple) else (merge, merge)
            within = getattr(vision, "insert_layer_id", None) is not None
            more = math.prod(vision.window_kernel_size) if within and _merges_within(config) else 1
            return {"patches_per_token": float(across * down * more)}
    side = _side(vision.image_size) // _side(vision.patch_size)
    tile = side**2
    if getattr(vision, "max_num_tiles", None) is not None:
        padded = -(-(tile + 1) // _MULTIPLE) * _MULTIPLE
        fixed = int(vision.max_num_tiles)
        return {"tile_patches": tile, "extra_patches": padded - tile, "fixed_tiles": fixed}
    tokens = float(getattr(config, "mm_tokens_per_image", 0))
    if any(_POOLING.search(name) for name in names):
        tokens = float(math.ceil(side / math.isqrt(_POOLED)) ** 2)  # fewer where crops overlap
    elif not tokens:
        ratio = getattr(config, "downsample_ratio", None)
        ratio = ratio or getattr(vision, "pixel_shuffle_ratio", None) or 1
        shrink = getattr(config, "scale_factor", None) or 1 / ratio
        tokens = tile / shrink**2
    if any(name.endswith("image_newline") for name in names):
        tokens += side  # LLaVA-OneVision's token at the end of each row
    extra = int(any(re.search(r"(class|cls)_(token|embedding)", name) for name in names))
    return {"tile_patches": tile, "tile_tokens": tokens, "extra_patches": extra}


def _first(config: Any, *names: str) -> Any:
    return next(getattr(config, name) for name in names if getattr(config, name, None) is not None)


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)
