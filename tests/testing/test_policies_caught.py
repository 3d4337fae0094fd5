"""The contract's checks fail on planted defects of policies in the prefill and in decode steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from contract_checks import Simple, policy_failures
from torch import Tensor

from mvw_cli import (
    Attend,
    AttendView,
    Decide,
    LayerView,
    Restore,
    Select,
    Signals,
    StepView,
    Withdraw,
    WithdrawalPolicy,
)


@dataclass(frozen=True)
class Right(Simple):
    """Thins out at layer 0, attends to the first half, offloads and restores."""

    def begin_prefill(self) -> Select | None:
        def select(view: LayerView) -> Tensor | None:
            return view.present & (torch.arange(len(view.present)) % 3 > 0)

        return select

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        return layers[0] if layers else None

    def begin_attending(self) -> Attend | None:
        return lambda view: view.present & (view.vision.mean(0) > 0)

    def begin(self) -> Decide:
        said = {3: Withdraw(offload=True), 6: Restore()}
        return lambda view: said.get(view.step)


def wrong(**methods: Any) -> WithdrawalPolicy:
    """Make the right policy with some of its methods replaced."""
    return dataclass(frozen=True)(type("Wrong", (Right,), methods))()


def selecting(select: Callable[[LayerView], Any]) -> WithdrawalPolicy:
    return wrong(begin_prefill=lambda self: select)


def saying(decide: Callable[[StepView], Any]) -> WithdrawalPolicy:
    return wrong(begin=lambda self: decide)


def writes_into_what_it_sees(view: LayerView) -> Tensor:
    view.present[:1] = False
    return view.present


def counting(few: int) -> Any:
    """Make what says other things once it has been asked often, by all requests together."""
    asked = []

    def ask(view: LayerView | AttendView) -> Tensor:
        asked.append(0)
        return view.present & (len(asked) < few)

    def begin(self: WithdrawalPolicy) -> Any:
        asked.clear()
        return ask

    return begin


def silent_beyond_the_model() -> WithdrawalPolicy:
    def select(view: LayerView) -> Tensor | None:
        return ~view.present & view.present if view.layer == 12 else None

    return wrong(layer=12, begin_prefill=lambda self: select)


def masks(layers: Sequence[int], tokens: int) -> Withdraw:
    return Withdraw(dict.fromkeys(layers, torch.ones(tokens, dtype=torch.bool)))


CHOICE = "it_chooses_among_the_vision_tokens_that_are_there"
SAME = "the_same_prefill_gets_the_same_choices"
APART = "requests_do_not_share_state"
FEWER = "a_model_with_fewer_layers_is_refused_with_a_reason"
DECISIONS = "its_decisions_are_decisions"
RESTORES = "it_restores_only_what_was_offloaded"
ATTENDS = "it_attends_to_vision_tokens_that_are_there"


WRONG: dict[str, tuple[WithdrawalPolicy, set[str]]] = {
    "right": (Right(), set()),
    "brings back": (
        selecting(lambda view: torch.full_like(view.present, view.layer % 2 == 1)),
        {CHOICE},
    ),
    "gives indices": (
        selecting(lambda view: view.present.nonzero()[:, 0] if view.layer == 0 else None),
        {CHOICE},
    ),
    "throws dice": (
        selecting(lambda view: view.present & (torch.rand(len(view.present)) > 0.5)),
        {SAME, APART},
    ),
    "counts every prefill": (wrong(begin_prefill=counting(5)), {APART}),
    "counts every step": (wrong(begin_attending=counting(3)), {APART}),
    "writes into what it sees": (
        selecting(writes_into_what_it_sees),
        {"it_leaves_what_it_sees_alone"},
    ),
    "silent beyond the model": (silent_beyond_the_model(), {FEWER}),
    "looks beyond the model": (wrong(prefill_weights=lambda self, layers: (12,)), {FEWER}),
    "restores nothing": (
        saying(lambda view: Restore() if view.step == 2 else None),
        {RESTORES},
    ),
    "restores what is lost": (
        saying(lambda view: {3: Withdraw(), 6: Restore()}.get(view.step)),
        {RESTORES},
    ),
    "keeps too few": (saying(lambda view: masks(view.layers, 2)), {DECISIONS}),
    "keeps elsewhere": (
        saying(lambda view: masks([99], view.vision_tokens)),
        {DECISIONS, "it_survives_text_that_is_empty_or_strange"},
    ),
    "asks elsewhere": (
        wrong(signals=lambda self, layers: Signals(weights=(7,))),
        {"it_asks_for_weights_of_layers_that_hold_vision"},
    ),
    "attends to what is gone": (
        wrong(begin_attending=lambda self: lambda view: torch.ones_like(view.present)),
        {ATTENDS},
    ),
    "attends elsewhere": (wrong(attending_layer=lambda self, layers: 99), {ATTENDS}),
    "grumbles": (wrong(conflict=lambda self, before: ""), {"its_conflicts_are_clauses"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_policy_is_caught(name: str) -> None:
    policy, caught_by = WRONG[name]
    assert policy_failures(policy) == caught_by
