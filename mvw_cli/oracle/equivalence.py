"""Is the engine equal to the masked-attention oracle, for this adapter on this machine?

One question about a made-up image, on the adapter's tiny model. It compares and reports; whether a
difference is a failure is one property of the result. It does not know terminals.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from PIL.Image import Image
    from torch import Tensor

    from mvw_cli.adapter import Adapter, LoadedModel
    from mvw_cli.engine import Event, Request

TOLERANCE = 1e-5
"""Largest absolute difference of logits in float32 that counts as equal."""
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
    new_tokens: int = 12,
    device: str = "cpu",
    cross_attention: Literal["skip", "mlp"] = "skip",
) -> Equivalence:
    """Run engine and oracle on the adapter's tiny model, and compare every logit.

    Raises:
        ModelProblem: the engine refuses the model, or this attention kernel for it.
    """
    from dataclasses import replace

    from mvw_cli.oracle import oracle_logits

    tiny = adapter.tiny()
    loaded = replace(tiny, model=tiny.model.to(device))
    request = question_of(adapter, loaded, [noise(64, 48)], m=m, new_tokens=new_tokens)
    engine_options = {"attention": attention, "cross_attention": cross_attention}
    [trial], kernel = run(loaded, [request], **engine_options)
    expected, visible = (
        oracle_logits(
            loaded.model,
            request.inputs,
            trial.token_ids,
            request.layout.entries,
            at,
            cross_attention=cross_attention,
        )
        for at in (m, None)
    )
    return Equivalence(
        difference=float((trial.logits - expected).abs().max()),
        tolerance=TOLERANCE,
        effect=float((visible - expected).abs().max()),
        tokens=len(trial.token_ids),
        vision_tokens=request.layout.vision_tokens,
        m=m,
        attention=kernel,
        device=str(loaded.model.device),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
    )


def question_of(
    adapter: Adapter,
    loaded: LoadedModel,
    images: Sequence[Image],
    *,
    m: int | None,
    name: str = "0",
    question: str = QUESTION,
    new_tokens: int = 12,
    **settings: Any,
) -> Request:
    """Encode a question to be answered greedily over a fixed length; `m` None never withdraws."""
    from mvw_cli.engine import GenerationSettings, Request
    from mvw_cli.policies.mvw import Mvw
    from mvw_cli.policies.none import NoWithdrawal

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
    import torch

    from mvw_cli.engine import Engine, Token

    logits: dict[str, list[Tensor]] = {}
    events: dict[str, list[Event]] = {}

    def observe(name: str, step: int, row: Tensor) -> None:
        logits.setdefault(name, []).append(row.clone())

    engine = Engine(loaded, observe=observe, **engine_options)
    with writing_text_only(loaded.model):
        for event in engine.run(requests):
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
def writing_text_only(model: Any) -> Iterator[None]:
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


def noise(width: int, height: int, seed: int = 0) -> Image:
    """Make a picture of random pixels: every patch differs from picture to picture."""
    from random import Random

    from PIL import Image

    return Image.frombytes("RGB", (width, height), Random(seed).randbytes(3 * width * height))
