"""One request while it has a slot: what it has written, and what its policy may see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from mvw_cli.engine.attention_probe import AttentionProbe, PrefillProbe
from mvw_cli.engine.checked_policy import CheckedPolicy
from mvw_cli.engine.rows import Offloaded, Span
from mvw_cli.engine.types import FinishReason, NotFinite, Request
from mvw_cli.engine.vision import Vision, per_layer
from mvw_cli.policy import Decide, Signals, StepView, Withdraw


@dataclass(slots=True)
class Sampler:
    """How one request's tokens are chosen."""

    processors: LogitsProcessorList
    generator: torch.Generator | None
    """Draws the tokens; None where the likeliest is taken."""
    ids: Tensor
    """Prompt and output so far; kept up only where a processor reads it.  # (1, T)"""
    forced: Iterator[int] | None = None
    """Tokens that are taken in place of any choice."""

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the one with the highest logit."""
        return self.forced is None and self.generator is None and not self.processors

    def choose(self, logits: Tensor) -> int:
        """Choose the next token.  logits: # (V,)"""
        if self.forced is not None:
            return next(self.forced)
        # float32, as `generate` does: the order of half-precision ties must be the same.
        scores = self.processors(self.ids, logits[None].to(dtype=torch.float32, copy=True))
        if self.generator is None:
            token = scores.argmax(-1)
        else:
            weights = torch.softmax(scores, dim=-1)
            token = torch.multinomial(weights, 1, generator=self.generator)[:, 0]
        self.ids = torch.cat([self.ids, token[:, None]], dim=1)
        return int(token)


def choose_tokens(
    logits: Tensor, samplers: Sequence[Sampler], steps: Sequence[int]
) -> list[int | Exception]:
    """Choose one token for each row, or say why there is none.  logits: # (n, V)

    Plain rows are decided together, with one transfer from the device.

    Args:
        steps: number of the token that is chosen in each row, from 1.
    """
    likeliest = logits.argmax(-1, keepdim=True)  # NaN counts as the largest
    finite = logits.gather(-1, likeliest).isfinite()
    chosen: list[int | Exception] = []
    found = torch.where(finite, likeliest, -1)[:, 0].tolist()
    for sampler, row, token, step in zip(samplers, logits, found, steps, strict=True):
        try:
            if token < 0 and sampler.forced is None:
                raise NotFinite.at(step, str(logits.dtype).removeprefix("torch."))
            chosen.append(int(token) if sampler.plain else sampler.choose(row))
        except Exception as error:  # of one request; the others go on
            chosen.append(error)
    return chosen


_INCOMPLETE = "�"
_CHANNELS = ("soc_token", "eoc_token")
"""What a tokenizer calls the control tokens between which a model thinks: Gemma 4's does."""


