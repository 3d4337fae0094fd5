"""What the policies share that act once in the prefill, before one decoder layer.

A policy of this kind leaves some part of the vision tokens; which of them is its own matter.
Whether two of them make sense together depends on their layers, not on their order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mvw_cli.errors import UsageProblem
from mvw_cli.policy import LayerView, Select, WithdrawalPolicy

if TYPE_CHECKING:
    from torch import Tensor


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
        if self.layer < self.first_layer:
            raise ValueError(f"layer must be {self.first_layer} or more")

    @abstractmethod
    def part(self) -> float:
        """Say which part of the vision tokens stays, 0 to 1."""

    @abstractmethod
    def choose(self, view: LayerView) -> Tensor:
        """Say which of the N >= 1 vision tokens stay; some are there.

        Returns:
            # (N,) bool, on any device
        """

    def begin_prefill(self) -> Select:
        """Start a prefill.

        The function raises UsageProblem where the model has no such layer.
        """

        def select(view: LayerView) -> Tensor | None:
            if view.layer == 0 and self.layer >= view.layers:
                raise self.refused(
                    f"can't act at layer {self.layer}",
                    f"the model has {view.layers} decoder layers, 0 to {view.layers - 1}",
                    view.layers,
                )
            if view.layer != self.layer or not view.present.any():
                return None
            return self.choose(view).to(view.present.device) & view.present

        return select

    def refused(self, what: str, cause: str, layers: int) -> UsageProblem:
        """Make the error of a model that the policy can't serve, with a layer that it has."""
        at_half = replace(cast(Any, self), layer=max(self.first_layer, layers // 2))
        return UsageProblem(
            f"Policy `{self.name}` {what}",
            cause=cause,
            hint=f"mvw infer IMAGE QUESTION --policy {_spelled(at_half)}",
        )

    def objection(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        for other in before:
            if isinstance(other, AtLayer) and other.name != self.name:
                reason = _clash(other, self)
                if reason is not None:
                    return reason
        return super().objection(before)


def _clash(before: AtLayer, after: AtLayer) -> str | None:
    """Say why two policies make no sense together, as a clause."""
    early, late = sorted((before, after), key=lambda one: one.layer)  # stable: then by order
    if early.part() == 0:
        return (
            f"{late.name} at layer {late.layer} finds no vision tokens: "
            f"{early.name} takes them all away at layer {early.layer}"
        )
    if late.layer == early.layer and late.part() == 0:
        return (
            f"what {early.name} chooses at layer {early.layer} is taken away by {late.name} "
            "before the layer runs"
        )
    if late.needs_all and early.part() < 1:
        return (
            f"{late.name} at layer {late.layer} finds no even grid: "
            f"{early.name} has thinned it out at layer {early.layer}"
        )
    if late.part() >= early.part():
        return (
            f"{late.name} at layer {late.layer} would drop nothing: "
            f"{early.name} leaves no more than {early.part():g} of the vision tokens"
        )
    return None


def _spelled(policy: AtLayer) -> str:
    """Write a policy as the command line takes it, without what is default."""
    assert is_dataclass(policy)
    given = [
        f"{field.name}={getattr(policy, field.name)}"
        for field in fields(policy)
        if field.default is MISSING or getattr(policy, field.name) != field.default
    ]
    return ":".join([policy.name, ",".join(given)] if given else [policy.name])
