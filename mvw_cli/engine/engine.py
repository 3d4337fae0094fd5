"""A loaded model, ready to serve requests: checked that it can be exactly, and patched for that.

Exact means: the logits of every token are those of one full forward pass in which the withdrawn
tokens are masked, up to the rounding of a sum in another order (1e-5 in float32). In half precision
that rounding is larger, and a token whose logit ties with another's may fall the other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache

from mvw_cli.adapter import LoadedModel
from mvw_cli.engine.attention import (
    attention_kernel,
    choose_kernel,
    decode_step,
    tempered_layers,
)
from mvw_cli.engine.attention_probe import record_prefill_added
from mvw_cli.engine.cache import LayerKind, layer_kinds
from mvw_cli.engine.layer_exits import decoder_layers, hidden_of, rows_read
from mvw_cli.engine.layers import CrossAttention, cross_attention_layers
from mvw_cli.engine.slots import Observe, Slots
from mvw_cli.engine.types import Event, Failed, NotExact, Request
from mvw_cli.errors import ModelProblem


class Engine:
    """Runs requests on one loaded model.

    Args:
        slots: how many requests decode at the same time.
        attention: `auto`, `sdpa`, `eager` or `flash`.
        cross_attention: what withdrawal leaves of a cross-attention layer: nothing (`skip`), or
            its gated MLP (`mlp`).

    Raises:
        ModelProblem: the model can't be served exactly.
        UsageProblem: not with this attention kernel.
    """

    prepares_images = False
    """Whether requests bring their pictures instead of what the model's processor makes of them."""
    in_process = True
    """Whether weights, logits and kernels are in this process, for those who look at them."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        slots: int = 1,
        attention: str = "auto",
        cross_attention: CrossAttention = "skip",
    ) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._slots = slots
        self._cross_layers = cross_attention_layers(loaded.model)
        self.cross_attention = cross_attention
        self._tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
        with self._refusing():
            self._kinds = check_architecture(self._model)
            self.attention = choose_kernel(self._model, attention)

    def close(self) -> None:
        """Do nothing: the model goes with whoever holds it."""

    @property
    def slots(self) -> int:
        """How many requests `run` lets decode at the same time."""
        return self._slots

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._model.device
        return device

    def run(
        self, requests: Iterable[Request], *, observe: Observe | None = None
    ) -> Iterator[Event]:
        """Serve the requests, refilling a slot as soon as one is free; yield what happens.

        A request's tokens do not depend on which others share the slots. The model is restored
        when the iterator ends, is closed or raises.

        Args:
            observe: sees the logits of every step, for oracles and measurements.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
        """
        with self.serving(observe=observe) as slots:
            yield from serve_all(slots, requests, self._slots)

    @contextmanager
    def serving(self, *, observe: Observe | None = None) -> Iterator[Slots]:
        """Patch the model for the slots that it gives, and restore it on the way out.

        For whoever decides by himself what is admitted when; `run` is its plain use.
        """
        with ExitStack() as stack:
            stack.enter_context(self._refusing())
            stack.enter_context(attention_kernel(self._model, self.attention))
            stack.enter_context(_skipping(self._model, self._cross_layers))
            stack.enter_context(_rope_by_row(self._model))
            stack.enter_context(_tempering(self._model))
            stack.enter_context(self._loaded.serving(self._model))
            yield Slots(
                self._model,
                self._tokenizer,
                kinds=self._kinds,
                cross_layers=self._cross_layers,
                keep_mlp=self.cross_attention == "mlp",
                observe=observe,
            )

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn "can't be served exactly" into the user's sentence."""
        try:
            yield
        except NotExact as error:
            raise ModelProblem(
                f"{type(self._model).__name__} can't be served exactly, so it is not served.",
                cause=f"In {self._loaded.name}: {error}.",
                hint="mvw list adapters",
            ) from error


class Serving(Protocol):
    """What requests are handed to: the slots of an engine."""

    @property
    def active(self) -> list[str]: ...
    def admit(self, request: Request) -> list[Event]: ...
    def step(self) -> list[Event]: ...


def serve_all(slots: Serving, requests: Iterable[Request], most: int) -> Iterator[Event]:
    """Serve the requests, so many at a time at most, refilling as soon as one is complete.

    Raises:
        Exception: what befell a request.
    """
    waiting = iter(requests)
    while True:
        while len(slots.active) < most:
            request = next(waiting, None)
            if request is None:
                break
            yield from slots.admit(request)
        if not slots.active:
            return
        for event in slots.step():
            if isinstance(event, Failed):
                raise event.error
            yield event


def check_architecture(model: PreTrainedModel) -> list[LayerKind]:
    """Check what can be told from the model's class and configuration.

    What only shows in a forward pass is caught in `attention.py` and `cache.py`. Returns what each
    layer keeps, as `layer_kinds`.

    Raises:
        NotExact: with the reason.
    """
    text = model.config.get_text_config()
    if not model.can_generate():
        raise NotExact("it can't generate text")
    if not isinstance(model, GenerationMixin):
        raise NotExact("it writes blocks of tokens, not one token after the other")
    if model.config.is_encoder_decoder:
        raise NotExact("it is an encoder-decoder; only decoder-only models are served")
    if "position_ids" not in signature(model.forward).parameters:
        raise NotExact("it takes no position ids, so withdrawal would shift positions")
    return layer_kinds(DynamicCache(config=text), text)


