"""The contract's checks fail on planted defects of policies in the prefill and in decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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


@dataclass(frozen=True)
class BringsBack(Right):
    def begin_prefill(self) -> Select:
        return lambda view: torch.full_like(view.present, view.layer % 2 == 1)


@dataclass(frozen=True)
class GivesIndices(Right):
    def begin_prefill(self) -> Select:
        return lambda view: view.present.nonzero()[:, 0] if view.layer == 0 else None


@dataclass(frozen=True)
class ThrowsDice(Right):
    def begin_prefill(self) -> Select:
        return lambda view: view.present & (torch.rand(len(view.present)) > 0.5)


COUNTS: list[int] = []


@dataclass(frozen=True)
class CountsEveryPrefill(Right):
    def begin_prefill(self) -> Select:
        COUNTS.clear()

        def select(view: LayerView) -> Tensor:
            COUNTS.append(view.layer)
            return view.present & (len(COUNTS) < 5)

        return select


@dataclass(frozen=True)
class WritesIntoWhatItSees(Right):
    def begin_prefill(self) -> Select:
        def select(view: LayerView) -> Tensor:
            view.present[:1] = False
            return view.present

        return select


@dataclass(frozen=True)
class SilentBeyondTheModel(Right):
    layer: ClassVar[int] = 12

    def begin_prefill(self) -> Select:
        return lambda view: ~view.present & view.present if view.layer == self.layer else None


@dataclass(frozen=True)
class LooksBeyondTheModel(Right):
    def prefill_weights(self, layers: int) -> tuple[int, ...]:
        return (12,)


@dataclass(frozen=True)
class RestoresNothing(Right):
    def begin(self) -> Decide:
        return lambda view: Restore() if view.step == 2 else None


@dataclass(frozen=True)
class RestoresWhatIsLost(Right):
    def begin(self) -> Decide:
        said = {3: Withdraw(), 6: Restore()}
        return lambda view: said.get(view.step)


@dataclass(frozen=True)
class KeepsTooFew(Right):
    def begin(self) -> Decide:
        def decide(view: StepView) -> Withdraw:
            return Withdraw({layer: torch.ones(2, dtype=torch.bool) for layer in view.layers})

        return decide


@dataclass(frozen=True)
class KeepsElsewhere(Right):
    def begin(self) -> Decide:
        def decide(view: StepView) -> Withdraw:
            return Withdraw({99: torch.ones(view.vision_tokens, dtype=torch.bool)})

        return decide


@dataclass(frozen=True)
class AsksElsewhere(Right):
    def signals(self, layers: tuple[int, ...]) -> Signals:
        return Signals(weights=(7,))


@dataclass(frozen=True)
class AttendsToWhatIsGone(Right):
    def begin_attending(self) -> Attend:
        return lambda view: torch.ones_like(view.present)


@dataclass(frozen=True)
class AttendsElsewhere(Right):
    def attending_layer(self, layers: tuple[int, ...]) -> int:
        return 99


@dataclass(frozen=True)
class CountsEveryStep(Right):
    def begin_attending(self) -> Attend:
        COUNTS.clear()

        def attend(view: AttendView) -> Tensor:
            COUNTS.append(0)
            return view.present & (len(COUNTS) < 3)

        return attend


@dataclass(frozen=True)
class Grumbles(Right):
    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str:
        return ""


CHOICE = "it_chooses_among_the_vision_tokens_that_are_there"
SAME = "the_same_prefill_gets_the_same_choices"
APART = "requests_do_not_share_state"
FEWER = "a_model_with_fewer_layers_is_refused_with_a_reason"
DECISIONS = "its_decisions_are_decisions"
RESTORES = "it_restores_only_what_was_offloaded"
ATTENDS = "it_attends_to_vision_tokens_that_are_there"


@pytest.mark.parametrize(
    ("policy", "caught_by"),
    [
        (Right(), set()),
        (BringsBack(), {CHOICE}),
        (GivesIndices(), {CHOICE}),
        (ThrowsDice(), {SAME, APART}),
        (CountsEveryPrefill(), {APART}),
        (WritesIntoWhatItSees(), {"it_leaves_what_it_sees_alone"}),
        (SilentBeyondTheModel(), {FEWER}),
        (LooksBeyondTheModel(), {FEWER}),
        (RestoresNothing(), {RESTORES}),
        (RestoresWhatIsLost(), {RESTORES}),
        (KeepsTooFew(), {DECISIONS}),
        (KeepsElsewhere(), {DECISIONS, "it_survives_text_that_is_empty_or_strange"}),
        (AsksElsewhere(), {"it_asks_for_weights_of_layers_that_hold_vision"}),
        (AttendsToWhatIsGone(), {ATTENDS}),
        (AttendsElsewhere(), {ATTENDS}),
        (CountsEveryStep(), {APART}),
        (Grumbles(), {"its_conflicts_are_clauses"}),
    ],
)
def test_a_wrong_policy_is_caught(policy: WithdrawalPolicy, caught_by: set[str]) -> None:
    assert policy_failures(policy) == caught_by
