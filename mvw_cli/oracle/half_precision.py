"""Is the engine equal to the oracle with flash-attn, which computes in half precision only?

There the oracle itself is off by rounding, so that no fixed tolerance would mean anything. Both are
held against the oracle in float32, of the same weights: the engine may be off by a little more than
the oracle in the same half precision is. It does not know terminals.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from mvw_cli.errors import ModelProblem
from mvw_cli.oracle.equivalence import Equivalence, noise, question_of, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mvw_cli.adapter import Adapter, LoadedModel

ALLOWED = 3
"""Times the oracle's own rounding error. FlashAttention's tests allow its decode kernel as much,
beside attention in plain PyTorch (tests/test_flash_attn.py of Dao-AILab/flash-attention)."""
_WAY_OUT = "mvw doctor --equivalence --set attention=sdpa"
_FUNCTIONS = ("flash_attn_func", "flash_attn_with_kvcache")


def half_of(adapter: Adapter, device: str, dtype: Literal["float16", "bfloat16"]) -> LoadedModel:
    """Build the adapter's tiny model in half precision on a device."""
    from dataclasses import replace

    import torch

    tiny = adapter.tiny()
    return replace(tiny, model=tiny.model.to(device, getattr(torch, dtype)))


def takes_flash(model: Any) -> bool:
    """Whether the engine would serve a model by flash-attn if it were free to choose."""
    from mvw_cli.engine.attention import choose_kernel

    return choose_kernel(model, "auto") == "flash"


def flash_equivalence(
    adapter: Adapter,
    loaded: LoadedModel,
    *,
    m: int = 3,
    new_tokens: int = 12,
    cross_attention: Literal["skip", "mlp"] = "skip",
) -> Equivalence:
    """Run the engine with flash-attn and the oracle on a tiny model, and compare every logit.

    Args:
        loaded: as `half_of` makes it.

    Raises:
        ModelProblem: flash-attn can't serve this model here, or has served no call of it.
    """
    from mvw_cli.engine.attention import choose_kernel
    from mvw_cli.engine.exact import NotExact
    from mvw_cli.oracle import oracle_logits

    try:
        choose_kernel(loaded.model, "flash")
    except NotExact as error:
        raise ModelProblem("flash-attn can't serve it.", cause=f"{error}", hint=_WAY_OUT) from error
    request = question_of(adapter, loaded, [noise(64, 48)], m=m, new_tokens=new_tokens)
    options = {"attention": "flash", "cross_attention": cross_attention}
    with _counted() as calls:
        [trial], kernel = run(loaded, [request], **options)
    if not calls:
        raise ModelProblem(
            "flash-attn was not called.",
            cause="The engine gives all of this model's attention to SDPA: it needs masks, or "
            "keys and values of different width",
            hint=_WAY_OUT,
        )

    def expected(model: Any, inputs: dict[str, Tensor], at: int | None) -> Tensor:
        vision = request.layout.entries.to(inputs["input_ids"].device)
        logits = oracle_logits(
            model, inputs, trial.token_ids, vision, at, cross_attention=cross_attention
        )
        return logits.float().cpu()

    rounded = expected(loaded.model, dict(request.inputs), m)
    inputs = {
        name: value.cpu().float() if value.is_floating_point() else value.cpu()
        for name, value in request.inputs.items()
    }
    exact, visible = (expected(_widened(loaded.model), inputs, at) for at in (m, None))
    rounding = float((rounded - exact).abs().max())
    return Equivalence(
        difference=float((trial.logits.float().cpu() - exact).abs().max()),
        tolerance=ALLOWED * rounding,
        effect=float((visible - exact).abs().max()),
        tokens=len(trial.token_ids),
        vision_tokens=request.layout.vision_tokens,
        m=m,
        attention=kernel,
        device=str(loaded.model.device),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        rounding=rounding,
        flash_calls=len(calls),
    )


def _widened(model: Any) -> Any:
    """Copy a model to float32 on the CPU, its weights as half precision has rounded them."""
    from copy import deepcopy

    return deepcopy(model).float().cpu()


@contextmanager
def _counted() -> Iterator[list[str]]:
    """Note each call of flash-attn's functions by its name; they are put back on the way out."""
    from importlib import import_module

    library = import_module("flash_attn")
    calls: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        return call

    before = {name: getattr(library, name) for name in _FUNCTIONS}
    try:
        for name, function in before.items():
            setattr(library, name, noted(name, function))
        yield calls
    finally:
        for name, function in before.items():
            setattr(library, name, function)
