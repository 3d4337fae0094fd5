"""Policies in a row: what `--policy vtw:layer=12 --policy mvw:m=16` makes.

In the prefill each policy chooses among the vision tokens that those before it have left. After a
token each is asked and heard, and a modifier changes what those before it say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.engine.checked_policy import CheckedPolicy
from mvw_cli.errors import UsageProblem
from mvw_cli.policy import (
    Attend,
    Decide,
    LayerView,
    Select,
    Signals,
    StepView,
    WithdrawalPolicy,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stack(WithdrawalPolicy):
    """Several policies, in order.

    Raises:
        ValueError: one of them makes no sense after those before it; the text says why.
    """

    name: ClassVar[str] = "stack"

    policies: tuple[WithdrawalPolicy, ...] = field(
        metadata={"description": "The policies, in the order in which they act."}
    )

    def __post_init__(self) -> None:
        for number, policy in enumerate(self._checked):
            reason = policy.conflict(self.policies[:number])
            if reason is not None:
                raise ValueError(reason)
        if sum(policy.begin_attending() is not None for policy in self._checked) > 1:
            raise ValueError("two policies choose what is attended in each step")

    @property
    def _checked(self) -> list[CheckedPolicy]:
        """The policies, each to be named where it is at fault."""
        return [CheckedPolicy(policy) for policy in self.policies]

    def begin(self) -> Decide:
        decide: Decide = _silent
        for policy in self._checked:
            decide = policy.after(decide)
        return decide

    def begin_prefill(self) -> Select | None:
        selects = [one for one in (policy.begin_prefill() for policy in self._checked) if one]
        if not selects:
            return None

        def select(view: LayerView) -> Tensor | None:
            kept = None
            for one in selects:
                chosen = one(view)
                if chosen is not None:
                    kept = chosen.to(view.present.device) & view.present
                    view = replace(view, present=kept)
            return kept

        return select

    def begin_attending(self) -> Attend | None:
        found = [policy.begin_attending() for policy in self._checked]
        return next((one for one in found if one is not None), None)

    def signals(self, layers: tuple[int, ...]) -> Signals:
        asked = [policy.signals(layers) for policy in self._checked]
        masses = {tuple(one.mass) for one in asked if one.mass}
        if len(masses) > 1:
            raise UsageProblem(
                "two policies watch the attention at different layers",
                cause=" and ".join(map(str, sorted(masses))),
                hint="mvw list policies",
            )
        return Signals(
            entropy=any(one.entropy for one in asked),
            mass=next(iter(masses), ()),
            weights=tuple(sorted({layer for one in asked for layer in one.weights})),
            last=any(one.last for one in asked),
        )

    def prefill_weights(self, num_layers: int) -> tuple[int, ...]:
        asked = {layer for one in self._checked for layer in one.prefill_weights(num_layers)}
        return tuple(sorted(asked))

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        found = [policy.attending_layer(layers) for policy in self._checked]
        return next((one for one in found if one is not None), None)

    def withdrawal_step(self) -> int | None:
        if any(policy.modifies for policy in self.policies):
            return None
        known = [policy.withdrawal_step() for policy in self.policies]
        return min((one for one in known if one is not None), default=None)

    def describe(self) -> str:
        return ", then ".join(policy.describe() for policy in self.policies)


def stacked(policies: Sequence[WithdrawalPolicy]) -> WithdrawalPolicy:
    """Make one policy of several; one alone stays what it is, unless it makes no sense alone.

    Raises:
        ValueError: as `Stack`.
    """
    whole = Stack(tuple(policies))
    return whole.policies[0] if len(whole.policies) == 1 else whole


def _silent(view: StepView) -> None:
    return None
