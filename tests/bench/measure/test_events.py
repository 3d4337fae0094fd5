"""What is read from a run's events: of the cache, of when vision goes, of what is attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from families import BY_NAME, FAMILIES, Family, build
from mvw_hf.model import HuggingFace
from sessions import family as session_of

from mvw_cli.adapter import LoadedModel, ModelSpec
from mvw_cli.bench.documents import Stage
from mvw_cli.bench.measure.events import (
    formula_kv_bytes,
    kv_bytes,
    note_withdrawn,
    offloaded_peak_bytes,
    prefilled_bytes,
    stages,
    vision_share,
    vision_statistics,
    withdrawn_after,
)
from mvw_cli.bench.quality.divergence import divergences
from mvw_cli.cost.bounds import VisionShare
from mvw_cli.cost.shape import shape_of
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.types import (
    Event,
    Failed,
    Finished,
    GenerationSettings,
    Prefilled,
    Request,
    Restored,
    Token,
    Withdrawal,
    Withdrawn,
    summarise,
)
from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.fastv import FastV
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.stack import stacked
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import Decide, Decision, Restore, StepView, Withdraw, WithdrawalPolicy

GREEDY = GenerationSettings(max_new_tokens=14, temperature=0, ignore_eos=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Peek(WithdrawalPolicy):
    """Offloads the vision after `away` tokens, has it back after `back`, and offloads it again."""

    name: ClassVar[str] = "peek"
    away: int = 3
    back: int = 6
    again: int | None = 9

    def begin(self) -> Decide:
        said: dict[int | None, Decision] = {self.back: Restore()}
        said |= {self.away: Withdraw(offload=True), self.again: Withdraw(offload=True)}

        def decide(view: StepView) -> Decision | None:
            return said.get(view.step)

        return decide


def cross_attention(family: Family) -> bool:
    return family.name == "mllama"


KINDS: dict[str, WithdrawalPolicy] = {
    "none": NoWithdrawal(),
    "mvw": Mvw(m=4),
    "vtw": Vtw(layer=1),
    "vtw, then mvw": stacked([Vtw(layer=1), Mvw(m=4)]),
    "fastv": FastV(layer=2, keep=0.5),
    "fastv, then mvw": stacked([FastV(layer=2, keep=0.5), Mvw(m=4)]),
    "anneal": Anneal(end=8, every=2, by="even"),
    "pulse": Pulse(min_ratio=0.2, max_ratio=0.5),
    "offloaded and back": Peek(),
    "back to stay": Peek(again=None),
}


def served(
    family: Family, policies: Sequence[WithdrawalPolicy]
) -> tuple[list[Request], list[Event]]:
    asked = []
    for number, policy in enumerate(policies):
        prompt = family.prompt(number)
        asked.append(Request(str(number), prompt, family.layout(prompt), policy, GREEDY))
    loaded = LoadedModel("test", "tiny", build(family), None, ModelSpec())
    events = list(Engine(loaded, slots=len(asked)).run(asked))
    assert not [event for event in events if isinstance(event, Failed)]
    return asked, events


@pytest.mark.parametrize("name", ["llava", "mllama"])
def test_the_formula_is_of_what_is_whole_or_gone(name: str) -> None:
    family = BY_NAME[name]
    shape = shape_of(HuggingFace(), family.build().config)
    told = {}
    for kind, policy in KINDS.items():
        if not (cross_attention(family) and "fastv" in kind):
            _, events = served(family, [policy])
            told[kind] = formula_kv_bytes(shape, 4, events)
            assert told[kind] in (None, kv_bytes(events)), kind
    assert [kind for kind, found in told.items() if found is not None] == [
        "none",
        "mvw",
        "pulse",
    ]


def by_kind(name: str) -> dict[str, list[Event]]:
    family = BY_NAME[name]
    found = {}
    for kind, policy in KINDS.items():
        if not (cross_attention(family) and "fastv" in kind):
            _, found[kind] = served(family, [policy])
    return found


def test_before_and_after_are_of_one_moment() -> None:
    """LLaVA: 3 layers of 16 vision tokens; whatever goes bit by bit, all of it is told."""
    events = by_kind("llava")
    sizes = {kind: kv_bytes(own) for kind, own in events.items()}
    freed = {kind: before - after for kind, (before, after) in sizes.items()}
    vision = freed["mvw"]
    assert vision > 0
    assert freed["anneal"] == freed["offloaded and back"] == vision
    assert freed["none"] == freed["vtw"] == freed["pulse"] == freed["back to stay"] == 0
    assert freed["vtw, then mvw"] == vision / 3  # one layer of three had it
    assert freed["fastv, then mvw"] == vision * (1 + 1 + 0.5) / 3
    assert sizes["none"][1] - sizes["vtw"][1] == vision * 2 / 3
    prefilled = {kind: prefilled_bytes(own) for kind, own in events.items()}
    assert prefilled["none"] - prefilled["vtw"] == vision * 2 / 3
    assert prefilled["none"] - prefilled["fastv"] == vision * 0.5 / 3
    offloaded = {kind: offloaded_peak_bytes(own) for kind, own in events.items()}
    assert offloaded["offloaded and back"] == offloaded["back to stay"] == vision
    assert not any(size for kind, size in offloaded.items() if "back" not in kind)


@dataclass(frozen=True)
class Halves(WithdrawalPolicy):
    """Takes every second vision token after 3 tokens, and the rest after 6."""

    name: ClassVar[str] = "halves"

    def begin(self) -> Decide:
        def decide(view: StepView) -> Decision | None:
            if view.step == 3:
                kept = torch.arange(view.vision_tokens) % 2 == 0
                return Withdraw(keep=dict.fromkeys(view.layers, kept))
            return Withdraw() if view.step == 6 else None

        return decide


@pytest.mark.parametrize("together", [1, 3])
def test_each_stage_tells_what_was_held_just_before_it(together: int) -> None:
    """LLaVA: 3 layers of 16 vision tokens. Three tokens are read between the two stages."""
    family = BY_NAME["llava"]
    shape = shape_of(HuggingFace(), family.build().config)
    asked, events = served(family, [Halves()] * together)
    prompt = sum(len(one.layout.entries) for one in asked)

    def held(tokens: int, vision: int) -> int:
        """Bytes of all layers, once so many generated tokens have been read."""
        text = prompt - 16 * together + tokens * together
        return 4 * shape.kv_elements(text, vision * together)

    assert stages(events) == [
        Stage(3, held(2, 16), held(2, 8)),
        Stage(6, held(5, 8), held(5, 0)),
    ]
    assert kv_bytes(events) == (held(5, 16), held(5, 0))
    if together == 1:  # what `mvw infer` and a record of `mvw batch` say
        assert summarise(events).withdrawal == Withdrawal(6, 16, 48, held(5, 16), held(5, 0))


def test_stages_are_those_in_which_something_goes_or_comes() -> None:
    events = by_kind("llava")
    steps = {kind: [one.step for one in stages(own)] for kind, own in events.items()}
    assert steps == {
        "none": [], "mvw": [4], "vtw": [], "vtw, then mvw": [4], "fastv": [],
        "fastv, then mvw": [4], "anneal": [2, 4, 6, 8], "pulse": [],
        "offloaded and back": [3, 6, 9], "back to stay": [3, 6],
    }  # fmt: skip
    for own in events.values():
        sizes = stages(own)
        freed = sum(one.kv_bytes_before - one.kv_bytes_after for one in sizes)
        before, after = kv_bytes(own)
        assert freed == before - after
    # Which part the prefill took is between what all held and what this arm held after it.
    first = stages(events["vtw, then mvw"])[0]
    whole = stages(events["mvw"])[0]
    freed = whole.kv_bytes_before - whole.kv_bytes_after
    assert whole.kv_bytes_before - first.kv_bytes_before == freed * 2 / 3
    assert first.kv_bytes_after == whole.kv_bytes_after


def test_a_batch_offloads_together() -> None:
    family = FAMILIES[0]
    _, both = served(family, [Peek(), Peek(away=5, back=8)])
    _, apart = served(family, [Peek(away=2, back=3, again=None), Peek(away=5, back=8)])
    whole, one = offloaded_peak_bytes(both), offloaded_peak_bytes(apart)
    assert whole == 2 * one > 0


# -- moments ----------------------------------------------------------------------------------


def prefilled(*by_layer: int, vision: int = 4) -> Prefilled:
    return Prefilled("0", 0.0, 9, vision, 72, by_layer)


def withdrawn(step: int, *, complete: bool = True) -> Withdrawn:
    return Withdrawn("0", 0.0, step, 4, 4, 80, 48, 0.0, complete)


def restored(step: int) -> Restored:
    return Restored("0", 0.0, step, 4, 48, 80, 0.0)


def test_the_withdrawal_is_the_first_that_leaves_nothing() -> None:
    after = withdrawn_after
    assert after([prefilled(4, 4), withdrawn(7)], "0") == 7
    assert after([prefilled(4, 0), withdrawn(3, complete=False), withdrawn(7)], "0") == 7
    assert after([prefilled(4, 4), withdrawn(3), restored(5), withdrawn(7)], "0") == 3
    assert after([prefilled(4, 4), withdrawn(3, complete=False)], "0") is None
    assert after([prefilled(0, 0), withdrawn(3)], "0") == 0
    assert after([prefilled(vision=0)], "0") is None
    assert after([prefilled(4, 4), withdrawn(7)], "1") is None


def test_withdrawn_is_who_has_nothing_left_now() -> None:
    without: set[str] = set()
    for events, expected in (
        ([prefilled(4, 0)], set()),
        ([withdrawn(2, complete=False)], set()),
        ([withdrawn(3)], {"0"}),
        ([Finished("1", 0.0, "length", "", (1,), 1, 1)], {"0"}),
        ([restored(5)], set()),
        ([restored(6), withdrawn(6)], {"0"}),
        ([prefilled(0, 0)], {"0"}),
        ([prefilled()], set()),
    ):
        note_withdrawn(without, events)
        assert without == expected


def test_divergence_tells_the_first_complete_withdrawal_too() -> None:
    session, request = session_of("llava")
    arms = [KINDS["offloaded and back"], KINDS["anneal"], KINDS["vtw"], KINDS["vtw, then mvw"]]
    output = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    found = divergences(session, request, [replace(request, policy=one) for one in arms], output)
    assert [one.withdrawn_after for one in found] == [3, 8, None, 4]


# -- what is attended to --------------------------------------------------------------------


def answer(
    request: str, attended: list[float], by_layer: tuple[int, ...], *more: Event
) -> list[Event]:
    return [
        Prefilled(request, 0.0, 40, 16, 72, by_layer),
        *(Token(request, 0.0, step, 5, "", one) for step, one in enumerate(attended, start=1)),
        *more,
    ]


def test_figures_are_means_of_answers_and_of_those_that_got_so_far() -> None:
    gone = Withdrawn("0", 0.0, 2, 16, 32, 80, 48, 0.0, complete=False)
    back = Restored("0", 0.0, 3, 32, 48, 80, 0.0)
    empty = replace(gone, entries=0)
    first = answer("0", [16.0, 16.0, 8.0, 0.0], (16, 16), gone, back, gone, empty)
    # In a batch the events of its sequences are mixed.
    second = answer("1", [8.0, 8.0], (16, 0))
    found = vision_statistics([[*second[:1], *first, *second[1:]], answer("0", [0.0], (0, 0))])
    assert found is not None
    assert found.attended == pytest.approx((8 + 10 + 0) / 3)
    assert found.attended_along == [8.0, 12.0, 8.0, 0.0]
    assert found.held_by_layer == pytest.approx([32 / 3, 16 / 3])
    assert found.entries_held == pytest.approx(16)
    assert found.withdrawals == pytest.approx(2 / 3) and found.look_backs == pytest.approx(1 / 3)


def test_without_vision_there_is_nothing_to_tell() -> None:
    blind = [Prefilled("0", 0.0, 9, 0, 72, ()), Token("0", 0.0, 1, 5, "", 0.0)]
    assert vision_statistics([blind]) is None
    assert vision_statistics([[Prefilled("0", 0.0, 9, 4, 72), Token("0", 0.0, 1, 5, "")]]) is None


def test_a_part_is_of_what_the_baseline_sees_just_then() -> None:
    def seen(*attended: float, held: tuple[int, ...] = (16, 8, 0, 16)) -> Any:
        return vision_statistics([answer("0", list(attended), held)])

    baseline = seen(10.0, 10.0, 8.0)
    arm = seen(5.0, 10.0, 2.0, 4.0, held=(16, 4, 0, 0))
    # Beyond the baseline's end counts what it saw last; a layer whose window has let go of the
    # image is taken for the one before it.
    assert vision_share(arm, baseline) == VisionShare((0.5, 1.0, 0.25, 0.5), (1.0, 0.5, 0.5, 0.0))
    assert vision_share(baseline, baseline) == VisionShare((1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0))
