"""Tiny models and prompts on which policies are held against the oracle, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from math import isqrt
from typing import Any

import torch
from families import BY_NAME, FAMILIES, build
from oracle_weights import attention_scores, attention_weights
from running import request
from torch import Tensor

from mvw_cli.adapter import Adapter, LoadedModel, ModelSpec, VisionLayout, unchanged
from mvw_cli.engine.types import Event, Finished, Request, Token
from mvw_cli.oracle.equivalence import noise, run
from mvw_cli.oracle.masked import masked_logits
from mvw_cli.plugins import load_adapter
from mvw_cli.policy import WithdrawalPolicy

TOKENS = 14
"""Length of each output."""

Masks = dict[int, Tensor]
"""By layer, which vision tokens are hidden from which row: # (P + T, N) bool."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A tiny model, and prompts for it."""

    name: str
    loaded: LoadedModel
    adapter: Adapter | None = None

    @property
    def text(self) -> Any:
        return self.loaded.model.config.get_text_config()

    @property
    def layers(self) -> int:
        return int(self.text.num_hidden_layers)

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """Layers that hold vision without any policy."""
        crossed = getattr(self.text, "cross_attention_layers", None)
        kinds = getattr(self.text, "layer_types", None) or [""] * self.layers
        recurrent = [n for n, kind in enumerate(kinds) if kind in ("linear_attention", "conv")]
        without = {*recurrent, *self.sharing}
        return tuple(crossed or (n for n in range(self.layers) if n not in without))

    @property
    def sharing(self) -> dict[int, int]:
        """By layer that reads what another one holds, the number of that one."""
        modes = getattr(self.text, "kv_sharing_modes", None) or ()
        kinds = getattr(self.text, "layer_types", None) or ()
        holder = {kinds[n]: n for n, mode in enumerate(modes) if mode == "store"}
        return {n: holder[kinds[n]] for n, mode in enumerate(modes) if mode == "reuse"}

    def prompt(self, seed: int, images: int = 1) -> tuple[dict[str, Tensor], VisionLayout]:
        """Make a prompt; its images, and so its length, differ from seed to seed."""
        if self.adapter is None:
            family = BY_NAME[self.name]
            inputs = family.prompt(seed)
            layout = family.layout(inputs)
            crossed = layout.cross_entries is not None
            return inputs, layout if crossed else _with_grid(inputs, layout)
        sizes = [(64, 48), (40, 40), (90, 30), (30, 70), (64, 64)]
        pictures = [noise(*sizes[(seed + i) % 5], seed=seed + 7 * i) for i in range(images)]
        inputs = self.adapter.encode(self.loaded, pictures, f"w1 w2 w{seed} w9 w4")
        return inputs, self.adapter.vision(self.loaded, inputs)


@cache
def subject(name: str) -> Subject:
    """Make a subject: a family of `families.py`, or the tiny model of an adapter.

    With `-expanded` it is served as transformers has it, without the adapter's faster step.
    """
    if any(name == family.name for family in FAMILIES):
        model = build(BY_NAME[name])
        return Subject(name, LoadedModel("test", name, model, None, ModelSpec()))
    adapter = load_adapter(name.removesuffix("-expanded"))
    loaded = adapter.tiny()
    if name.endswith("-expanded"):
        loaded = replace(loaded, serving=unchanged)
    return Subject(name, loaded, adapter)


