"""VisionPulse: in each decode step only the vision tokens that matter now are attended to.

Source: arXiv 2605.31457 (ICML 2026) and its code, github.com/xxhhbbbb/VisionPulse (Apache-2.0),
`visionpulse/modeling_qwen3_vl.py` and `docs/models/README.md`. The choice is that of its eager
attention. There the layer that chooses keeps to its own choice too; here, as in its Triton kernels,
the layers after it do. Its kernels choose blocks of tokens; here tokens are chosen one by one.

Nothing is deleted: each step attends to fewer tokens, and no memory is freed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.policies.layers import layer_at_or_below
from mvw_cli.policy import Attend, AttendView, WithdrawalPolicy, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pulse(WithdrawalPolicy):
    """Attend, in each step, to as large a share of the vision tokens as the vision mass tells.

    At one layer, over all entries e with the scores s of head h (before the softmax):

    - mass = max over h of  Σ exp(s / tau) over vision  /  Σ exp(s / tau) over everything;
    - k = floor(N · share), at least 1, of the N vision tokens that are still there; the share is
      the mass, held between `min_ratio` and `max_ratio`;
    - the k vision tokens with the highest mean of s over the heads are attended to by the layers
      after it, in this step. Of equal ones the first counts. Where the layer sees none at all (it
      slides, and the vision lies behind its window), all are attended to.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "pulse"

    layer: int | None = field(
        default=None,
        metadata={
            "description": "Layer that chooses, 0 is the first; one that holds no vision stands "
            "for the next below. null: the middle one of those that hold vision."
        },
    )
    tau: float = field(
        default=0.1,
        metadata={"description": "Temperature of the vision mass; under 1 it is sharpened."},
    )
    min_ratio: float = field(
        default=0.01,
        metadata={"description": "Smallest share of the vision tokens in a step, 0 to 1."},
    )
    max_ratio: float = field(
        default=0.05,
        metadata={"description": "Largest share of the vision tokens in a step, above 0, up to 1."},
    )

    def __post_init__(self) -> None:
        require(self.layer is None or self.layer >= 0, "layer must be 0 or more")
        require(self.tau > 0, "tau must be above 0")
        require(0 < self.max_ratio <= 1, "max_ratio must be above 0 and at most 1")
        within = 0 <= self.min_ratio <= self.max_ratio
        require(within, "min_ratio must be 0 or more and at most max_ratio")

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        """Return the layer that chooses; None where no layer after it holds vision."""
        if not layers:
            return None
        middle = layers[(len(layers) - 1) // 2]
        chosen = middle if self.layer is None else layer_at_or_below(self.layer, layers)
        return chosen if chosen < layers[-1] else None

    def begin_attending(self) -> Attend:
        return self._choose

    def _choose(self, view: AttendView) -> Tensor:
        import torch

        vision = view.vision.float()
        everything = torch.cat([vision, view.text.float()], dim=1)
        logs = [(scores / self.tau).logsumexp(1) for scores in (vision, everything)]
        mass = (logs[0] - logs[1]).exp().amax()
        present = view.present.to(vision.device)
        there = present.sum()
        k = (mass.clamp(self.min_ratio, self.max_ratio) * there).long().clamp(min=1)
        ranked = vision.mean(0).masked_fill(~present, -torch.inf).sort(descending=True, stable=True)
        chosen = torch.zeros_like(present)
        # Compared on the device: a number would have to wait for it.
        chosen[ranked.indices] = torch.arange(len(present), device=vision.device) < k
        # A sliding layer may have let go of all vision while others still hold it.
        nothing = ~vision.isfinite().any()
        return torch.where(nothing, present, chosen & present)

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        ranking = (other for other in before if getattr(other, "by", None) == "attention")
        if any(other.name == "anneal" for other in ranking):
            return "pulse leaves most tokens out of a step, so anneal can't rank them; give by=even"
        return super().conflict(before)

    def describe(self) -> str:
        low, high = 100 * self.min_ratio, 100 * self.max_ratio
        return f"attends to {low:g}-{high:g} % of the vision at each step"
