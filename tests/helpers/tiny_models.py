"""A tiny random model of any class of transformers that reads images, by its configuration alone.

Sizes are set by what a field is called, special tokens are moved into a small vocabulary, and one
layer of each kind is left. What the model takes as an image is found by trying the forms that
processors write, until a forward pass takes one; how many tokens an image is, the model says.
"""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.timm_wrapper import modeling_timm_wrapper

WORDS = 64
"""Tokens of text, the first three of them special; the other special ones follow."""
HEADS, HEAD, EXPERTS, SIDE = 4, 16, 4, 4
WIDTH = HEADS * HEAD

_RULES: tuple[tuple[str, int], ...] = (
    (r"sliding_window(_size)?|attention_chunk_size", 12),  # shorter than a prompt
    (r"(n|num)_(routed_|local_)?experts|moe_num_experts", EXPERTS),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts", 2),
    (r"n_group|topk_group", 1),
    (r"n_groups", 2),
    (r"index_block_size|index_topk|keep_window_size", 4),  # what is sparse has to be so here
    (r"index_topk_blocks", 2),
    (r".*lora_rank", 2 * HEAD),
    (r"merged_hidden_size", 4 * WIDTH),
    (r".*head_dim|d_kv|resampler_dim_head", HEAD),
    (r".*(num_key_value_heads|n_kv_heads)", 2),
    (r"(.*_)?(num_attention_heads|num_heads|n_heads|attention_heads|resampler_heads)", HEADS),
    (r"(.*_)?(num_hidden_layers|num_layers|encoder_layers|decoder_layers|depth)", 2),
    (r"(.*_)?(intermediate_size|ffn_dim|mlp_dim|d_ff|intermediate_dim)|share_expert_dim", 48),
    (
        r"(.*_)?(hidden_size|hidden_dim|d_model|embed_dim|projection_dim|output_dim|output_proj_dims)",
        WIDTH,
    ),
    (r"vision_output_dim|query_pre_attn_scalar|vision_hidden_size", WIDTH),
    (r"mm_tokens_per_image|vision_soft_tokens_per_image", SIDE),
    (r"num_position_embeddings", SIDE * SIDE),
)
"""By the whole name of a field: what it is set to."""
_TOKEN = re.compile(r"_(token_)?(id|ids|index)$")


_LAYERS_NAMED = re.compile(r"(vision_feature|spatial_target|global_attn|fullatt|deepstack).*")
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_THINKER = {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
_GIVEN: dict[str, dict[str, Any]] = {
    "AriaForConditionalGeneration": {"projector_patch_to_query_dict": {SIDE * SIDE: SIDE}},
    "Blip2ForConditionalGeneration": {"image_token_id": 50265},
    "InstructBlipForConditionalGeneration": {"image_token_id": 32000},
    "InstructBlipVideoForConditionalGeneration": {"image_token_id": 32000},
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 8711}},
    "CohereCompassForConditionalGeneration": {
        "text_config.rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}
    },
    "DeepseekOcr2ForConditionalGeneration": {"text_config.mlp_layer_types": ["dense"] * 12},
    "DiffusionGemmaForBlockDiffusion": {
        "vision_config": {},
        "text_config.num_experts": EXPERTS,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 48,
    },
    "Gemma4ForConditionalGeneration": {"vision_config": {}},
    "Gemma4UnifiedForConditionalGeneration": {"vision_config": {}},
    "Granite4VisionForConditionalGeneration": {
        "deepstack_layer_map": [(-1, 0)],
        "downsample_rate": "1/2",
        "image_grid_pinpoints": [[768, 384]],
    },
    "HunYuanVLForConditionalGeneration": {"text_config.head_dim": HEAD},
    "Lfm2VlForConditionalGeneration": {
        "text_config.layer_types": ["conv", "full_attention"] * 16,
    },
    "MiniCPMOcrForConditionalGeneration": {"image_token_id": 248056},
    "MiniCPMV4_6ForConditionalGeneration": {"image_token_id": 248056},
    "MiniCPMV4_7ForConditionalGeneration": {"image_token_id": 248056},
    "MiniMaxM3SparseForConditionalGeneration": {
        "text_config.layer_types": ["full_attention", "minimax_m3_sparse"] * 30,
    },
    "NemotronH_Omni_Reasoning_V3": {"image_token_id": 131072},
    "PerceptionLMForConditionalGeneration": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {"embed_dim": WIDTH, "img_size": [64, 64], "depth": 2},
        }
    },
    "Qwen2_5OmniThinkerForConditionalGeneration": _THINKER,
    "Qwen3OmniMoeThinkerForConditionalGeneration": _THINKER,
    "Qwen4ExpForConditionalGeneration": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": HEAD,
        "text_config.indexer_budget": 8,
        "text_config.indexer_compress_ratio": 4,
    },
    "Step3p7ForConditionalGeneration": {"text_config.sliding_window": 12},
}
"""What checkpoints say, and a class has no default for or another one."""


