"""The sequences that are being decoded: one is admitted, all make a step, one is dropped.

Whoever drives it decides who comes in when (`engine.py` for plain runs, `batch/serve.py` for many
images). It does not know adapters, profiles or files, and what a policy looks at is up to the
policy.

What withdrawal means, exactly: tokens 1…m come from forward passes that see every vision token;
the pass that reads token m, and each later one, sees none. Positions are never renumbered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mvw_cli.engine.attention import decoding
from mvw_cli.engine.cache import SlotCache
from mvw_cli.engine.changes import restore, withdraw
from mvw_cli.engine.cross_attention import CrossAttention
from mvw_cli.engine.detokenize import Detokenizer
from mvw_cli.engine.exact import NotExact, sliding_windows
from mvw_cli.engine.looking import Look
from mvw_cli.engine.prefill import present_in, read_prompt
from mvw_cli.engine.prepare import prepare
from mvw_cli.engine.sampling import Sampler, choose_tokens
from mvw_cli.engine.sequence import SequenceState
from mvw_cli.engine.types import (
    Admitted,
    Event,
    Failed,
    Finished,
    FinishReason,
    Prefilled,
    Request,
    Token,
)
from mvw_cli.policy import Withdraw, decisions

Observe = Callable[[str, int, Tensor], None]
"""Called with request id, step and the logits that step's token was chosen from: # (V,)."""


