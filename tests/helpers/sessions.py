"""Sessions on tiny models: the families of the engine's tests, and the adapters' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from families import FAMILIES, build
from PIL.Image import Image
from torch import Tensor

from mvw_cli.adapter import Adapter, LoadedModel, ModelSpec
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import GenerationSettings, Prefilled, Request
from mvw_cli.oracle.equivalence import noise
from mvw_cli.oracle.masked import extended
from mvw_cli.plugins import load_adapter
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session

GREEDY = GenerationSettings(max_new_tokens=12, temperature=0, ignore_eos=True)
IMAGE = noise(64, 48)


def at(m: int | None) -> WithdrawalPolicy:
    return NoWithdrawal() if m is None else Mvw(m=m)


def opened(adapter: Adapter, loaded: LoadedModel, **engine: Any) -> Session:
    return Session(adapter, loaded, Engine(loaded, **engine), NoWithdrawal(), GREEDY)


def tiny(name: str, **engine: Any) -> Session:
    """Open a session on an adapter's own tiny model, which writes no placeholder."""
    adapter = load_adapter(name)
    loaded = adapter.tiny()
    ids = [getattr(loaded.model.config, key, None) for key in ("image_token_id", "video_token_id")]
    loaded.model.generation_config.suppress_tokens = [one for one in ids if one is not None]
    return opened(adapter, loaded, **engine)


def asked(session: Session, m: int | None = None, image: Image = IMAGE, **given: Any) -> Request:
    """Ask about an image; withdrawal after m tokens, or never."""
    request = session.request([image], "w1 w2 red circles")
    return replace(request, policy=at(m), **given)


def family(name: str, m: int | None = None, **engine: Any) -> tuple[Session, Request]:
    """Open a session on a family of the engine's tests, with one of its prompts."""
    chosen = next(one for one in FAMILIES if one.name == name)
    loaded = LoadedModel("test", name, build(chosen), None, ModelSpec())
    session = opened(load_adapter("hf"), loaded, **engine)
    inputs = chosen.prompt(0)
    return session, Request("0", inputs, chosen.layout(inputs), at(m), GREEDY)


def answered(session: Session, request: Request) -> tuple[int, ...]:
    """Tokens of the answer."""
    *_, last = session.run([request])
    return tuple(last.token_ids)  # type: ignore[union-attr]


def followed(session: Session, request: Request) -> tuple[Tensor, Prefilled]:
    """Read an output; return the logits of its tokens, # (T, V), and the prefill."""
    rows: list[Tensor] = []
    with session.serving(observe=lambda name, step, row: rows.append(row.clone())) as slots:
        events = slots.admit(request)
        while slots.active:
            events += slots.step()
    return torch.stack(rows), next(one for one in events if isinstance(one, Prefilled))


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def eager_weights(session: Session, request: Request, output: tuple[int, ...]) -> torch.Tensor:
    """Weights on the vision tokens in one eager pass over all: # (layers, T, N)."""
    model = session.loaded.model
    prompt = request.inputs["input_ids"].shape[1]
    with _eager(model):
        told = model(
            **extended(model, request.inputs, output), use_cache=False, output_attentions=True
        ).attentions
    assert all(layer is not None for layer in told)
    columns = request.layout.entries.nonzero()[:, 0]
    rows = slice(prompt - 1, prompt - 1 + len(output))
    return torch.stack([layer[0, :, rows][..., columns].mean(0) for layer in told])
