"""What the policies share about decoder layers: acting before one of them, and choosing some.

Policies that act before a layer of the prefill each keep some part of the vision tokens. Whether
two of them make sense together depends on their layers, not on their order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.errors import UsageProblem
from mvw_cli.policy import LayerView, Select, WithdrawalPolicy, require

if TYPE_CHECKING:
    from torch import Tensor

_PROBES = 3


class AtLayer(WithdrawalPolicy):
    """Base of the policies that act before decoder layer `layer`, a field of each.

    Raises:
        ValueError: `layer` is below the first at which the policy can act.
    """

    first_layer: ClassVar[int] = 0
    """The first layer at which the policy can act."""
    needs_all: ClassVar[bool] = False
    """Whether it makes sense only where no vision token has gone before."""

    layer: int

    def __post_init__(self) -> None:
        require(self.layer >= self.first_layer, f"layer must be {self.first_layer} or more")

    @abstractmethod
    def part(self) -> float:
        """Part of the vision tokens that stays, 0 to 1."""

    @abstractmethod
    def choose(self, view: LayerView) -> Tensor:
        """Choose which of the N >= 1 vision tokens stay; some are there.

        Returns:
            # (N,) bool, on any device
        """

    def begin_prefill(self) -> Select:
        """Start a prefill.

        The function raises UsageProblem where the model has no such layer.
        """

        def select(view: LayerView) -> Tensor | None:
            if view.layer == 0 and self.layer >= view.num_layers:
                last = view.num_layers - 1
                layers = f"the model has {view.num_layers} decoder layers, 0 to {last}"
                raise self.refused(f"can't act at layer {self.layer}", layers)
            if view.layer != self.layer or not view.present.any():
                return None
            return self.choose(view).to(view.present.device) & view.present

        return select

    def refused(self, what: str, cause: str) -> UsageProblem:
        """Make the error of a model that the policy can't serve."""
        hint = "mvw list policies"
        return UsageProblem(f"Policy `{self.name}` {what}", cause=cause, hint=hint)

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        for other in before:
            if isinstance(other, AtLayer) and other.name != self.name:
                reason = _clash(other, self)
                if reason is not None:
                    return reason
        return super().conflict(before)


@dataclass(frozen=True)
class KeepPart(AtLayer):
    """Base of the policies that keep a part of the vision tokens from a layer on.

    How many stay is the same for all of them, so that a comparison at one `keep` is fair.

    Raises:
        ValueError: `keep` is not above 0 and at most 1, or as `AtLayer`.
    """

    keep: float = field(
        metadata={"description": "Part of the vision tokens that stays; above 0, at most 1."}
    )
    layer: int = field(
        default=0,
        metadata={"description": "The first decoder layer with fewer vision tokens; 0 or more."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, "keep must be above 0 and at most 1")

    def part(self) -> float:
        return self.keep


def kept_count(tokens: int, keep: float) -> int:
    """Count how many of some vision tokens stay: the nearest number, halves up, at least 1."""
    return min(tokens, max(1, int(tokens * keep + 0.5)))


def probe_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Choose the middle of each third of some layers; all of them where they are few.

    Which layers hold vision is known only after the prefill of a request: with cross-attention they
    are few, and policies before may have emptied the deeper ones.
    """
    if len(layers) <= _PROBES:
        return tuple(layers)
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * _PROBES)] for i in range(_PROBES))


def layer_at_or_below(layer: int, layers: Sequence[int]) -> int:
    """Choose the last of some layers up to a number; the first where all are above it.

    Args:
        layers: those that hold vision, in order; at least one.
    """
    return max((held for held in layers if held <= layer), default=layers[0])


def _clash(before: AtLayer, after: AtLayer) -> str | None:
    """Explain why two policies make no sense together, as a clause; None where they do."""
    early, late = sorted((before, after), key=lambda one: one.layer)  # stable: then by order
    if late.layer == early.layer and late.part() == 0 < early.part():
        reason = "takes away all at once what it keeps"
    elif late.needs_all and 0 < early.part() < 1:
        reason = "finds no even grid"
    elif late.part() >= early.part():
        reason = "finds nothing to drop"
    else:
        return None
    kept = f"{early.name} keeps {early.part():g} of the vision at layer {early.layer}"
    return f"{kept}, and {late.name} at layer {late.layer} {reason}"