_SIZED: dict[str, dict[str, Any]] = {
    "DeepseekOcr2ForConditionalGeneration": {
        "vision_config.sam_config.downsample_channels": [WIDTH // 2, WIDTH]
    },
    "Llama4ForConditionalGeneration": {
        "vision_config.intermediate_size": 4 * WIDTH,
        "vision_config.projector_input_dim": WIDTH,
    },
    "MuseGlimmerForConditionalGeneration": {"out_hidden_size": 4 * WIDTH},
    "MuseSparkForConditionalGeneration": {"out_hidden_size": 4 * WIDTH},
}
"""What does not follow from the names."""


def configuration(kind: Any) -> PreTrainedConfig:
    """Make the configuration of a class: its defaults, and what these leave out."""
    given = dict(_GIVEN.get(kind.__name__, {}))
    made = {name: given.pop(name) for name in list(given) if name == "vision_config"}
    config: PreTrainedConfig = kind.config_class(**deepcopy(made))
    _set(config, given)
    return config


def _set(config: PreTrainedConfig, given: Mapping[str, Any]) -> None:
    for path, value in given.items():
        *parts, name = path.split(".")
        part = config
        for one in parts:
            part = getattr(part, one)
        setattr(part, name, deepcopy(value))


def parts_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a configuration and those within it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from parts_of(value)


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """Make a configuration small."""
    config = deepcopy(config)
    _rename_tokens(config)
    for part in parts_of(config):
        _keep_layers(part)
        _shrink(part)
    if getattr(config, "image_grid_pinpoints", None):
        crop = config.vision_config.image_size
        config.image_grid_pinpoints = [[2 * crop, crop], [2 * crop, 2 * crop]]
    return config


def _rename_tokens(config: PreTrainedConfig) -> None:
    """Move the ids of special tokens behind a few words, in their order."""
    held: dict[int, list[tuple[PreTrainedConfig, str]]] = {}
    for part in parts_of(config):
        for name, value in list(vars(part).items()):
            told = list(value) if isinstance(value, list | tuple) else [value]
            if _is_token(name) and told and all(type(one) is int for one in told):
                for one in told:
                    if one >= 3:
                        held.setdefault(one, []).append((part, name))
    new = {old: WORDS + place for place, old in enumerate(sorted(held))}
    for part, name in {(id(p), n): (p, n) for uses in held.values() for p, n in uses}.values():
        value = getattr(part, name)
        renamed = (
            type(value)(new.get(one, one) for one in value)
            if isinstance(value, list | tuple)
            else new[value]
        )
        setattr(part, name, renamed)
    for part in parts_of(config):
        for name in ("vocab_size", "vocab_size_per_layer_input"):
            if isinstance(vars(part).get(name), int):
                setattr(part, name, WORDS + len(held))


def _is_token(name: str) -> bool:
    return bool(_TOKEN.search(name)) and "layer" not in name


def _keep_layers(part: PreTrainedConfig) -> None:
    """Leave one layer of each kind, and cut every list that has one entry for each layer."""
    depth = getattr(part, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 3:
        return
    lists = {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, list | tuple) and len(value) == depth
    }
    shared = vars(part).get("num_kv_shared_layers") or 0
    kinds: dict[tuple[Any, ...], int] = {}
    for layer in range(depth):
        told = (layer >= depth - shared, *(str(value[layer]) for value in lists.values()))
        kinds.setdefault(told, layer)
    chosen = sorted(kinds.values())
    chosen += [one for one in (depth - 1, 1) if one not in chosen][: max(0, 2 - len(chosen))]
    if shared:
        part.num_kv_shared_layers = 0
    part.num_hidden_layers = len(chosen)
    for name, value in lists.items():
        setattr(part, name, type(value)(value[layer] for layer in sorted(chosen)))
    if shared:
        part.num_kv_shared_layers = sum(layer >= depth - shared for layer in chosen)


def _shrink(part: PreTrainedConfig) -> None:
    told = dict(vars(part))
    heads, groups = told.get("num_attention_heads"), told.get("num_key_value_heads")
    for name, value in told.items():
        if type(value) is not int:
            continue
        if name == "num_hidden_layers" and len(told.get("layer_types") or ()) == value:
            continue  # one of each kind
        for pattern, size in _RULES:
            if re.fullmatch(pattern, name):
                setattr(part, name, size)
                break
    if groups is not None and heads == groups:
        part.num_key_value_heads = HEADS
    size, patch = told.get("image_size"), told.get("patch_size")
    if size is not None and patch is not None:
        side = SIDE * _side(patch, 4)
        part.image_size = side if isinstance(size, int) else type(size)([side] * len(size))
    rope = told.get("rope_parameters")
    if isinstance(rope, dict):
        for one in (rope, *rope.values()):
            if isinstance(one, dict) and one.get("rope_type") == "default":
                turned = int(HEAD * one.get("partial_rotary_factor", 1)) // 2
                one["mrope_section"] = _parted(one.get("mrope_section", [3, 3, 2]), turned)
    for name, value in told.items():
        if _LAYERS_NAMED.fullmatch(name) and isinstance(value, list | tuple):
            whole = all(type(one) is int for one in value)
            if whole:
                setattr(part, name, type(value)([1 if min(value) >= 0 else -1] * len(value)))


def _parted(sections: list[int], whole: int) -> list[int]:
    """Divide a whole number as these sections divide theirs."""
    ends = [round(whole * sum(sections[: n + 1]) / sum(sections)) for n in range(len(sections))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


# -- the model ------------------------------------------------------------------------------------


def build(kind: Any) -> Any:
    """Build the tiny model of a class: float32, eval mode, with weights large enough to matter."""
    config = shrunk(configuration(kind))
    _set(config, _SIZED.get(kind.__name__, {}))
    with torch.random.fork_rng([]), torch.no_grad(), _stand_ins():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if not parameter.any():  # gates and projectors: the image would not be seen
                parameter.normal_(std=0.02)
            if parameter.ndim > 1:
                # The usual 0.02 makes every distribution flat, and any mistake too small to see.
                parameter.mul_(4)
    model.generation_config.suppress_tokens = list(
        range(WORDS, config.get_text_config().vocab_size)
    )
    return model


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put something small where a class wants a package that is no dependency of mvw's."""

    def assigned(costs: Any) -> Any:
        rows, columns = costs.shape
        return None, torch.linspace(0, columns - 1, rows).round().long().numpy()

    scipy = ModuleType("scipy.optimize")
    scipy.linear_sum_assignment = assigned  # type: ignore[attr-defined]
    lacking = {}
    if "scipy" not in sys.modules and find_spec("scipy") is None:
        lacking = {"scipy": ModuleType("scipy"), "scipy.optimize": scipy}
    with (
        patch.object(modeling_timm_wrapper, "requires_backends", lambda *_: None),
        patch.object(modeling_timm_wrapper, "_create_timm_model_with_error_handling", _Tower),
    ):
        sys.modules.update(lacking)
        try:
            yield
        finally:
            for name in lacking:
                del sys.modules[name]


class _Tower(nn.Module):
    """Where timm would be: patches side by side, or in a row."""

    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__()
        self.in_a_row = "embed_dim" in options
        width = options["embed_dim"] if self.in_a_row else config.hidden_size
        self.patches = nn.Conv2d(3, width, 16, stride=16)

    def forward_features(self, pixels: Tensor, **_: Any) -> Tensor:
        made: Tensor = self.patches(pixels)
        return made.flatten(2).transpose(1, 2) if self.in_a_row else made

    def forward_head(self, made: Tensor, **_: Any) -> Tensor:
        return made


# -- what it takes as an image --------------------------------------------------------------------

Inputs = dict[str, Tensor]


class NoImage(Exception):
    """No form of an image is known that a model takes."""


def image_token(config: PreTrainedConfig) -> int | None:
    """Return the id that stands for a vision token in the prompt."""
    for part in parts_of(config):
        for name in ("image_token_id", "image_token_index", "image_patch_id"):
            if isinstance(value := getattr(part, name, None), int):
                return value
    return None


def prompt(model: Any, seed: int) -> Inputs:
    """Make a prompt of text around one image; images differ from seed to seed.

    Raises:
        NoImage: with what the model has said of each form.
    """
    said = []
    width = model.config.get_text_config().hidden_size
    forms = [*_forms(model, seed)]
    for form in forms:
        waiting, tried = [4], set[int]()
        while waiting:
            tokens = waiting.pop()
            tried.add(tokens)
            inputs = _prompt(model, form, tokens, seed)
            try:
                with torch.no_grad():
                    model(**inputs)
                return inputs
            except Exception as error:
                told = _tokens_told(str(error), tokens, width)
                waiting += [one for one in told if 0 < one < 600 and one not in tried]
                shapes = {name: tuple(one.shape) for name, one in form.items()}
                line = (str(error).strip().splitlines() or [""])[0][:200]
                frame = traceback.extract_tb(error.__traceback__)[-1]
                at = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
                forms += _wider(form, line)
                said.append(f"{shapes} x{tokens}: {type(error).__name__}: {line} {at}")
    raise NoImage("\n".join(said))


def _wider(form: Mapping[str, Tensor], error: str) -> list[dict[str, Tensor]]:
    """Read off a complaint how many numbers a patch has, or how many crops an image."""
    pixels = form.get("pixel_values")
    if pixels is None:
        return []
    random = torch.Generator().manual_seed(int(pixels.flatten()[0].abs() * 1e6))
    patches = re.search(
        r"\(\d+x(\d+) and (\d+)x\d+\)|expected input with shape \[\*, (\d+)\]", error
    )
    if patches and pixels.ndim < 4:
        width = int(patches[2] or patches[3])
        if width > pixels.shape[-1] and (patches[1] in (None, str(pixels.shape[-1]))):
            made = torch.randn(*pixels.shape[:-1], width, generator=random)
            return [{**form, "pixel_values": made}]
    return []


def _tokens_told(error: str, tried: int, width: int) -> set[int]:
    """Read off a complaint how many vision tokens an image may be."""
    # Some count tokens, some numbers, some one of each.
    found = re.search(r"tokens:? (\d+).*?features:? (?:\(?)(\d+)", error, re.DOTALL)
    if found and int(found[1]):
        features = int(found[2])
        return {features, tried * features // int(found[1]), features // width}
    found = re.search(r"value tensor of shape \[(\d+)", error)
    return {int(found[1])} if found else set()


def _prompt(model: Any, form: Mapping[str, Tensor], tokens: int, seed: int) -> Inputs:
    config = model.config
    random = torch.Generator().manual_seed(seed)
    text = torch.randint(3, WORDS - 4, (8 + seed,), generator=random).tolist()
    around = []
    for names in (
        ("vision_start_token_id", "image_start_token_id", "boi_token_id", "image_start_id"),
        ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "image_end_id"),
    ):
        known = (getattr(config, name, None) for name in names)
        around.append([one for one in known if isinstance(one, int)][:1])
    image = image_token(config)
    image = WORDS - 1 if image is None else image
    ids = torch.tensor([[1, *text[:3], *around[0], *[image] * tokens, *around[1], *text[3:]]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **form}
    taken = _names(model)
    for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in taken:
            inputs[name] = (ids == image).int()
    return inputs


def _names(model: Any) -> set[str]:
    """List the arguments of a model, and of what reads images in it."""
    functions = [model.forward]
    for module in (model, getattr(model, "model", None), getattr(model, "thinker", None)):
        if hasattr(module, "get_image_features"):
            functions.append(module.get_image_features)
    return {name for one in functions for name in inspect.signature(one).parameters}


def _forms(model: Any, seed: int) -> Iterator[Inputs]:
    """Yield one image in the forms that processors write."""
    config, names = model.config, _names(model)
    vision = getattr(config, "vision_config", None) or config
    patch = _side(getattr(vision, "patch_size", None) or getattr(config, "patch_size", None), 4)
    frames = _side(getattr(vision, "temporal_patch_size", None), 1)
    size = _side(getattr(vision, "image_size", None), 32 if patch == 4 else SIDE * patch)
    random = torch.Generator().manual_seed(seed)

    def pixels(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    count, flat = SIDE * SIDE, 3 * patch * patch
    grid = torch.tensor([[1, SIDE, SIDE]])
    if "image_grid_thw" in names:
        more = {"image_grid_thw": grid}
        if "image_merge_sizes" in names:
            more["image_merge_sizes"] = torch.tensor([2])
        for shape in (
            (count, flat * frames),
            (count, flat),
            (count, 2 * flat),
            (count, 3, patch, patch),
        ):
            yield {"pixel_values": pixels(*shape), **more}
    if "image_grid_hw" in names:
        yield {"pixel_values": pixels(count, flat), "image_grid_hw": grid[:, 1:]}
    if "image_position_ids" in names:
        places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))[None]
        yield {"pixel_values": pixels(1, count, flat), "image_position_ids": places}
    if "spatial_shapes" in names:
        yield {
            "pixel_values": pixels(1, count, flat),
            "pixel_attention_mask": torch.ones(1, count, dtype=torch.long),
            "spatial_shapes": grid[:, 1:],
        }
    if "target_sizes" in names:
        yield {"pixel_values": pixels(1, 3, patch, count * patch), "target_sizes": grid[:, 1:]}
    if "image_token_pooling" in names:
        yield {
            "pixel_values": pixels(1, count, flat),
            "image_token_pooling": torch.arange(count).view(1, 4, 4)[0],
            "image_grids": torch.tensor([[2, 2, 0, 0]]),
        }
    name = next(
        (
            one
            for one in ("pixel_values", "pixel_values_images", "image_pixel_values")
            if one in names
        ),
        "pixel_values",
    )
    wide = 2 * size if getattr(config, "image_grid_pinpoints", None) else size
    sizes = {"image_sizes": torch.tensor([[wide, size]])} if "image_sizes" in names else {}
    yield {name: pixels(1, count, flat)}
    yield {name: pixels(count, flat)}
    for lead in ((1,), (1, 1), (1, 2), (1, 3), (1, 5), (2,)):
        form = {name: pixels(*lead, 3, size, size)}
        yield form
        if sizes:
            yield {**form, **sizes}
        if "pixel_attention_mask" in names:
            mask = torch.ones(*lead, size, size, dtype=torch.long)
            yield {**form, "pixel_attention_mask": mask}
            yield {**form, "pixel_attention_mask": torch.ones(*lead, dtype=torch.bool)}
        if "high_res_pixel_values" in names:
            yield {**form, "high_res_pixel_values": pixels(*lead, 3, size, size)}


def _side(value: Any, otherwise: int) -> int:
    if isinstance(value, list | tuple):
        value = value[-1]
    return value if isinstance(value, int) else otherwise
