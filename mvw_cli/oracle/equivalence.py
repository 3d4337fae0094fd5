"""Is the engine equal to the masked-attention oracle, for this adapter on this machine?

One question about a made-up image, on the adapter's tiny model. In float32 a fixed tolerance does.
flash-attn computes in half precision only, where the oracle itself is off by rounding, so that no
fixed tolerance would mean anything: there both are held against the oracle in float32, of the same
weights, and the engine may be off by a little more than the oracle in the same half precision is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from mvw_cli.adapter import Adapter, LoadedModel
from mvw_cli.engine import attention as kernels
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.layers import CrossAttention
from mvw_cli.engine.types import Event, GenerationSettings, Request, Token
from mvw_cli.errors import ModelProblem
from mvw_cli.oracle.masked import oracle_logits
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal

TOLERANCE = 1e-5
"""Largest absolute difference of logits in float32 that counts as equal."""
ALLOWED = 3
"""Times the oracle's own rounding error. FlashAttention's tests allow its decode kernel as much
over attention in plain PyTorch (tests/test_flash_attn.py of Dao-AILab/flash-attention)."""
QUESTION = "How many red circles are there in this picture?"


@dataclass(frozen=True, slots=True)
class Equivalence:
    """How far the engine is from the oracle."""

    difference: float
    """Largest absolute difference of any logit of any token."""
    tolerance: float
    effect: float
    """Largest absolute difference that the withdrawal itself makes, by the oracle."""
    tokens: int
    """Generated tokens that were compared, each over the whole vocabulary."""
    vision_tokens: int
    m: int
    attention: str
    """The kernel that ran."""
    device: str
    dtype: str
    rounding: float | None = None
    """In half precision: how far the oracle is from itself in float32. `difference` is from there,
    too, and `tolerance` is a multiple of it."""
    flash_calls: int | None = None
    """Calls that flash-attn has served, where the comparison is about it."""

    @property
    def telling(self) -> bool:
        """Whether a mistake would show: withdrawal changes far more than the tolerance."""
        return self.effect >= (100 if self.rounding is None else 10) * self.tolerance

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance, and the test was one; NaN is not."""
        return self.difference <= self.tolerance and self.telling


@dataclass(frozen=True, slots=True)
class Trial:
    """What one request came to."""

    events: tuple[Event, ...]
    token_ids: tuple[int, ...]
    logits: Tensor  # (T, V)


def equivalence(
    adapter: Adapter,
    *,
    attention: str = "auto",
    m: int = 3,
    device: str = "cpu",
    dtype: str = "float32",
    cross_attention: CrossAttention = "skip",
) -> Equivalence:
    """Run engine and oracle on the adapter's tiny model, and compare every logit.

    Raises:
        ModelProblem: the engine refuses the model, or this attention kernel for it; or all was to
            be served by flash-attn, and nothing has been.
    """
    loaded = tiny_model(adapter, device, dtype)
    model = loaded.model
    request = question_of(adapter, loaded, [noise(64, 48)], m=m)
    with _flash_calls() as calls:
        options = {"attention": attention, "cross_attention": cross_attention}
        [trial], kernel = run(loaded, [request], **options)
    if attention == "flash" and not calls:
        raise ModelProblem(
            "flash-attn was not called.",
            cause="The engine gives all of this model's attention to SDPA: it needs masks, or "
            "keys and values of different width",
            hint="mvw doctor --equivalence --set attention=sdpa",
        )
    difference, rounding, effect = distances(model, request, trial, m, cross_attention)
    return Equivalence(
        difference=difference,
        tolerance=TOLERANCE if rounding is None else ALLOWED * rounding,
        effect=effect,
        tokens=len(trial.token_ids),
        vision_tokens=request.layout.vision_tokens,
        m=m,
        attention=kernel,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        rounding=rounding,
        flash_calls=len(calls) if attention == "flash" else None,
    )


def tiny_model(adapter: Adapter, device: str, dtype: str) -> LoadedModel:
    """Build the adapter's tiny model on a device, its weights rounded to a precision."""
    tiny = adapter.tiny()
    return replace(tiny, model=tiny.model.to(device, getattr(torch, dtype)))