@contextmanager
def _skipping(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """Let cross-attention layers leave the rows of withdrawn slots as they are in decode steps.

    Where all slots are withdrawn, transformers skips the layer itself. The hooks are removed on the
    way out.

    Raises:
        NotExact: the decoder's layers aren't where transformers has them.
    """
    decoder = decoder_layers(model) if layers else ()
    with ExitStack() as stack:
        for number in layers:
            hook = partial(_after_cross_layer, number)
            stack.callback(decoder[number].register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _after_cross_layer(
    number: int,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> Tensor:
    before = hidden_of(args, kwargs)  # (n, 1, D), or (1, P, D)
    step = decode_step.get()
    if step is None:
        record_prefill_added(number, before, output)
        return output
    output = step.cache.layers[number].without_skipped(before, output)
    if step.probes is not None:
        step.probes.record_added(number, before, output)
    return output


@contextmanager
def _rope_by_row(model: nn.Module) -> Iterator[None]:
    """Let each row of a batch have the rotary frequencies that it would have alone.

    transformers computes those of `dynamic` and `longrope` from the largest position of a whole
    batch, and goes on from the longest sequence that it has seen: a request would depend on its
    neighbours and on those before it.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if _grows(module):
                stack.enter_context(_by_row(module))
        yield


def _grows(module: nn.Module) -> bool:
    """Whether a module's frequencies depend on the length, as `dynamic_rope_update` has it."""
    kinds = getattr(module, "rope_type", ())
    kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
    return any("dynamic" in kind or kind == "longrope" for kind in kinds if kind)


@contextmanager
def _by_row(module: Any) -> Iterator[None]:
    plain, own = module.forward, "forward" in vars(module)

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = []
        for one in torch.split(position_ids, 1, dim=-2):  # of (rows, T), or (C, rows, T) for M-RoPE
            _forget(module)
            rows.append(plain(x[:1], one, *args, **kwargs))
        return _joined(rows)

    module.forward = forward
    try:
        yield
    finally:
        _forget(module)
        if own:
            module.forward = plain
        else:
            del module.forward


def _forget(module: Any) -> None:
    """Set a module back to the frequencies that it was made with."""
    for name in [*vars(module), *module._buffers]:
        if not name.endswith("original_inv_freq"):
            continue
        prefix = name.removesuffix("original_inv_freq")
        frequencies, longest = f"{prefix}inv_freq", f"{prefix}max_seq_len_cached"
        # A copy: `longrope` writes into what it finds there.
        setattr(module, frequencies, getattr(module, name).to(getattr(module, frequencies)).clone())
        if hasattr(module, longest):
            setattr(module, longest, module.original_max_seq_len)


def _joined(rows: list[Any]) -> Any:
    """Put the phases of single rows together: # (1, T, D), or (C, 1, T, D) for M-RoPE."""
    if isinstance(rows[0], tuple):
        return tuple(_joined(list(of)) for of in zip(*rows, strict=True))
    return torch.cat(rows, dim=-3)


@contextmanager
def _tempering(model: PreTrainedModel) -> Iterator[None]:
    """Scale the queries of Llama 4's layers without rotation by each row's own position.

    transformers counts on from the length of the cache, the same for all rows and as if none had
    left (`Llama4TextAttention.forward`, `attn_temperature_tuning`).
    """
    with ExitStack() as stack:
        for attention in tempered_layers(model):
            tuned = attention.attn_temperature_tuning

            def before(module: Any, args: object) -> None:
                own = decode_step.get() is not None or rows_read.get() is not None
                module.attn_temperature_tuning = not own

            def after(module: Any, args: object, output: object, tuned: Any = tuned) -> None:
                module.attn_temperature_tuning = tuned

            for hook in (
                attention.register_forward_pre_hook(before),
                attention.register_forward_hook(after, always_call=True),
                attention.q_proj.register_forward_hook(partial(_after_query, attention)),
            ):
                stack.callback(hook.remove)
        yield


def _after_query(attention: Any, module: nn.Module, args: object, output: Tensor) -> Tensor | None:
    """Scale the queries of a decode step, or of a prefill that some rows have left.

    output: # (n, 1, D) or (1, K, D)
    """
    step, places = decode_step.get(), rows_read.get()
    if step is not None:
        groups = step.cache.layers[attention.layer_idx].groups
        places = torch.tensor([[one.next_index] for rows in groups for one in rows.entries])
    elif places is None:
        return None
    grown = (places.to(output.device).float() + 1) / attention.floor_scale
    scales: Tensor = torch.log1p(torch.floor(grown)) * attention.attn_scale + 1
    return (output * scales[..., None]).to(output.dtype)