def _with_grid(inputs: dict[str, Tensor], layout: VisionLayout) -> VisionLayout:
    """Tell where the vision tokens of the single image lie, as an adapter would."""
    if "image_grid_thw" in inputs:
        _, height, width = inputs["image_grid_thw"][0].tolist()
        grid = (height // 2, width // 2)
    elif "image_sizes" in inputs:
        height, width = inputs["image_sizes"][0].tolist()
        grid = (height // 8, width // 8)
    else:
        grid = (isqrt(layout.vision_tokens),) * 2
    if grid[0] * grid[1] != layout.vision_tokens:
        return layout
    return replace(layout, images=(layout.vision_tokens,), grids=(grid,))


@dataclass(frozen=True, eq=False)
class Served:
    """What the engine made of one request, and what the oracle says of it."""

    subject: Subject
    request: Request
    events: tuple[Event, ...]
    logits: Tensor  # (T, V)
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    """What was readable after each token."""
    kind: Any
    """What withdrawal leaves of a cross-attention layer."""

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.logits) == len(self.texts)

    @property
    def prompt(self) -> int:
        return int(self.request.inputs["input_ids"].shape[1])

    @property
    def tokens(self) -> int:
        """N."""
        return self.request.layout.vision_tokens

    @property
    def cross_attention(self) -> bool:
        return self.request.layout.cross_entries is not None

    def of(self, kind: type[Any]) -> list[Any]:
        """Events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def nothing(self) -> Masks:
        rows = self.prompt + len(self.ids)
        layers = (*self.subject.vision_layers, *self.subject.sharing)
        return {layer: torch.zeros(rows, self.tokens, dtype=torch.bool) for layer in layers}

    def row(self, step: int) -> int:
        """The row from which token `step` was chosen: that of the newest query then."""
        return self.prompt + step - 2

    def expected(self, masks: Masks) -> Tensor:
        return masked_logits(*self._asked(masks), cross_attention=self.kind)

    def weights(self, masks: Masks, layers: Sequence[int], step: int) -> dict[int, Tensor]:
        """By layer, of the query from which token `step` was chosen: # (N,)."""
        found = attention_weights(
            *self._asked(masks), layers, [self.row(step)], cross_attention=self.kind
        )
        return {layer: weights[0] for layer, weights in found.items()}

    def scores(self, masks: Masks, layer: int) -> Tensor:
        """Of the passes that read a generated token: # (H, T, columns), -inf where hidden."""
        rows = range(self.prompt, self.prompt + len(self.ids))
        found = attention_scores(*self._asked(masks), [layer], rows, cross_attention=self.kind)
        return found[layer]

    def entropy(self, masks: Masks, step: int) -> float:
        logs = self.expected(masks)[step - 1].double().log_softmax(dim=-1)
        return float(-(logs.exp() * logs).sum())

    def mass(self, masks: Masks, layers: Sequence[int], step: int) -> float:
        """Attention on vision; with cross-attention, what the layers add to the stream."""
        if not self.cross_attention:
            found = self.weights(masks, layers, step)
            return sum(float(weights.sum()) for weights in found.values()) / len(layers)
        shares = {}
        with self._streams(shares):
            self.expected(masks)
        return sum(float(shares[layer][self.row(step)]) for layer in layers) / len(layers)

    @contextmanager
    def _streams(self, shares: dict[int, Tensor]) -> Any:
        """Note by which part each layer changes the stream: # (rows,)."""
        handles = []

        def note(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            added = (output - args[0]).norm(dim=-1)
            shares[layer.layer_idx] = (added / (args[0].norm(dim=-1) + added))[0]

        for number in self.subject.vision_layers:
            layer = self.subject.loaded.model.get_decoder().layers[number]
            handles.append(layer.register_forward_hook(note))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _asked(self, masks: Masks) -> tuple[Any, ...]:
        request = self.request
        seen = dict(masks)
        for layer, holder in self.subject.sharing.items():
            seen[layer] = masks[layer] | masks[holder]
        return self.subject.loaded.model, request.inputs, self.ids, request.layout, seen


def asked(
    subject: Subject, policy: WithdrawalPolicy, seed: int = 0, *, images: int = 1, **settings: Any
) -> Request:
    inputs, layout = subject.prompt(seed, images)
    options = {"name": str(seed), "max_new_tokens": TOKENS, **settings}
    return request(inputs, layout, None, policy=policy, **options)


def serve(
    subject: Subject,
    requests: Sequence[Request],
    *,
    slots: int = 1,
    attention: str = "sdpa",
    cross_attention: Any = "skip",
) -> dict[str, Served]:
    """Run requests to the end; return what came of each."""
    options = {"slots": slots, "attention": attention, "cross_attention": cross_attention}
    trials, _ = run(subject.loaded, requests, **options)
    served = {}
    for one, trial in zip(requests, trials, strict=True):
        pieces = [event.text for event in trial.events if isinstance(event, Token)]
        [ids] = [event.token_ids for event in trial.events if isinstance(event, Finished)]
        texts = tuple(accumulate(pieces))
        found = Served(subject, one, trial.events, trial.logits, ids, texts, cross_attention)
        served[one.id] = found
    return served
