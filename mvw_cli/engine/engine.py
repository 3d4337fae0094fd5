"""The decode loop: requests in, events out, over a fixed number of slots.

One loop serves one image and a thousand. It does not know adapters, profiles or terminals, and
what a policy looks at is up to the policy.

What withdrawal means, exactly: tokens 1…m come from forward passes that see every vision token;
the pass that reads token m, and each later one, sees none. Positions are never renumbered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mvw_cli.adapter import LoadedModel
from mvw_cli.engine.attention import attention_kernel, choose_kernel, decoded_cache, decoding
from mvw_cli.engine.cache import SlotCache
from mvw_cli.engine.cross_attention import CrossAttention, cross_attention_layers, skipping
from mvw_cli.engine.exact import NotExact, check_architecture, sliding_windows
from mvw_cli.engine.prepare import Prepared, prepare
from mvw_cli.engine.sampling import Sampler, choose_tokens
from mvw_cli.engine.text import Detokenizer
from mvw_cli.engine.types import (
    Admitted,
    Event,
    Finished,
    FinishReason,
    Prefilled,
    Request,
    Token,
    Withdrawn,
)
from mvw_cli.errors import ModelProblem
from mvw_cli.policy import Decide, StepView

Observe = Callable[[str, int, Tensor], None]
"""Called with request id, step and the logits that step's token was chosen from: # (V,)."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """One request while it has a slot. Its place in the engine's list is its slot."""

    request: Request
    sampler: Sampler
    stop_ids: frozenset[int]
    decide: Decide
    position: Tensor
    """Position ids of the token to be read next.  # (1, 1), or (C, 1, 1)"""
    detokenizer: Detokenizer
    ids: list[int] = field(default_factory=list)

    def finish_reason(self) -> FinishReason | None:
        settings = self.request.settings
        if self.ids[-1] in self.stop_ids and not settings.ignore_eos:
            return "eos"
        if any(stop in self.detokenizer.text for stop in settings.stop):
            return "stop"
        return "length" if len(self.ids) >= settings.max_new_tokens else None


