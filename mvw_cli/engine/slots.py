"""The sequences that are being decoded: one is admitted, all make a step, one is dropped.

Whoever drives it decides who comes in when (`engine.py` for plain runs, `batch/serve.py` for many
images). It does not know adapters, profiles or files, and what a policy looks at is up to the
policy.

What withdrawal means, exactly: tokens 1…m come from forward passes that see every vision token;
the pass that reads token m, and each later one, sees none. Positions are never renumbered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mvw_cli.engine.attention import decoding
from mvw_cli.engine.cache import SlotCache
from mvw_cli.engine.cross_attention import CrossAttention
from mvw_cli.engine.exact import NotExact, sliding_windows
from mvw_cli.engine.layer_exits import Selection, selecting
from mvw_cli.engine.looking import Look, Looker, PrefillWeights, looking
from mvw_cli.engine.prepare import Prepared, prepare
from mvw_cli.engine.sampling import Sampler, choose_tokens
from mvw_cli.engine.sequence import Running
from mvw_cli.engine.text import Detokenizer
from mvw_cli.engine.types import (
    Admitted,
    Event,
    Failed,
    Finished,
    FinishReason,
    Prefilled,
    Request,
    Restored,
    Token,
    Withdrawn,
)
from mvw_cli.engine.vision import Vision, vision_of
from mvw_cli.policy import Withdraw, WithdrawalPolicy, decisions

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
        self._depth = int(model.config.get_text_config().num_hidden_layers)
        self._tokenizer = tokenizer
        self._cross_layers = cross_layers
        self._cross_attention = cross_attention
        self._observe = observe
        self._cache: SlotCache | None = None
        self._sequences: dict[int, Running] = {}
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
        first request has shown how wide an entry is. What is parked counts as if it were back. A
        request counts in full, though its policy may take vision tokens in the prefill.

        Args:
            request: one that is admitted as well.
            withdrawing: count the most that they may take meanwhile instead, whenever those that
                see are withdrawn. A withdrawal copies what stays before the rest goes.
        """
        if self._cache is None:
            return 0
        parked = sum(one.parked_bytes for one in self._sequences.values())
        text = [one.request.text_tokens + len(one.ids) for one in self._sequences.values()]
        if request is None:
            return parked + self._cache.room_bytes(
                ahead=ahead, text=max(text, default=0) if withdrawing else None
            )
        layout, crossed = request.layout, request.layout.cross_entries
        return parked + self._cache.room_bytes(
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
        vision = vision_of(request.layout, prompt)
        holding = self._holding(vision)
        weights, selection = self._watched(request.policy, vision, holding)
        cache, logits = self._prefill(prepared, weights, selection)
        sampler = Sampler(
            processors=prepared.processors,
            sample=bool(prepared.config.do_sample),
            seed=request.settings.seed,
            ids=prepared.input_ids,
            forced=None if request.forced is None else iter(request.forced),
        )
        [token] = choose_tokens(logits, [sampler])
        if isinstance(token, Exception):
            raise token
        at = perf_counter()  # the first token is known here; loading the slot is bookkeeping
        decide = request.policy.begin()  # may raise, and nothing is loaded yet
        if self._cache is None:
            self._cache = SlotCache(
                sliding_windows(cache),
                cross_layers=self._cross_layers,
                keep_mlp=self._cross_attention == "mlp",
            )
        slot = self._cache.load(
            cache,
            prompt,
            vision=vision.tokens > 0 and (selection is None or selection.left(holding)),
            cross_entries=request.layout.cross_entries,
            held=None if selection is None else selection.held(holding),
        )
        try:
            sequence = self._sequences[slot] = Running(
                request=request,
                slot=slot,
                sampler=sampler,
                stop_ids=prepared.stop_ids,
                decide=decide,
                position=prepared.next_position,
                detokenizer=Detokenizer(self._tokenizer),
                vision=vision,
                windows={layer: self._cache.layers[layer].window for layer in holding},
                present=self._present(slot, vision, holding),
            )
            self._look_for(sequence, weights)
            prefilled = Prefilled(
                request.id,
                at,
                prompt_tokens=prompt,
                vision_tokens=vision.tokens,
                kv_bytes=self._cache.slot_bytes(slot),
                vision_by_layer=tuple(int(one.sum()) for one in sequence.present.values()),
            )
            del cache  # before a withdrawal counts its bytes
            return [admitted, prefilled, *self._accept(sequence, token, logits[0], at)]
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

    def _holding(self, vision: Vision) -> tuple[int, ...]:
        """List the layers that hold vision without any withdrawal."""
        if not vision.tokens:
            return ()
        if vision.beside:
            return tuple(self._cross_layers)
        return tuple(one for one in range(self._depth) if one not in self._cross_layers)

    def _watched(
        self, policy: WithdrawalPolicy, vision: Vision, holding: tuple[int, ...]
    ) -> tuple[PrefillWeights | None, Selection | None]:
        """Say what is looked at in a prefill, and what is chosen there."""
        select = policy.begin_prefill() if vision.tokens else None
        signals = policy.signals(holding)
        # Which layers will hold vision is known after the prefill, and one query costs little.
        layers = set(holding) if signals.mass or signals.weights else set()
        for asked in policy.prefill_weights(self._depth):
            earlier = [layer for layer in holding if layer < asked]
            layers |= {max(earlier)} if earlier else set()
        weights = PrefillWeights(vision, tuple(layers)) if layers else None
        if select is None:
            return weights, None
        return weights, Selection(vision, select, self._depth, weights)

    def _prefill(
        self, prepared: Prepared, weights: PrefillWeights | None, selection: Selection | None
    ) -> tuple[Any, Tensor]:
        """Read the prompt; return its cache and the last token's logits: # (1, V)."""
        model_inputs = self._model.prepare_inputs_for_generation(
            prepared.input_ids, is_first_iteration=True, **prepared.model_kwargs
        )
        with ExitStack() as stack:
            stack.enter_context(looking(weights))
            if selection is not None:
                keep_mlp = self._cross_attention == "mlp"
                stack.enter_context(
                    selecting(self._model, selection, self._cross_layers, keep_mlp=keep_mlp)
                )
            output = self._model(**model_inputs, return_dict=True)
        return output.past_key_values, output.logits[:, -1]

    def _present(self, slot: int, vision: Vision, holding: tuple[int, ...]) -> dict[int, Tensor]:
        """Read off the cache which vision tokens each layer holds: # (N,) bool."""
        assert self._cache is not None
        indices = self._cache.indices(slot)
        known: dict[int, Tensor] = {}
        for layer in holding:
            held = indices[layer]
            if id(held) not in known:
                numbers = held if vision.beside else vision.of(held)
                present = torch.zeros(vision.tokens, dtype=torch.bool)
                present[numbers[numbers >= 0]] = True
                known[id(held)] = present
        return {layer: known[id(indices[layer])] for layer in holding}

    def _look_for(self, sequence: Running, weights: PrefillWeights | None) -> None:
        """Arrange that the policy sees what it asks for, from the first token on."""
        policy = sequence.request.policy
        layers = tuple(layer for layer, one in sequence.present.items() if bool(one.any()))
        sequence.layers, sequence.signals = layers, policy.signals(layers)
        attend = policy.begin_attending() if layers else None
        wanted = frozenset((*sequence.signals.mass, *sequence.signals.weights))
        if not wanted and attend is None:
            return
        looker = sequence.looker = Looker(
            sequence.vision,
            holding=frozenset(sequence.present),
            layers=wanted,
            attend=attend,
            attend_layer=None if attend is None else policy.attending_layer(layers),
        )
        if weights is not None:
            looker.found, looker.added = dict(weights.found), dict(weights.added)

    def _accept(self, sequence: Running, token: int, logits: Tensor, at: float) -> list[Event]:
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
        for decision in decisions(sequence.decide(sequence.view(logits))):
            if isinstance(decision, Withdraw):
                events.append(self._withdraw(sequence, decision))
            elif sequence.parked is not None:
                events.append(self._restore(sequence))
        return events

    def _withdraw(self, sequence: Running, decision: Withdraw) -> Withdrawn:
        cache, slot = self._cache, sequence.slot
        assert cache is not None
        start = perf_counter()
        before = cache.slot_bytes(slot)
        leaving = sequence.leaving(decision)
        gone = self._by_cache_layer(sequence.vision, leaving)
        if decision.park:
            copies = cache.copied(slot, gone)
            held = sequence.parked
            sequence.parked = (
                copies
                if held is None
                else [old.with_more(new) for old, new in zip(held, copies, strict=True)]
            )
        stays = any(
            bool((present & ~leaving[layer]).any() if layer in leaving else present.any())
            for layer, present in sequence.present.items()
        )
        entries = cache.withdraw(slot, gone, complete=not stays)
        sequence.lose(leaving)
        _synchronise(self._model.device)
        at = perf_counter()
        return Withdrawn(
            sequence.request.id,
            at,
            step=len(sequence.ids),
            vision_tokens=sequence.gone if entries else 0,
            entries=entries,
            kv_bytes_before=before,
            kv_bytes_after=cache.slot_bytes(slot),
            duration_s=at - start,
            complete=not stays,
            parked_bytes=sequence.parked_bytes,
        )

    def _restore(self, sequence: Running) -> Restored:
        cache, slot, back = self._cache, sequence.slot, sequence.parked
        assert cache is not None and back is not None
        start = perf_counter()
        before = cache.slot_bytes(slot)
        entries = cache.bring_back(slot, back)
        sequence.regain(back)
        sequence.parked = None
        _synchronise(self._model.device)
        at = perf_counter()
        return Restored(
            sequence.request.id,
            at,
            step=len(sequence.ids),
            entries=entries,
            kv_bytes_before=before,
            kv_bytes_after=cache.slot_bytes(slot),
            duration_s=at - start,
        )

    def _by_cache_layer(self, vision: Vision, tokens: Mapping[int, Tensor]) -> list[Tensor]:
        """Write vision tokens, by layer, as the cache wants to hear of them."""
        nothing = torch.zeros(vision.tokens, dtype=torch.bool)
        known: dict[int, Tensor] = {}
        for one in tokens.values():
            if id(one) not in known:
                known[id(one)] = vision.entries(one)
        return [
            known[id(tokens[layer])] if layer in tokens else nothing for layer in range(self._depth)
        ]

    def _finish(self, sequence: Running, reason: FinishReason) -> Finished:
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

    def _fail(self, sequence: Running, error: Exception) -> Failed:
        self._release(sequence.slot)
        return Failed(sequence.request.id, perf_counter(), error)

    def _release(self, slot: int) -> None:
        assert self._cache is not None
        self._cache.release(slot)
        self._sequences.pop(slot, None)


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that a duration covers the work and not only its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
