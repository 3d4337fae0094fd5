"""FLOPs of a prefill and of a decode step, from a model on the meta device.

A multiplication and an addition are 2 FLOPs. Counted are the products of matrices and those of
the attention, over the entries that causality lets a token see; norms, softmax, rotations and
lookups, below a hundredth in models of a billion weights, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mvw_cli.adapter import Adapter
from mvw_cli.cost.shape import (
    CacheLayer,
    Role,
    Shape,
    cross_layers,
    language_parameters,
    on_meta,
    shape_of_model,
)
from mvw_cli.cost.tower import Tower, tower_of

Latent = Literal["compressed", "expanded"]
"""How a decode step reads the latents of MLA: as they lie in the cache, or expanded to keys and
values of all heads first, as transformers does by itself."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention of one layer of the language model."""

    count: int
    """Query heads."""
    key: int
    """Numbers of a query and a key."""
    value: int
    latent: int = 0
    """Numbers of MLA's latent; 0 for attention with heads of its own."""
    rotary: int = 0
    """Numbers of the key that all heads share with a latent."""

    @property
    def pair(self) -> int:
        """FLOPs of one query at one entry."""
        return 2 * self.count * (self.key + self.value)

    @property
    def expansion(self) -> int:
        """FLOPs of making keys and values of one latent; 0 without one."""
        return 2 * self.count * self.latent * (self.key - self.rotary + self.value)

    @property
    def folded(self) -> int:
        """FLOPs of one query, turned to the space of the latents, at one entry as it is cached."""
        return 2 * self.count * (2 * self.latent + self.rotary) if self.latent else self.pair

    @property
    def expanded(self) -> int:
        """Numbers that one entry expands to; 0 without a latent."""
        return self.count * (self.key + self.value) if self.latent else 0


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
        if read is not None and vision:
            return self._prefill_by_layer(text, vision, read, keep_mlp)
        cross_vision = self._cross_vision(vision)
        sequence = text + vision - cross_vision
        looked = self.tower.flops(vision) if self.tower is not None else 0.0
        states = self.tower.made(cross_vision) if self.tower is not None else cross_vision
        linear = self.token * sequence + self.head + self.cross_states * states
        if cross_vision:
            linear += self.cross * sequence
        pairs = sum(_pairs(layer, sequence, states) for layer in self.shape.layers)
        return looked + 2.0 * linear + float(self.heads.pair * pairs)

    def _prefill_by_layer(
        self, text: int, vision: int, read: Sequence[int], keep_mlp: bool
    ) -> float:
        layers = self.shape.layers
        looked = self.tower.flops(vision) if self.tower is not None else 0.0
        linear, pairs = float(self.head), 0
        if self._cross_vision(vision):
            made = self.tower.made(vision) if self.tower is not None else vision
            linear += self.token * text
            pairs += sum(_pairs(layer, text, 0) for layer in layers if not layer.cross)
            for states in read:
                seen = states + made - vision if states else 0  # padding is read along
                through = self.cross if states else (self.cross - self.cross_attention) * keep_mlp
                linear += (through * text + self.cross_states * seen) / len(read)
                pairs += text * seen
        else:
            each = self.token_by_layer or (self.token / len(layers),) * len(layers)
            linear += (self.token - sum(each)) * (text + vision)
            for layer, weights, some in zip(layers, each, read, strict=True):
                linear += weights * (text + some)
                pairs += _pairs(layer, text + some, 0)
        return looked + 2.0 * linear + float(self.heads.pair * pairs)

    def step(
        self,
        text: int,
        vision: int,
        sequences: int = 1,
        *,
        keep_mlp: bool = False,
        latent: Latent = "compressed",
    ) -> float:
        """Count the FLOPs of a decode step that attends to so many entries in each sequence.

        Args:
            text: entries besides the vision, the newest token's included.
            vision: vision tokens that are held; 0 once withdrawn.
            keep_mlp: whether cross-attention layers without vision keep their gated MLP.
            latent: how MLA is computed.
        """
        cross_vision = self._cross_vision(vision)
        linear = self.token + self.head
        if cross_vision:
            linear += self.cross
        elif keep_mlp:
            linear += self.cross - self.cross_attention
        sequence = text + vision - cross_vision
        seen = sum(
            cross_vision if layer.cross else layer.kept(sequence - 1) + 1
            for layer in self.shape.layers
        )
        if latent == "compressed":
            attention = self.heads.folded * seen
        else:  # the newest token's latent is expanded by a weight in `token`
            older = seen - len(self.shape.layers)
            attention = self.heads.pair * seen + self.heads.expansion * older
        return float(sequences * (2 * linear + attention))

    def expanded_elements(self, text: int, vision: int) -> int:
        """Count the numbers that MLA's latents of one sequence expand to; 0 for other models."""
        return self.heads.expanded * len(self.shape.layers) * (text + vision)

    def _cross_vision(self, vision: int) -> int:
        """Return how many vision states cross-attention layers hold."""
        return vision if any(layer.cross for layer in self.shape.layers) else 0


def flops_of(adapter: Adapter, config: Any) -> Flops:
    """Count the model of a configuration; nothing is downloaded or allocated.

    Raises:
        ModelProblem: the model can't be built or run on the meta device.
    """
    model = on_meta(adapter, config)
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
        token=count("layers")
        + weights.experts * weights.experts_per_token // weights.experts_total,
        head=count("head"),
        cross=count("cross_attention", "cross_mlp"),
        cross_attention=count("cross_attention"),
        cross_states=count("cross_states"),
        token_by_layer=() if any(layer.cross for layer in layers) else tuple(map(round, by_layer)),
    )


def _heads(text: Any) -> Heads:
    count = int(text.num_attention_heads)
    latent = getattr(text, "kv_lora_rank", None)
    if latent:
        rotary = int(text.qk_rope_head_dim)
        key = int(text.qk_nope_head_dim) + rotary
        return Heads(count, key, int(text.v_head_dim), int(latent), rotary)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // count)
    return Heads(count, size, size)


def _pairs(layer: CacheLayer, sequence: int, states: int) -> int:
    """Count pairs of a token and an entry that it sees, over a whole prompt."""
    if layer.cross:
        return sequence * states
    full = sequence if layer.window is None else min(sequence, layer.window)
    return full * (full + 1) // 2 + (sequence - full) * full
