"""Annealing: the vision tokens are pruned by layer and by generated length, not all at once.

The idea is Visual Token Annealing of ST3 (arXiv 2412.20105, AAAI 2025): fewer vision tokens the
deeper the layer and the longer the output, those with the least attention first. Its own schedule
is not published as code that was known here; the one below is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

from mvw_cli.policy import Decide, Signals, StepView, Withdraw, WithdrawalPolicy, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Anneal(WithdrawalPolicy):
    """Keep a share of the vision tokens that falls with the output and with the layer.

    Pruning happens after tokens start + every, start + 2 · every, … before `end`, and at `end`,
    where all that is left goes. With t the last pruning so far and l the layer's place among those
    that hold vision, from 0 for the first to 1 for the last, the share that is kept is

        share(l, t) = max(0, 1 - (t - start) / ((end - start) · (1 - depth · l)))

    before `end`, and 0 from there on; of N tokens ceil(share · N) stay. It never rises, in t or l.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "anneal"
    triggers: ClassVar[tuple[str, ...]] = ("end",)

    end: int = field(
        metadata={"description": "Tokens after which no vision is left, at any layer."}
    )
    start: int = field(
        default=0, metadata={"description": "Tokens before the pruning begins; 0 or more."}
    )
    every: int = field(
        default=8, metadata={"description": "Tokens between two prunings; 1 or more."}
    )
    depth: float = field(
        default=0.5,
        metadata={
            "description": "How much earlier the deepest layer is empty, as a share of the way "
            "from start to end; 0: all layers alike, below 1."
        },
    )
    by: Literal["attention", "even"] = field(
        default="attention",
        metadata={
            "description": "Which stay: those with the most attention at that moment, layer by "
            "layer, or ones that are evenly spread."
        },
    )

    def __post_init__(self) -> None:
        require(self.start >= 0, "start must be 0 or more")
        require(self.end > self.start, "end must be above start")
        require(self.every >= 1, "every must be 1 or more")
        require(0 <= self.depth < 1, "depth must be 0 or more and below 1")
        require(self.by in ("attention", "even"), "by must be attention or even")

    def share(self, place: float, step: int) -> float:
        """Compute the share of the vision tokens that is kept, as above.

        Args:
            place: of the layer, 0 to 1.
            step: tokens generated so far; any, not only that of a pruning.
        """
        if step >= self.end:
            return 0.0
        pruned = max(step - self.start, 0) // self.every * self.every
        return max(0.0, 1 - pruned / ((self.end - self.start) * (1 - self.depth * place)))

    def withdrawal_step(self) -> int | None:
        return self.end

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return Signals(weights=layers) if self.by == "attention" else Signals()

    def begin(self) -> Decide:
        done = False
        kept: dict[int, Tensor] = {}

        def decide(view: StepView) -> Withdraw | None:
            nonlocal done
            if done:
                return None
            if view.step >= self.end:
                done = True
                return Withdraw()
            if self.by == "attention" and view.weights is None:
                return None  # the next token's pruning makes up for it
            fewer = self._prune(view, kept)
            kept.update(fewer)
            return Withdraw(keep=fewer) if fewer else None

        return decide

    def _prune(self, view: StepView, kept: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Mark what stays at the layers that have too many: # (N,) bool each."""
        import torch

        tokens, last = view.vision_tokens, max(len(view.layers) - 1, 1)
        fewer = {}
        for place, layer in enumerate(view.layers):
            # Rounded: a share of 1/3 of 3 tokens is 1 token, whatever the last bit says.
            count = math.ceil(round(self.share(place / last, view.step) * tokens, 6))
            before = kept.get(layer)
            if count >= (tokens if before is None else int(before.sum())):
                continue
            if self.by == "even":
                ranks = torch.tensor(spread_order(tokens), dtype=torch.long)
            elif view.weights is not None and layer in view.weights:
                weights = view.weights[layer].detach().float().cpu()
                if before is not None:
                    weights = weights.masked_fill(~before, -torch.inf)
                ranks = weights.sort(descending=True, stable=True).indices
            else:
                continue
            fewer[layer] = torch.zeros(tokens, dtype=torch.bool)
            fewer[layer][ranks[:count]] = True
        return fewer

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        if self.by == "attention" and any(other.name == "pulse" for other in before):
            return "pulse leaves most tokens out of a step, so anneal can't rank them; give by=even"
        return super().conflict(before)

    def describe(self) -> str:
        return f"prunes by {self.by} from {self.start} to {self.end} tokens"


@lru_cache(maxsize=16)
def spread_order(count: int) -> tuple[int, ...]:
    """Order 0…count-1 so that the first of them, however many, lie evenly spread.

    By their bits, read backwards (van der Corput's sequence).
    """
    bits = max(count - 1, 0).bit_length()
    reversed_ = (int(f"{n:0{bits}b}"[::-1], 2) if bits else 0 for n in range(2**bits))
    return tuple(n for n in reversed_ if n < count)