class Engine:
    """Runs requests on one loaded model.

    Args:
        slots: how many requests decode at the same time.
        attention: `auto`, `sdpa`, `eager` or `flash`.
        cross_attention: what withdrawal leaves of a cross-attention layer: nothing (`skip`), or
            its gated MLP (`mlp`).
        observe: sees the logits of every step, for oracles and measurements.

    Raises:
        ModelProblem: the model can't be served exactly, or not with this attention kernel.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        slots: int = 1,
        attention: str = "auto",
        cross_attention: CrossAttention = "skip",
        observe: Observe | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError("slots must be 1 or more")
        self._loaded = loaded
        self._model = loaded.model
        self._slots = slots
        self._observe = observe
        self._cross_layers = cross_attention_layers(loaded.model)
        self._cross_attention = cross_attention
        self._tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
        self._cache: SlotCache | None = None
        self._sequences: list[_Sequence] = []
        with self._refusing():
            check_architecture(self._model)
            self.attention = choose_kernel(self._model, attention)

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Serve the requests, refilling a slot as soon as one is free; yield what happens.

        A request's tokens do not depend on which others share the slots. The model is restored
        when the iterator ends, is closed or raises.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
        """
        waiting = iter(requests)
        with ExitStack() as stack:
            stack.enter_context(self._refusing())
            stack.enter_context(attention_kernel(self._model, self.attention))
            stack.enter_context(skipping(self._model, self._cross_layers, decoded_cache))
            stack.enter_context(self._loaded.serving(self._model))
            stack.callback(self._reset)
            while True:
                while len(self._sequences) < self._slots:
                    request = next(waiting, None)
                    if request is None:
                        break
                    yield from self._admit(request)
                if not self._sequences:
                    return
                yield from self._step()

    def _admit(self, request: Request) -> Iterator[Event]:
        """Prefill a request alone, then copy its cache into a free slot."""
        yield Admitted(request.id, perf_counter())
        prepared = prepare(self._model, request.inputs, request.settings)
        cache, logits = self._prefill(prepared)
        sequence = _Sequence(
            request=request,
            sampler=Sampler(
                processors=prepared.processors,
                sample=bool(prepared.config.do_sample),
                seed=request.settings.seed,
                ids=prepared.input_ids,
            ),
            stop_ids=prepared.stop_ids,
            decide=request.policy.begin(),
            position=prepared.next_position,
            detokenizer=Detokenizer(self._tokenizer),
        )
        [token] = choose_tokens(logits, [sequence.sampler])
        at = perf_counter()  # the first token is known here; loading the slot is bookkeeping
        prompt = prepared.input_ids.shape[1]
        if self._cache is None:
            self._cache = SlotCache(
                self._slots,
                sliding_windows(cache),
                cross_layers=self._cross_layers,
                keep_mlp=self._cross_attention == "mlp",
            )
        slot = self._cache.load(cache, prompt, request.layout.cross_entries)
        self._sequences.append(sequence)
        yield Prefilled(
            request.id,
            at,
            prompt_tokens=prompt,
            vision_tokens=request.layout.vision_tokens,
            kv_bytes=self._cache.slot_bytes(slot),
        )
        yield from self._accept(sequence, token, logits[0], at)

    def _prefill(self, prepared: Prepared) -> tuple[Any, Tensor]:
        """Read the prompt; return its cache and the last token's logits: # (1, V)."""
        model_inputs = self._model.prepare_inputs_for_generation(
            prepared.input_ids, is_first_iteration=True, **prepared.model_kwargs
        )
        output = self._model(**model_inputs, return_dict=True)
        return output.past_key_values, output.logits[:, -1]

    def _step(self) -> Iterator[Event]:
        """Read each sequence's newest token and choose its next one."""
        cache, sequences = self._cache, list(self._sequences)
        assert cache is not None
        cache.reserve_step()
        device = sequences[0].position.device
        with decoding(cache):
            output = self._model(
                input_ids=torch.tensor([[s.ids[-1]] for s in sequences], device=device),
                position_ids=torch.cat([s.position for s in sequences], dim=-2),
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
        cache.check_attended()
        logits = output.logits[:, -1]  # (n, V)
        tokens = choose_tokens(logits, [s.sampler for s in sequences])
        at = perf_counter()
        for sequence, token, row in zip(sequences, tokens, logits, strict=True):
            sequence.position = sequence.position + 1
            yield from self._accept(sequence, token, row, at)

    def _accept(
        self, sequence: _Sequence, token: int, logits: Tensor, at: float
    ) -> Iterator[Event]:
        """Take a chosen token in; then finish the sequence, or ask its policy."""
        request = sequence.request
        sequence.ids.append(token)
        step = len(sequence.ids)
        if self._observe is not None:
            self._observe(request.id, step, logits)
        piece = sequence.detokenizer.add(token)
        reason = sequence.finish_reason()
        if reason is not None:
            piece += sequence.detokenizer.finish()
        yield Token(request.id, at, step=step, id=token, text=piece)
        if reason is not None:
            yield self._finish(sequence, reason)
            return
        view = StepView(step=step, token_ids=sequence.ids, text=sequence.detokenizer.text)
        if sequence.decide(view) is not None:
            yield self._withdraw(sequence, step)

    def _withdraw(self, sequence: _Sequence, step: int) -> Withdrawn:
        cache, slot = self._cache, self._sequences.index(sequence)
        assert cache is not None
        start = perf_counter()
        before = cache.slot_bytes(slot)
        layout = sequence.request.layout
        entries = cache.withdraw(slot, layout.entries.cpu())
        cache.trim()
        _synchronise(self._model.device)
        at = perf_counter()
        return Withdrawn(
            sequence.request.id,
            at,
            step=step,
            vision_tokens=layout.vision_tokens if entries else 0,
            entries=entries,
            kv_bytes_before=before,
            kv_bytes_after=cache.slot_bytes(slot),
            duration_s=at - start,
        )

    def _finish(self, sequence: _Sequence, reason: FinishReason) -> Finished:
        cache, slot = self._cache, self._sequences.index(sequence)
        assert cache is not None
        event = Finished(
            sequence.request.id,
            perf_counter(),
            reason=reason,
            text=sequence.detokenizer.text,
            token_ids=tuple(sequence.ids),
            kv_bytes=cache.slot_bytes(slot),
            kv_allocated_bytes=cache.allocated_bytes(),
        )
        last = cache.release(slot)
        if last is not None:
            self._sequences[slot] = self._sequences[last]
        self._sequences.pop()
        return event

    def _reset(self) -> None:
        self._cache = None
        self._sequences = []

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


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that a duration covers the work and not only its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
