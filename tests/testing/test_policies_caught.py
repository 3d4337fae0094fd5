"""The contract's checks fail on planted defects of policies, each by the check that is for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
from mvw_cli.testing import PolicyContract


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


@dataclass
class Changeable(WithdrawalPolicy):
    name: ClassVar[str] = "changeable"
    count: int = 0

    def begin(self) -> Decide:
        return lambda view: None

    def describe(self) -> str:
        return "never"


@dataclass(frozen=True)
class Undescribed(Simple):
    count: int = 3


def sharing() -> WithdrawalPolicy:
    """Count the tokens of all requests together."""
    steps: list[int] = []

    def decide(view: StepView) -> Withdraw | None:
        steps.append(view.step)
        return Withdraw() if len(steps) == 3 else None

    def begin(self: WithdrawalPolicy) -> Decide:
        steps.clear()
        return decide

    return wrong(begin=begin)


def wavering() -> WithdrawalPolicy:
    """Withdraw later with every request."""
    calls: list[int] = []

    def begin(self: WithdrawalPolicy) -> Decide:
        calls.append(0)
        late = len(calls) % 7
        return lambda view: Withdraw() if view.step == late else None

    return wrong(begin=begin)


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


DESCRIBED = "its_fields_are_described"
STRANGE = "it_survives_text_that_is_empty_or_strange"
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
    "looks beyond the model": (wrong(prefill_weights=lambda self, num_layers: (12,)), {FEWER}),
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
        {DECISIONS, STRANGE},
    ),
    "gives a list": (
        selecting(lambda view: [True] * len(view.present) if view.layer == 0 else None),
        {CHOICE},
    ),
    "attends at no layer": (
        wrong(attending_layer=WithdrawalPolicy.attending_layer),
        {ATTENDS},
    ),
    "needs the entropy that it asks for": (
        wrong(
            signals=lambda self, layers: Signals(entropy=True),
            begin=lambda self: lambda view: None if view.entropy < 9 else Withdraw(),
        ),
        set(),
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
    "simple": (Simple(), set()),
    "changes": (Changeable(), {"it_is_a_frozen_dataclass_with_a_name", DESCRIBED}),
    "has a field without a description": (Undescribed(), {DESCRIBED}),
    "names a trigger that is no field": (wrong(triggers=("nothing",)), {DESCRIBED}),
    "describes nothing": (wrong(describe=lambda self: ""), {"it_describes_itself"}),
    "says what is no decision": (saying(lambda view: view.step == 3), {DECISIONS, STRANGE}),
    "counts the tokens of all requests": (sharing(), {APART}),
    "wavers": (wavering(), {"the_same_output_gets_the_same_decisions", APART}),
    "needs text": (saying(lambda view: Withdraw() if view.text[0] == "?" else None), {STRANGE}),
    "grumbles": (wrong(conflict=lambda self, before: ""), {"its_conflicts_are_clauses"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_policy_is_caught(name: str) -> None:
    policy, caught_by = WRONG[name]
    assert policy_failures(policy) == caught_by


def test_a_policy_whose_module_is_heavy_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy_module_of_a_policy.py").write_text("import numpy\n")
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = type("Elsewhere", (Simple,), {"__module__": "heavy_module_of_a_policy"})
    heavy = type("Contract", (PolicyContract,), {"policies": (elsewhere(),)})()
    with pytest.raises(AssertionError, match="`heavy_module_of_a_policy` imports numpy"):
        heavy.test_importing_it_is_light()