def readable(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode without control tokens, but for those that part the thinking from the answer."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    named = (getattr(tokenizer, name, None) for name in _CHANNELS)
    texts = {tokenizer.convert_tokens_to_ids(text): text for text in named if text is not None}
    if texts.keys().isdisjoint(ids):
        return str(tokenizer.decode(ids, **options))
    text, start = "", 0
    for place, token_id in enumerate(ids):
        if token_id in texts:
            text += str(tokenizer.decode(ids[start:place], **options)) + texts[token_id]
            start = place + 1
    return text + str(tokenizer.decode(ids[start:], **options))


class Detokenizer:
    """The text of one output, grown token by token and never by half a character.

    A short tail of the ids is decoded with and without the new token, and the difference is emitted
    once it is complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # of the window that is decoded again
        self._done = 0  # ids whose text has been emitted
        self.text = ""

    def add(self, token_id: int) -> str:
        """Take one more token; return the text that became readable with it, maybe empty."""
        self._ids.append(token_id)
        return self._emit(final=False)

    def finish(self) -> str:
        """Return what is left, an incomplete character at the very end included."""
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        if self._tokenizer is None:
            return ""
        known = readable(self._tokenizer, self._ids[self._start : self._done])
        grown = readable(self._tokenizer, self._ids[self._start :])
        if len(grown) <= len(known) or (grown.endswith(_INCOMPLETE) and not final):
            return ""
        piece = grown[len(known) :]
        self._start, self._done = self._done, len(self._ids)
        self.text += piece
        return piece


@dataclass(slots=True, eq=False)
class SequenceState:
    """The state of one request in a slot of the cache."""

    request: Request
    slot: int
    sampler: Sampler
    stop_ids: frozenset[int]
    decide: Decide
    position: Tensor
    """Position ids of the token to be read next.  # (1, 1), or (C, 1, 1)"""
    detokenizer: Detokenizer
    vision: Vision
    spans: Mapping[int, Span | None]
    """Of each layer that would hold vision without any withdrawal."""
    sharing: Mapping[int, int]
    """By layer that attends to what one of these holds, the number of that one."""
    present: dict[int, Tensor]
    """Which vision tokens each of these layers holds now.  # (N,) bool, on the host"""
    left: dict[int, Tensor]
    """Which ones no policy has taken there: those that a sliding layer has let go of are in it.
    # (N,) bool, on the host"""
    layers: tuple[int, ...] = ()
    """Those that held vision after the prefill."""
    signals: Signals = field(default_factory=Signals)
    probe: AttentionProbe | None = None
    offloaded: list[Offloaded] | None = None
    """By layer of the cache, what a policy may restore."""
    left_before: dict[int, Tensor] = field(default_factory=dict)
    """`left` before the first of what is offloaded went."""
    ids: list[int] = field(default_factory=list)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of the copies in host memory."""
        return sum(one.bytes for one in self.offloaded or ())

    @property
    def gone(self) -> int:
        """Vision tokens that no layer holds."""
        held = torch.stack(list(self.present.values())).any(dim=0)
        return int((~held).sum())

    def attach_probe(self, prefill: PrefillProbe | None) -> None:
        """Arrange that the policy sees what it asks for, from the first token on.

        prefill: what was seen there; the first token comes out of it.
        """
        policy = CheckedPolicy(self.request.policy)
        self.layers = tuple(layer for layer, one in self.present.items() if bool(one.any()))
        signals = policy.signals(self.layers)
        held = tuple(layer for layer in signals.mass if layer in self.layers)
        self.signals = replace(signals, mass=held)
        attend = policy.begin_attending() if self.layers else None
        wanted = frozenset((*self.signals.mass, *self.signals.weights))
        if not wanted and attend is None:
            return
        self.probe = AttentionProbe(
            self.vision,
            holding=frozenset((*self.present, *self.sharing)),
            left=self.left,
            layers=wanted,
            attend=attend,
            attend_layer=None if attend is None else policy.attending_layer(self.layers),
        )
        if prefill is not None:
            self.probe.found, self.probe.added = dict(prefill.found), dict(prefill.added)

    def finish_reason(self) -> FinishReason | None:
        """Return why the output is complete, or None."""
        settings, forced = self.request.settings, self.request.forced
        if forced is not None:
            return "length" if len(self.ids) == len(forced) else None
        if self.ids[-1] in self.stop_ids and not settings.ignore_eos:
            return "eos"
        # Anywhere in the text, not only at its end: a token may go on past the stop string.
        if any(stop in self.detokenizer.text for stop in settings.stop):
            return "stop"
        return "length" if len(self.ids) >= settings.max_new_tokens else None

    def attended(self) -> float:
        """Count the vision tokens that the newest query attended to.

        Mean over the layers that would attend to any without any withdrawal.
        """
        if not self.present:
            return 0.0
        # The newest token has been chosen and not read: the query was the token before it, or the
        # prompt's last for the first token.
        newest = self.vision.prompt + len(self.ids) - 2
        probe = self.probe

        def count(seen: Tensor, span: Span | None, chosen: Tensor | None) -> int:
            if chosen is not None:
                seen = seen & chosen
            if span is not None:
                seen = seen & (self.vision.places >= span.first(newest))
            return int(seen.sum())

        holder = {**{layer: layer for layer in self.present}, **self.sharing}
        # Not what a layer holds: in a prefill it sees one token more than it keeps of its window.
        left, spans = ({n: of[holder[n]] for n in holder} for of in (self.left, self.spans))
        limits = {n: probe.chosen if probe and probe.limits(n) else None for n in holder}
        return sum(per_layer(count, left, spans, limits).values()) / len(holder)

    def view(self, logits: Tensor) -> StepView:
        """Show the policy what it has asked for.

        logits: those that the newest token was chosen from.  # (V,)
        """
        probe, signals = self.probe, self.signals
        entropy = None
        if signals.entropy:
            entropy = float(torch.special.entr(logits.float().softmax(-1)).sum())
        masses = probe.masses(signals.mass) if probe and signals.mass else None
        return StepView(
            step=len(self.ids),
            token_ids=self.ids,
            text=self.detokenizer.text,
            vision_tokens=self.vision.tokens,
            layers=self.layers,
            images=self.vision.images,
            entropy=entropy,
            mass=None if masses is None else sum(masses.values()) / len(masses),
            masses=masses,
            weights=probe.weights(signals.weights) if probe and signals.weights else None,
        )

    def withdrawn_by(self, withdraw: Withdraw) -> dict[int, Tensor]:
        """Return which vision tokens a withdrawal takes, by layer: # (N,) bool."""
        if withdraw.keep is None:
            return dict(self.present)
        gone = {}
        for layer, keep in withdraw.keep.items():
            if layer in self.present:
                gone[layer] = self.present[layer] & ~keep.cpu()
        return gone

    def remove(self, gone: Mapping[int, Tensor]) -> None:
        """Note that vision tokens have left layers.  gone: # (N,) bool, by layer"""
        # Layers that lose the same go on sharing one tensor: `attended` counts it once.
        self.present |= per_layer(lambda lost, present: present & ~lost, gone, self.present)

    def take(self, withdraw: Withdraw) -> None:
        """Note what a policy has taken, whether or not a layer still held it."""
        if withdraw.offload and self.offloaded is None:
            self.left_before = dict(self.left)
        if withdraw.keep is None:
            nothing = torch.zeros(self.vision.tokens, dtype=torch.bool)
            self.left |= dict.fromkeys(self.left, nothing)
        else:
            kept = {n: one.cpu() for n, one in withdraw.keep.items() if n in self.left}
            self.left |= per_layer(lambda keep, left: left & keep, kept, self.left)

    def restore(self, back: Sequence[Offloaded]) -> None:
        """Note that offloaded entries are back.  back: by layer of the cache"""
        for layer, present in self.present.items():
            self.present[layer] = present | self.vision.held_by(back[layer].indices)
        self.left |= self.left_before
        self.offloaded = None