def distances(
    model: PreTrainedModel,
    request: Request,
    trial: Trial,
    m: int,
    cross_attention: CrossAttention = "skip",
) -> tuple[float, float | None, float]:
    """Compare what a model came to with the oracle in float32.

    A model in half precision is compared with the same weights in float32 on the CPU. Returns the
    largest absolute differences of logits: that the engine makes, that rounding makes to the oracle
    itself (None in float32), and that the withdrawal makes.
    """
    half = model.dtype != torch.float32
    exactly = deepcopy(model).float().cpu() if half else model

    def oracle(one: PreTrainedModel, at: int | None) -> Tensor:
        inputs = {
            name: value.to(one.device, one.dtype if value.is_floating_point() else value.dtype)
            for name, value in request.inputs.items()
        }
        vision = request.layout.entries.to(one.device)
        return oracle_logits(
            one, inputs, trial.token_ids, vision, at, cross_attention=cross_attention
        )

    exact = oracle(exactly, m)

    def off(logits: Tensor) -> float:
        return float((logits.to(exact) - exact).abs().max())

    rounding = off(oracle(model, m)) if half else None
    return off(trial.logits), rounding, off(oracle(exactly, None))


def question_of(
    adapter: Adapter,
    loaded: LoadedModel,
    images: Sequence[Image.Image],
    *,
    m: int | None,
    name: str = "0",
    question: str = QUESTION,
    new_tokens: int = 12,
    **settings: Any,
) -> Request:
    """Encode a question to be answered greedily over a fixed length; `m` None never withdraws."""
    inputs = adapter.encode(loaded, images, question)
    options = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True, **settings}
    return Request(
        name,
        inputs,
        adapter.vision(loaded, inputs),
        NoWithdrawal() if m is None else Mvw(m=m),
        GenerationSettings(**options),
    )


def run(
    loaded: LoadedModel, requests: Iterable[Request], **engine_options: Any
) -> tuple[list[Trial], str]:
    """Run requests to the end; return what each came to, in their order, and the kernel's name."""
    logits: dict[str, list[Tensor]] = {}
    events: dict[str, list[Event]] = {}

    def observe(name: str, step: int, row: Tensor) -> None:
        logits.setdefault(name, []).append(row.clone())

    engine = Engine(loaded, **engine_options)
    with writing_text_only(loaded.model):
        for event in engine.run(requests, observe=observe):
            events.setdefault(event.request, []).append(event)
    trials = [
        Trial(
            tuple(own),
            tuple(event.id for event in own if isinstance(event, Token)),
            torch.stack(logits[name]),
        )
        for name, own in events.items()
    ]
    return trials, engine.attention


@contextmanager
def writing_text_only(model: PreTrainedModel) -> Iterator[None]:
    """Keep a model from writing placeholders, which no forward pass could read without an image.

    A random model writes any token; the suppression is that of transformers' generation config.
    """
    config = model.generation_config
    before = config.suppress_tokens
    names = ("image_token_id", "video_token_id")
    ids = [getattr(model.config, name, None) for name in names]
    try:
        config.suppress_tokens = [*(before or []), *(i for i in ids if i is not None)]
        yield
    finally:
        config.suppress_tokens = before


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Make a picture of random pixels: every patch differs from picture to picture."""
    return Image.frombytes("RGB", (width, height), Random(seed).randbytes(3 * width * height))


@contextmanager
def _flash_calls() -> Iterator[list[str]]:
    """Note each call that the engine makes of flash-attn by its kind."""
    calls: list[str] = []
    before = {name: getattr(kernels, name) for name in ("flash_prefill", "flash_decode")}

    def noted(name: str, *args: object) -> Tensor:
        calls.append(name)
        attended: Tensor = before[name](*args)
        return attended

    vars(kernels).update({name: partial(noted, name) for name in before})
    try:
        yield calls
    finally:
        vars(kernels).update(before)