class Slots:
    """The slots of one engine while its model is being served. Made by `Engine.serving`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        cross_layers: Sequence[int],
        cross_attention: CrossAttention,
        observe: Observe | None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._cross_layers = cross_layers
        self._keep_mlp = cross_attention == "mlp"
        self._observe = observe
        self._cache: SlotCache | None = None
        self._sequences: dict[int, SequenceState] = {}
        """By slot, the earliest admitted first."""

    # -- how things stand -------------------------------------------------------------------

    @property
    def active(self) -> list[str]:
        """Ids of the requests that are being decoded, the earliest admitted first."""
        return [sequence.request.id for sequence in self._sequences.values()]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache entries in use, all slots together."""
        return 0 if self._cache is None else self._cache.used_bytes()

    @property
    def kv_allocated_bytes(self) -> int:
        """Bytes of the storages behind the cache, all slots together."""
        return 0 if self._cache is None else self._cache.allocated_bytes()

    def room_bytes(
        self, request: Request | None = None, *, ahead: int = 1, withdrawing: bool = False
    ) -> int:
        """Bytes that the cache's storages would take `ahead` steps from now.

        Exact for what is in the slots now, if none ends or is withdrawn until then; 0 before the
        first request has shown how wide an entry is. What is offloaded counts as if it were back. A
        request counts in full, though its policy may take vision tokens in the prefill.

        Args:
            request: one that is admitted as well.
            withdrawing: count the most that they may take meanwhile instead, whenever those that
                see are withdrawn. A withdrawal copies what stays before the rest goes.
        """
        if self._cache is None:
            return 0
        offloaded = sum(one.offloaded_bytes for one in self._sequences.values())
        text = [one.request.text_tokens + len(one.ids) for one in self._sequences.values()]
        if request is None:
            return offloaded + self._cache.room_bytes(
                ahead=ahead, text=max(text, default=0) if withdrawing else None
            )
        layout, crossed = request.layout, request.layout.cross_entries
        return offloaded + self._cache.room_bytes(
            prompt=int(request.inputs["input_ids"].shape[1]),
            cross=0 if crossed is None else int(crossed.sum()),
            vision=layout.vision_tokens > 0,
            ahead=ahead,
            text=max([*text, request.text_tokens]) if withdrawing else None,
        )

    @torch.inference_mode()
    def trim(self) -> None:
        """Give back what the cache keeps for requests to come."""
        if self._cache is not None:
            self._cache.trim(exactly=True)

    # -- what happens -----------------------------------------------------------------------

    @torch.inference_mode()
    def admit(self, request: Request) -> list[Event]:
        """Prefill a request alone, then copy its cache into a free slot.

        If it raises, the slots are as they were before.
        """
        admitted = Admitted(request.id, perf_counter())
        prepared = prepare(self._model, request.inputs, request.settings)
        prompt = int(prepared.input_ids.shape[1])
        read = read_prompt(
            self._model, prepared, request, self._cross_layers, keep_mlp=self._keep_mlp
        )
        sampler = Sampler(
            processors=prepared.processors,
            sample=bool(prepared.config.do_sample),
            seed=request.settings.seed,
            ids=prepared.input_ids,
            forced=None if request.forced is None else iter(request.forced),
        )
        [token] = choose_tokens(read.logits, [sampler])
        if isinstance(token, Exception):
            raise token
        at = perf_counter()  # the first token is known here; loading the slot is bookkeeping
        decide = request.policy.begin()  # may raise, and nothing is loaded yet
        if self._cache is None:
            self._cache = SlotCache(
                sliding_windows(read.cache),
                cross_layers=self._cross_layers,
                keep_mlp=self._keep_mlp,
            )
        slot = self._cache.load(
            read.cache,
            prompt,
            vision=read.sees,
            cross_entries=request.layout.cross_entries,
            held=read.held,
        )
        try:
            sequence = self._sequences[slot] = SequenceState(
                request=request,
                slot=slot,
                sampler=sampler,
                stop_ids=prepared.stop_ids,
                decide=decide,
                position=prepared.next_position,
                detokenizer=Detokenizer(self._tokenizer),
                vision=read.vision,
                windows={layer: self._cache.layers[layer].window for layer in read.holding},
                present=present_in(self._cache.indices(slot), read.vision, read.holding),
            )
            sequence.look(read.weights)
            prefilled = Prefilled(
                request.id,
                at,
                prompt_tokens=prompt,
                vision_tokens=read.vision.tokens,
                kv_bytes=self._cache.slot_bytes(slot),
                vision_by_layer=tuple(int(one.sum()) for one in sequence.present.values()),
            )
            logits = read.logits[0]
            del read  # and its cache, before a withdrawal counts bytes
            return [admitted, prefilled, *self._accept(sequence, token, logits, at)]
        except BaseException:
            self._release(slot)
            raise

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read each sequence's newest token and choose its next one.

        If it raises, the slots are as they were before, and the step can be made again. What
        concerns one request alone (its policy, its sampler, its withdrawal) is an event, `Failed`.
        """
        cache = self._cache
        assert cache is not None
        sequences = [self._sequences[slot] for slot in cache.order]
        device = sequences[0].position.device
        lookers = [one.looker for one in sequences]
        look = Look(lookers) if any(one is not None for one in lookers) else None
        cache.reserve_step()
        try:
            with decoding(cache, look):
                output = self._model(
                    input_ids=torch.tensor([[s.ids[-1]] for s in sequences], device=device),
                    position_ids=torch.cat([s.position for s in sequences], dim=-2),
                    past_key_values=cache,
                    use_cache=True,
                    return_dict=True,
                )
            cache.check_attended()
            logits = output.logits[:, -1]  # (n, V)
        except BaseException:
            cache.undo_step()
            raise
        tokens = choose_tokens(logits, [s.sampler for s in sequences])
        at = perf_counter()
        events: list[Event] = []
        for sequence, token, row in zip(sequences, tokens, logits, strict=True):
            if isinstance(token, Exception):
                events.append(self._fail(sequence, token))
                continue
            sequence.position = sequence.position + 1
            try:
                events += self._accept(sequence, token, row, at)
            except NotExact:
                raise
            except Exception as error:
                events.append(self._fail(sequence, error))
        return events

    @torch.inference_mode()
    def drop(self, request: str) -> None:
        """Take a request out of its slot, whatever it has generated."""
        self._release(next(s.slot for s in self._sequences.values() if s.request.id == request))

    # -- the parts --------------------------------------------------------------------------

    def _accept(
        self, sequence: SequenceState, token: int, logits: Tensor, at: float
    ) -> list[Event]:
        """Take a chosen token in; then finish the sequence, or ask its policy."""
        request = sequence.request
        if sequence.looker is not None and sequence.looker.error is not None:
            raise sequence.looker.error
        sequence.ids.append(token)
        step = len(sequence.ids)
        if self._observe is not None:
            self._observe(request.id, step, logits)
        piece = sequence.detokenizer.add(token)
        reason = sequence.finish_reason()
        if reason is not None:
            piece += sequence.detokenizer.finish()
        came = Token(
            request.id,
            at,
            step=step,
            id=token,
            text=piece,
            vision_attended=sequence.attended(),
        )
        if reason is not None:
            if sequence.signals.last:
                sequence.decide(sequence.view(logits))
            return [came, self._finish(sequence, reason)]
        events: list[Event] = [came]
        cache = self._cache
        assert cache is not None
        for decision in decisions(sequence.decide(sequence.view(logits))):
            if isinstance(decision, Withdraw):
                events.append(withdraw(cache, sequence, decision))
            elif sequence.offloaded is not None:
                events.append(restore(cache, sequence))
        return events

    def _finish(self, sequence: SequenceState, reason: FinishReason) -> Finished:
        cache, slot = self._cache, sequence.slot
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
        self._release(slot)
        return event

    def _fail(self, sequence: SequenceState, error: Exception) -> Failed:
        self._release(sequence.slot)
        return Failed(sequence.request.id, perf_counter(), error)

    def _release(self, slot: int) -> None:
        assert self._cache is not None
        self._cache.release(slot)
        self._sequences.pop(slot, None)
