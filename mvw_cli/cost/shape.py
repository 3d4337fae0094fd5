"""Weights and KV cache of a model, counted from its configuration alone.

The model is built on PyTorch's meta device, where tensors have shapes and no memory, and run over
one token there: parameters and KV entries are counted, not looked up by family. What the counts
are not: activations, buffers and the allocator's own needs, which come on top.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from mvw_cli.adapter import Adapter
from mvw_cli.errors import ModelProblem, MvwError, raised_in
from mvw_cli.text import error_line

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BITS: dict[str | None, int | None] = {None: None, "8bit": 8, "4bit": 4}
"""Bits per weight of linear layers, by the profile's `quantization`."""
_ABSMAX_BITS = 0.5
"""4-bit blocks of bitsandbytes hold one float32 scale for 64 weights (its `blocksize=64`)."""
_LAYER = re.compile(r"layers\.(\d+)\.")
_MAKES_CACHE = re.compile(r"\.(k_proj|v_proj|k_norm)\.")
_READS_CACHE = ("cross_attn.", "cross_attn_attn_gate", "input_layernorm")


@dataclass(frozen=True, slots=True)
class Count:
    """So many parameters, and those of them in linear layers that bitsandbytes replaces."""

    numbers: float = 0
    quantizable: float = 0

    def plus(self, other: Count, share: float = 1.0) -> Count:
        """Add a share of others."""
        return Count(
            self.numbers + share * other.numbers, self.quantizable + share * other.quantizable
        )

    def bytes(self, dtype: str, bits: int | None = None) -> float:
        """Compute what they take in memory.

        Args:
            dtype: `float32`, `bfloat16` or `float16`; of what is not quantised, where `bits` is
                given.
            bits: 8 or 4 for the linear layers as bitsandbytes holds them, their scales included
                (one float32 for a row of 8-bit weights is left out: below a thousandth).
        """
        if bits is None:
            return self.numbers * DTYPE_BYTES[dtype]
        per_weight = bits + (_ABSMAX_BITS if bits == 4 else 0)
        whole = (self.numbers - self.quantizable) * DTYPE_BYTES[dtype]
        return whole + self.quantizable * per_weight / 8


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a model, counted once where tied."""

    total: Count = Count()
    vision: int = 0
    """Outside the language model: vision tower and projector; read at prefill only."""
    step: Count = Count()
    """Read by a decode step whatever the token: the language model without its input embedding
    (unless tied), without routed experts and without what cross-attention layers read once."""
    cross: Count = Count()
    """Those of `step` that belong to cross-attention layers, skipped once these are empty."""
    cross_attention: Count = Count()
    """Those of `cross` in the attention itself; the rest is the gated MLP and its norm."""
    experts: Count = Count()
    """In routed experts of all layers."""
    experts_total: int = 1
    experts_per_token: int = 1

    @property
    def active(self) -> int:
        """Parameters that one token goes through while decoding."""
        return round(self.read(1).numbers)

    def read(self, sequences: int) -> Count:
        """Count what a step over so many sequences reads, as expected over the routed experts.

        Routing is taken as uniform and independent, so that `n` tokens leave an expert out with
        probability `(1 - k / E) ** n`.
        """
        left_out = (1 - self.experts_per_token / self.experts_total) ** sequences
        return self.step.plus(self.experts, 1 - left_out)


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What one layer holds in the cache."""

    elements: int
    """Numbers per entry: keys and values of all heads, or the latent of MLA. 0 where it has no
    entries of its own."""
    window: int | None = None
    """Size of its sliding window in tokens, or of its chunks, of which it sees as much at most;
    None for full attention."""
    cross: bool = False
    """Whether it holds vision and nothing else, as cross-attention."""
    shared: int = 0
    """Numbers per entry of an earlier layer, where it attends to what that one holds."""
    state: int = 0
    """Numbers in its recurrent state, in the type of the weights; no withdrawal frees them."""
    state_float32: int = 0
    """Further ones that are held in float32 whatever that type is."""

    @property
    def read(self) -> int:
        """Numbers per entry that a query reads; 0 where it does not attend."""
        return self.elements + self.shared

    def kept(self, entries: int) -> int:
        """Return how many entries of a sequence remain in the layer."""
        # transformers keeps one entry less than the window: the newest token brings its own.
        return entries if self.window is None else min(entries, self.window - 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """Weights and KV cache of one configuration."""

    weights: Weights
    layers: tuple[CacheLayer, ...]
    dtype: str
    """Of the checkpoint, as its configuration says; float32 where it does not."""

    @property
    def has_cross_attention(self) -> bool:
        """Whether cross-attention layers hold the vision, and then nothing else does."""
        return any(layer.cross for layer in self.layers)

    def kv_elements_per_token(self) -> int:
        """Count the numbers that one more text token adds to the cache."""
        return sum(layer.elements for layer in self.layers if not layer.cross)

    def kv_elements(self, text: int, vision: int) -> int:
        """Count the numbers in the cache's entries for an image followed by so much text."""
        return sum(
            layer.elements * entries
            for layer, entries in zip(self.layers, self._entries(text, vision), strict=True)
        )

    def kv_elements_read(self, text: int, vision: int) -> int:
        """Count those that a step reads: entries once for each layer that attends to them."""
        return sum(
            layer.read * entries
            for layer, entries in zip(self.layers, self._entries(text, vision), strict=True)
        )

    def state_bytes(self, element_bytes: int) -> int:
        """Bytes of a sequence's recurrent states, whatever its length and with or without vision.

        Args:
            element_bytes: of a number in the type of the weights.
        """
        held = sum(layer.state for layer in self.layers)
        return held * element_bytes + 4 * sum(layer.state_float32 for layer in self.layers)

    def cache_bytes(self, text: int, vision: int, element_bytes: int) -> int:
        """Bytes of entries and states together."""
        return self.kv_elements(text, vision) * element_bytes + self.state_bytes(element_bytes)

    def _entries(self, text: int, vision: int) -> list[int]:
        """Count the entries of each layer, its own or those that it shares."""
        cross_vision = vision if self.has_cross_attention else 0
        sequence = text + vision - cross_vision
        return [cross_vision if layer.cross else layer.kept(sequence) for layer in self.layers]


def shape_of(adapter: Adapter, config: Any) -> Shape:
    """Count the model of a configuration; nothing is downloaded or allocated.

    Raises:
        ModelProblem: the model can't be built or run on the meta device.
    """
    return shape_of_model(on_meta(adapter, config))


def shape_of_model(model: Any) -> Shape:
    """Count a model on the meta device, as `shape_of`."""
    with counting(model):
        return _shape(model)


def _shape(model: Any) -> Shape:
    text = model.config.get_text_config()
    declared = getattr(model.config, "dtype", None) or getattr(text, "dtype", None)
    dtype = str(declared).removeprefix("torch.")
    crossed = cross_layers(text)
    return Shape(
        weights=_weights(model, text, language_parameters(model, crossed)),
        layers=_cache_layers(model, text, crossed),
        dtype=dtype if dtype in DTYPE_BYTES else "float32",
    )


def on_meta(adapter: Adapter, config: Any) -> Any:
    """Build the model without memory, in the type that every kernel of transformers takes."""
    import torch

    try:
        with torch.device("meta"):
            model = adapter.build(config)
    except Exception as error:
        if not raised_in(error, "transformers"):
            raise  # of an adapter
        raise _uncountable(type(config).__name__, error) from error
    return model.eval().to(torch.bfloat16)


@contextmanager
def counting(model: Any) -> Iterator[None]:
    """Within it, whatever fails is told as a configuration's fault: it may hold anything.

    Raises:
        ModelProblem: something has failed.
    """
    try:
        yield
    except MvwError:
        raise
    except Exception as error:
        raise _uncountable(type(model).__name__, error) from error


def _uncountable(name: str, error: Exception) -> ModelProblem:
    return ModelProblem(
        f"{name} can't be counted without its weights.",
        cause=error_line(error),
        hint="mvw list profiles",
    )


Role = Literal[
    "lookup", "layers", "experts", "head", "cross_attention", "cross_mlp", "cross_states"
]
"""What a parameter of the language model does in a decode step.

`lookup`: nothing but a row of it is read. `layers`: every token goes through it, as through the
`head`. `experts`: some tokens do. `cross_attention` and `cross_mlp`: those of `layers` that are
skipped once no vision is left. `cross_states`: vision states go through it once, at the prefill.
"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the language model or of its output head."""

    role: Role
    count: int
    """Numbers in it."""
    layer: int | None
    matrix: bool
    quantizable: bool
    """Whether it is the weight of a linear layer that bitsandbytes replaces."""


def cross_layers(text: Any) -> tuple[int, ...]:
    """List the cross-attention layers of a text configuration."""
    return tuple(getattr(text, "cross_attention_layers", None) or ())


def language_parameters(model: Any, crossed: Sequence[int]) -> list[Parameter]:
    """List the parameters of language model and head, tied ones once.

    Args:
        crossed: numbers of the cross-attention layers.
    """
    from mvw_cli.engine.layer_exits import decoder_of

    decoder, head = decoder_of(model), model.get_output_embeddings()
    of_head = dict.fromkeys(() if head is None else head.parameters())
    tables = (one for one in decoder.modules() if type(one).__name__.endswith("Embedding"))
    lookups = {weight for table in tables for weight in table.parameters()} - set(of_head)
    quantizable = _quantizable(model)

    def role(name: str, parameter: Any, layer: int | None) -> Role:
        if parameter in of_head:
            return "head"
        if parameter in lookups:
            return "lookup"
        if ".experts." in f".{name}":
            return "experts"
        if layer not in crossed:
            return "layers"
        inner = _LAYER.sub("", name, count=1)
        # Keys and values of the vision states are in the cache, made once at the prefill.
        if _MAKES_CACHE.search(inner):
            return "cross_states"
        return "cross_attention" if inner.startswith(_READS_CACHE) else "cross_mlp"

    named = {parameter: name for name, parameter in decoder.named_parameters()}
    found = []
    for parameter, name in {**dict.fromkeys(of_head, "lm_head"), **named}.items():
        match = _LAYER.match(name)
        layer = None if match is None else int(match[1])
        found.append(
            Parameter(
                role(name, parameter, layer),
                parameter.numel(),
                layer,
                parameter.ndim > 1,
                parameter in quantizable,
            )
        )
    return found


def _weights(model: Any, text: Any, parameters: Sequence[Parameter]) -> Weights:
    def count(*roles: Role) -> Count:
        chosen = [one for one in parameters if one.role in roles]
        return Count(
            sum(one.count for one in chosen), sum(one.count for one in chosen if one.quantizable)
        )

    total = sum(parameter.numel() for parameter in model.parameters())
    experts_total, experts_per_token = _experts(text)
    return Weights(
        total=Count(total, sum(weight.numel() for weight in _quantizable(model))),
        vision=total - sum(parameter.count for parameter in parameters),
        step=count("layers", "head", "cross_attention", "cross_mlp"),
        cross=count("cross_attention", "cross_mlp"),
        cross_attention=count("cross_attention"),
        experts=count("experts"),
        experts_total=experts_total,
        experts_per_token=experts_per_token,
    )


def _quantizable(model: Any) -> set[Any]:
    """Weights of the linear layers that bitsandbytes replaces: all but the output head."""
    import torch

    head = model.get_output_embeddings()
    return {
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _experts(text: Any) -> tuple[int, int]:
    """Return how many routed experts a layer has, and how many of them a token takes."""
    for key in ("n_routed_experts", "num_experts", "num_local_experts"):
        total = getattr(text, key, None)
        if total:
            taken = getattr(text, "num_experts_per_tok", None) or text.top_k_experts  # Gemma 4's
            return int(total), int(taken)
    return 1, 1


def _cache_layers(model: Any, text: Any, crossed: tuple[int, ...]) -> tuple[CacheLayer, ...]:
    """Run the model over one token and read the layout off the cache that it fills."""
    import torch
    from transformers import DynamicCache

    from mvw_cli.engine.cache import LayerKind, cache_argument, layer_kinds
    from mvw_cli.engine.types import NotExact

    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device="meta")}
    if crossed:
        inputs["cross_attention_states"] = torch.empty(
            1, 1, text.hidden_size, dtype=torch.bfloat16, device="meta"
        )
    for module in model.modules():
        # Dynamic RoPE would read the largest position off a tensor, which has no values here.
        if isinstance(getattr(module, "rope_type", None), str):
            module.rope_type = "default"
    found = []
    # Before SDPA some releases look at the values of a mask, OPT's in 5.16; there are none here.
    parts = {"": model.config}
    parts |= {key: getattr(model.config, key, None) for key in model.config.sub_configs}
    kernels = {key: one._attn_implementation for key, one in parts.items() if one is not None}
    model.set_attn_implementation("eager")
    try:
        # A cache of ours: without any, Gemma 4 looks at the values of positions.
        inputs[cache_argument(model)] = cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(**inputs, use_cache=True)
    finally:
        model.set_attn_implementation(kernels)
    try:
        kinds = layer_kinds(cache, text)
    except NotExact:  # what can't be served can be counted all the same
        kinds = [LayerKind()] * len(cache.layers)
    for number, (layer, kind) in enumerate(zip(cache.layers, kinds, strict=True)):
        window = int(layer.sliding_window) if getattr(layer, "is_sliding", False) else None
        if kind.holds:
            elements = (layer.keys.numel() + layer.values.numel()) // layer.keys.shape[-2]
            found.append(CacheLayer(elements, window, number in crossed))
        elif kind.producer is not None:
            held = found[kind.producer]
            found.append(CacheLayer(0, held.window, shared=held.elements))
        else:
            tables = (layer.conv_states, layer.recurrent_states) if kind.states else ()
            states = [one for table in tables for one in table.values() if one is not None]
            wide = sum(one.numel() for one in states if one.dtype == torch.float32)
            rest = sum(one.numel() for one in states) - wide
            found.append(CacheLayer(0, state=rest, state_float32=wide))
    return tuple(found)
