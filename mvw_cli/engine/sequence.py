"""One request while it has a slot: what it has written, and what its policy may look at.

It does not know the cache; which vision tokens each layer holds is told to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mvw_cli.engine.detokenize import Detokenizer
from mvw_cli.engine.looking import Looker
from mvw_cli.engine.prefill_weights import PrefillWeights
from mvw_cli.engine.rows import Offloaded
from mvw_cli.engine.sampling import Sampler
from mvw_cli.engine.types import FinishReason, Request
from mvw_cli.engine.vision import Vision
from mvw_cli.policy import Decide, Signals, StepView, Withdraw


@dataclass(slots=True, eq=False)
class SequenceState:
    """One request while it has a slot."""

    request: Request
    slot: int
    sampler: Sampler
    stop_ids: frozenset[int]
    decide: Decide
    position: Tensor
    """Position ids of the token to be read next.  # (1, 1), or (C, 1, 1)"""
    detokenizer: Detokenizer
    vision: Vision
    windows: Mapping[int, int | None]
    """Sliding window of each layer that would hold vision without any withdrawal."""
    present: dict[int, Tensor]
    """Which vision tokens each of these layers holds now.  # (N,) bool, on the host"""
    layers: tuple[int, ...] = ()
    """Those that held vision after the prefill."""
    signals: Signals = field(default_factory=Signals)
    looker: Looker | None = None
    offloaded: list[Offloaded] | None = None
    """By layer of the cache, what waits in host memory."""
    ids: list[int] = field(default_factory=list)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes that wait in host memory."""
        return sum(one.bytes for one in self.offloaded or ())

    @property
    def gone(self) -> int:
        """Vision tokens that no layer holds."""
        held = torch.zeros(self.vision.tokens, dtype=torch.bool)
        for present in self.present.values():
            held |= present
        return int((~held).sum())

    def look(self, weights: PrefillWeights | None) -> None:
        """Arrange that the policy sees what it asks for, from the first token on.

        weights: what was seen of the prefill.
        """
        policy = self.request.policy
        self.layers = tuple(layer for layer, one in self.present.items() if bool(one.any()))
        signals = policy.signals(self.layers)
        held = tuple(layer for layer in signals.mass if layer in self.layers)
        self.signals = replace(signals, mass=held)
        attend = policy.begin_attending() if self.layers else None
        wanted = frozenset((*self.signals.mass, *self.signals.weights))
        if not wanted and attend is None:
            return
        self.looker = Looker(
            self.vision,
            holding=frozenset(self.present),
            layers=wanted,
            attend=attend,
            attend_layer=None if attend is None else policy.attending_layer(self.layers),
        )
        if weights is not None:
            self.looker.found, self.looker.added = dict(weights.found), dict(weights.added)

    def finish_reason(self) -> FinishReason | None:
        """Say why the output is complete, or None."""
        settings, forced = self.request.settings, self.request.forced
        if forced is not None:
            return "length" if len(self.ids) == len(forced) else None
        if self.ids[-1] in self.stop_ids and not settings.ignore_eos:
            return "eos"
        if any(stop in self.detokenizer.text for stop in settings.stop):
            return "stop"
        return "length" if len(self.ids) >= settings.max_new_tokens else None

    def attended(self) -> float:
        """Count the vision tokens that the newest query attended to, mean over the layers."""
        if not self.present:
            return 0.0
        newest = self.vision.prompt + len(self.ids) - 2
        chosen = None if self.looker is None else self.looker.chosen
        counts: dict[tuple[int, int | None, bool], int] = {}
        total = 0
        for layer, present in self.present.items():
            window = self.windows[layer]
            limited = self.looker is not None and self.looker.limits(layer)
            key = (id(present), window, limited)
            if key not in counts:
                seen = present & chosen if limited and chosen is not None else present
                if window is not None:
                    seen = seen & (self.vision.places > newest - window)
                counts[key] = int(seen.sum())
            total += counts[key]
        return total / len(self.present)

    def view(self, logits: Tensor) -> StepView:
        """Show the policy what it has asked for.

        logits: those that the newest token was chosen from.  # (V,)
        """
        looker, signals = self.looker, self.signals
        entropy = None
        if signals.entropy:
            entropy = float(torch.special.entr(logits.float().softmax(-1)).sum())
        return StepView(
            step=len(self.ids),
            token_ids=self.ids,
            text=self.detokenizer.text,
            vision_tokens=self.vision.tokens,
            layers=self.layers,
            images=self.vision.images,
            entropy=entropy,
            mass=looker.mass(signals.mass) if looker and signals.mass else None,
            weights=looker.weights(signals.weights) if looker and signals.weights else None,
        )

    def leaving(self, withdraw: Withdraw) -> dict[int, Tensor]:
        """Say which vision tokens a withdrawal takes, by layer: # (N,) bool.

        Raises:
            ValueError: what it keeps is no choice among the vision tokens.
        """
        if withdraw.keep is None:
            return dict(self.present)
        gone = {}
        for layer, keep in withdraw.keep.items():
            if keep.shape != (self.vision.tokens,) or keep.dtype != torch.bool:
                raise ValueError(
                    f"a policy keeps some of {self.vision.tokens} vision tokens by a tensor "
                    f"{tuple(keep.shape)} of {keep.dtype}"
                )
            if layer in self.present:
                gone[layer] = self.present[layer] & ~keep.cpu()
        return gone

    def lose(self, gone: Mapping[int, Tensor]) -> None:
        """Take in that vision tokens have left layers."""
        # Layers that lose the same go on sharing one tensor: `attended` counts it once.
        left: dict[tuple[int, int], Tensor] = {}
        for layer, tokens in gone.items():
            present = self.present[layer]
            key = (id(present), id(tokens))
            if key not in left:
                left[key] = present & ~tokens
        self.present |= {
            layer: left[id(self.present[layer]), id(tokens)] for layer, tokens in gone.items()
        }

    def regain(self, back: Sequence[Offloaded]) -> None:
        """Take in that offloaded entries are back.  back: by layer of the cache"""
        for layer, present in self.present.items():
            indices = back[layer].indices
            numbers = indices if self.vision.cross_attention else self.vision.of(indices)
            found = present.clone()
            found[numbers] = True
            self.present[layer] = found
