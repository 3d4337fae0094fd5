"""The decode loop: sequences are admitted into slots, all of them make a step, one is dropped.

Whoever drives the slots decides who comes in when: `Engine.run`, or the server of `mvw batch`.

What withdrawal after m tokens means, exactly: tokens 1…m are chosen by forward passes that see
every vision token; the pass that reads token m, and each later one, sees none. Nothing else is
changed: no position is renumbered, and no other entry of the cache is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mvw_cli.engine.attention import DecodeStep, decode_step
from mvw_cli.engine.attention_probe import StepProbes
from mvw_cli.engine.cache import LayerKind, SlotCache, cache_argument, layer_kinds
from mvw_cli.engine.checked_policy import CheckedPolicy
from mvw_cli.engine.prefill import prepare, run_prefill
from mvw_cli.engine.sequence import Detokenizer, Sampler, SequenceState, choose_tokens
from mvw_cli.engine.types import (
    Admitted,
    Event,
    Failed,
    Finished,
    FinishReason,
    NotExact,
    Prefilled,
    Request,
    Restored,
    Token,
    Withdrawn,
)
from mvw_cli.engine.vision import per_layer
from mvw_cli.policy import Withdraw, decisions

Observe = Callable[[str, int, Tensor], None]
"""Called with request id, step and the logits that step's token was chosen from: # (V,)."""


class Slots:
    """The slots of one engine while its model is being served. Made by `Engine.serving`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        kinds: Sequence[LayerKind],
        cross_layers: Sequence[int],
        keep_mlp: bool,
        observe: Observe | None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._cross_layers = cross_layers
        self._keep_mlp = keep_mlp
        self._observe = observe
        self._kinds = kinds
        self._cache = SlotCache(kinds, cross_layers=cross_layers, keep_mlp=keep_mlp)
        self._cache_argument = cache_argument(model)
        self._sequences: dict[int, SequenceState] = {}
        """By slot, the earliest admitted first."""

    # -- state ------------------------------------------------------------------------------

    @property
    def active(self) -> list[str]:
        """Ids of the requests that are being decoded, the earliest admitted first."""
        return [sequence.request.id for sequence in self._sequences.values()]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache entries in use, all slots together."""
        return sum(self._cache.slot_bytes(slot) for slot in self._sequences)

    @property
    def kv_allocated_bytes(self) -> int:
        """Bytes of the storages behind the cache, all slots together."""
        return self._cache.allocated_bytes()

    def room_bytes(
        self, request: Request | None = None, *, ahead: int = 1, withdrawing: bool = False
    ) -> int:
        """Bytes that the cache's storages would take `ahead` steps from now.

        Exact for what is in the slots now, if none ends or is withdrawn until then; 0 before the
        first request has shown how wide an entry is. What is offloaded counts as if it were back. A
        request counts in full, though its policy may take vision tokens in the prefill.

        Args:
            request: one that is admitted as well.
            withdrawing: count the most that they may take meanwhile instead, whenever those with
                vision are withdrawn. A withdrawal copies what stays before the rest goes.
        """
        offloaded = sum(one.offloaded_bytes for one in self._sequences.values())
        text = [one.request.text_tokens + len(one.ids) for one in self._sequences.values()]
        prompt, cross, vision = 0, 0, False
        if request is not None:
            text.append(request.text_tokens)
            crossed = request.layout.cross_entries
            prompt = int(request.inputs["input_ids"].shape[1])
            cross = 0 if crossed is None else int(crossed.sum())
            vision = request.layout.vision_tokens > 0
        longest = max(text, default=0) if withdrawing else None
        return offloaded + self._cache.room_bytes(prompt, cross, vision, ahead, longest)

    # -- admit, step, drop ------------------------------------------------------------------

    @torch.inference_mode()
    def admit(self, request: Request) -> list[Event]:
        """Prefill a request alone, then copy its cache into a free slot.

        If it raises, the slots are as they were before.
        """
        admitted = Admitted(request.id, perf_counter())
        prepared = prepare(self._model, request.inputs, request.settings)
        prompt = int(prepared.input_ids.shape[1])
        # Alone, not padded into a batch with others: a request's numbers must not depend on what
        # else is being served, and its policy may drop rows in the middle of the pass.
        prefill = run_prefill(
            self._model, prepared, request, self._kinds, self._cross_layers, keep_mlp=self._keep_mlp
        )
        ids, generator = prepared.input_ids, None
        if prepared.config.do_sample:
            generator = torch.Generator(device=ids.device).manual_seed(request.settings.seed)
        forced = None if request.forced is None else iter(request.forced)
        sampler = Sampler(prepared.processors, generator, ids, forced)
        # The first token comes out of the prefill, whose last row has just read the whole prompt:
        # step 1 costs no decode pass, and withdrawal can't come before it.
        [token] = choose_tokens(prefill.logits, [sampler], [1])
        if isinstance(token, Exception):
            raise token
        at = perf_counter()  # the first token is known here; loading the slot is bookkeeping
        decide = CheckedPolicy(request.policy).begin()  # may raise, and nothing is loaded yet
        if layer_kinds(prefill.cache, self._model.config.get_text_config()) != self._kinds:
            raise NotExact("its cache is not the one that its configuration tells of")
        slot = self._cache.load(
            prefill.cache,
            prompt,
            vision=prefill.with_vision,
            cross_entries=request.layout.cross_entries,
            held=prefill.held,
        )
        indices = self._cache.indices(slot)
        try:
            sequence = self._sequences[slot] = SequenceState(
                request=request,
                slot=slot,
                sampler=sampler,
                stop_ids=prepared.stop_ids,
                decide=decide,
                position=prefill.next_position,
                detokenizer=Detokenizer(self._tokenizer),
                vision=prefill.vision,
                spans={layer: self._kinds[layer].span for layer in prefill.layers},
                sharing={
                    layer: kind.producer
                    for layer, kind in enumerate(self._kinds)
                    if kind.producer in prefill.layers
                },
                present=per_layer(
                    prefill.vision.held_by, {layer: indices[layer] for layer in prefill.layers}
                ),
                left=prefill.read,
            )
            sequence.attach_probe(prefill.probe)
            prefilled = Prefilled(
                request.id,
                at,
                prompt_tokens=prompt,
                vision_tokens=prefill.vision.tokens,
                kv_bytes=self._cache.slot_bytes(slot),
                vision_by_layer=tuple(int(one.sum()) for one in sequence.present.values()),
            )
            logits = prefill.logits[0]
            del prefill  # and its cache, before a withdrawal counts bytes
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
        # In the cache's order, which is not that of admission: rows without vision come first, so
        # that rows with and without it lie in one rectangle each.
        sequences = [self._sequences[slot] for slot in cache.order]
        device = sequences[0].position.device
        probes = [one.probe for one in sequences]
        step_probes = StepProbes(probes) if any(one is not None for one in probes) else None
        cache.reserve_step()
        running = decode_step.set(DecodeStep(cache, step_probes))
        try:
            output = self._model(
                input_ids=torch.tensor([[s.ids[-1]] for s in sequences], device=device),
                # Each row's own position, counted on from its prompt whatever has left its cache
                # since: the keys that remain were rotated by the positions they had, so the
                # distance to them is right only if nobody is renumbered.
                position_ids=torch.cat([s.position for s in sequences], dim=-2),
                **{self._cache_argument: cache},
                use_cache=True,
                return_dict=True,
            )
            cache.finish_step()
        except BaseException:
            cache.undo_step()  # some layers may have changed what they hold, others not
            raise
        finally:
            decode_step.reset(running)
        logits = output.logits[:, -1]  # (n, V)
        steps = [len(sequence.ids) + 1 for sequence in sequences]
        tokens = choose_tokens(logits, [sequence.sampler for sequence in sequences], steps)
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

    # -- one sequence -----------------------------------------------------------------------

    def _accept(
        self, sequence: SequenceState, token: int, logits: Tensor, at: float
    ) -> list[Event]:
        """Take a chosen token in; then finish the sequence, or do what its policy decides."""
        request = sequence.request
        if sequence.probe is not None and sequence.probe.error is not None:
            raise sequence.probe.error
        sequence.ids.append(token)
        step = len(sequence.ids)
        if self._observe is not None:
            self._observe(request.id, step, logits)
        piece = sequence.detokenizer.add(token)
        reason = sequence.finish_reason()
        if reason is not None:
            piece += sequence.detokenizer.finish()
        generated = Token(
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
            return [generated, self._finish(sequence, reason)]
        # The newest token has been chosen but not read. What leaves now is gone from the pass that
        # reads it: a policy that withdraws at step m keeps vision for exactly m tokens.
        events: list[Event] = [generated]
        for decision in decisions(sequence.decide(sequence.view(logits))):
            if isinstance(decision, Withdraw):
                taken = sequence.withdrawn_by(decision)
                sequence.take(decision)
                # Of two policies in a row each may say so, or one after each token.
                if not sequence.present or any(bool(lost.any()) for lost in taken.values()):
                    events.append(self._withdraw(sequence, taken, offload=decision.offload))
            elif sequence.offloaded is not None:
                events.append(self._restore(sequence))
        return events

    def _withdraw(
        self, sequence: SequenceState, taken: Mapping[int, Tensor], *, offload: bool
    ) -> Withdrawn:
        """Take vision tokens out of a sequence's slot.  taken: # (N,) bool, by layer"""
        cache, slot = self._cache, sequence.slot
        start = perf_counter()
        before = cache.slot_bytes(slot)
        nothing = torch.zeros(0, dtype=torch.bool)
        leaving = per_layer(sequence.vision.entries, taken)
        masks = [leaving.get(layer, nothing) for layer in range(len(cache.layers))]
        if offload:
            copies, held = cache.offload(slot, masks), sequence.offloaded
            if held is not None:
                copies = [old.with_more(new) for old, new in zip(held, copies, strict=True)]
            sequence.offloaded = copies
        complete = not any(
            bool((present & ~taken[layer]).any() if layer in taken else present.any())
            for layer, present in sequence.present.items()
        )
        entries = cache.withdraw(slot, masks, complete=complete)
        sequence.remove(taken)
        _synchronise(sequence.position.device)
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
            complete=complete,
            offloaded_bytes=sequence.offloaded_bytes,
            recurrent_layers=sum(kind.states > 0 for kind in self._kinds),
            state_bytes=cache.state_bytes(slot),
        )

    def _restore(self, sequence: SequenceState) -> Restored:
        """Bring what was offloaded back into a sequence's slot."""
        cache, slot, back = self._cache, sequence.slot, sequence.offloaded
        assert back is not None
        start = perf_counter()
        before = cache.slot_bytes(slot)
        # Appended behind the text they once stood before: attention is a sum over the entries, and
        # each key carries its position in its rotation, so their order in the buffer is nothing.
        entries = cache.restore(slot, back)
        sequence.restore(back)
        _synchronise(sequence.position.device)
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

    def _finish(self, sequence: SequenceState, reason: FinishReason) -> Finished:
        event = Finished(
            sequence.request.id,
            perf_counter(),
            reason=reason,
            text=sequence.detokenizer.text,
            token_ids=tuple(sequence.ids),
            kv_bytes=self._cache.slot_bytes(sequence.slot),
            kv_allocated_bytes=self._cache.allocated_bytes(),
        )
        self._release(sequence.slot)
        return event

    def _fail(self, sequence: SequenceState, error: Exception) -> Failed:
        self._release(sequence.slot)
        return Failed(sequence.request.id, perf_counter(), error)

    def _release(self, slot: int) -> None:
        self._cache.release(slot)
        self._sequences.pop(slot, None)


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that a duration covers the work and not only its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
