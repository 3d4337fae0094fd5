"""What withdrawal promises, whatever the policy: positions, determinism, bytes, a whole model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from policy_rules import masks_of, vtw
from policy_subjects import Served, Subject, asked, serve, subject
from torch import Tensor

from mvw_cli.engine.engine import Engine
from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import Failed, Finished, Prefilled, Restored, Token, Withdrawn
from mvw_cli.errors import PluginProblem
from mvw_cli.oracle.equivalence import writing_text_only
from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.downsample import Downsample
from mvw_cli.policies.fastv import FastV
from mvw_cli.policies.look_back import LookBack
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.random import Random
from mvw_cli.policies.stack import stacked
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import (
    Attend,
    AttendView,
    Decide,
    LayerView,
    Select,
    Signals,
    StepView,
    Withdraw,
    WithdrawalPolicy,
)

SUBJECTS = ("llava", "qwen2_5_vl", "kimi-vl", "llava-cot")
each_subject = pytest.mark.parametrize("name", SUBJECTS)


def policies(chosen: Subject) -> list[WithdrawalPolicy]:
    """One of each kind, and some of several."""
    last, first = chosen.vision_layers[-1], chosen.vision_layers[0]
    pulse = Pulse(layer=first, tau=1.0, min_ratio=0.1, max_ratio=0.5)
    looking = LookBack(entropy=0.8, steps=2)
    return [
        Vtw(layer=last),
        stacked([FastV(layer=last, keep=0.5), Mvw(m=4)]),
        stacked([Random(keep=0.6, seed=1), pulse]),
        stacked([Downsample(keep=0.6), Anneal(end=10, every=2), looking]),
        stacked([Mvw(m=3), looking]),
        Mass(threshold=1.0, patience=3),
        Anneal(end=10, every=2),
    ]


@dataclass(frozen=True)
class _Asking(WithdrawalPolicy):
    """Calls what it is given, where it is asked."""

    name: ClassVar[str] = "asking"
    select: Any = field(default=None, metadata={"description": "In the prefill."})
    attend: Any = field(default=None, metadata={"description": "In each step."})

    def begin_prefill(self) -> Select | None:
        return self.select

    def begin_attending(self) -> Attend | None:
        return self.attend

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        return layers[0]


@dataclass(frozen=True)
class _Watching(WithdrawalPolicy):
    """Notes the mass at all layers, whether they hold vision or not, and what ends are shown."""

    name: ClassVar[str] = "watching"
    layers: tuple[int, ...] = field(metadata={"description": "At which layers."})
    told: list[StepView] = field(metadata={"description": "What was seen."})

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return Signals(entropy=True, mass=self.layers, weights=self.layers)

    def begin(self) -> Decide:
        return self.told.append


# -- what policies see ----------------------------------------------------------------------------


@each_subject
def test_what_a_policy_sees_is_the_oracles(name: str) -> None:
    """Mass over the layers that hold vision, weights of all, entropy; where some are gone, too."""
    chosen = subject(name)
    layers, last = chosen.vision_layers, chosen.vision_layers[-1]
    told: list[StepView] = []
    watching = _Watching(layers, told)
    for policy, prefill, held in (
        (watching, [], layers),
        (stacked([Vtw(layer=last), watching]), [vtw(last)], layers[:-1]),
    ):
        told.clear()
        served = serve(chosen, [asked(chosen, policy, 2)])["2"]
        masks = masks_of(served, prefill)
        assert len(told) == len(served.ids) - 1
        for view in told:
            weights = served.weights(masks, layers, view.step)
            assert view.layers == held and view.vision_tokens == served.tokens
            assert view.entropy == pytest.approx(served.entropy(masks, view.step), abs=1e-5)
            assert view.mass == pytest.approx(served.mass(masks, held, view.step), abs=1e-5)
            assert view.weights is not None and set(view.weights) == set(layers)
            for layer, seen in view.weights.items():
                assert (seen - weights[layer]).abs().max() < 1e-5
        masses = [view.mass for view in told if view.mass is not None]
        assert max(masses) - min(masses) > 1e-3 and 0.01 < min(masses) < max(masses) < 1


# -- positions and determinism --------------------------------------------------------------------


@each_subject
def test_positions_are_those_of_no_withdrawal(name: str) -> None:
    chosen = subject(name)
    seen: list[Tensor] = []

    def note(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"].clone())

    def positions(policy: WithdrawalPolicy) -> list[Tensor]:
        seen.clear()
        forced = tuple(range(5, 17))
        serve(chosen, [replace(asked(chosen, policy, 2), forced=forced)])
        return list(seen)

    handle = chosen.loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        plain = positions(NoWithdrawal())
        assert len(plain) == 12
        for policy in policies(chosen):
            for mine, whole in zip(positions(policy), plain, strict=True):
                assert torch.equal(mine, whole)
    finally:
        handle.remove()


@each_subject
def test_the_same_request_gives_the_same_numbers(name: str) -> None:
    """Sampled, too; to the last bit, and not by the policy's state from the request before."""
    chosen = subject(name)
    for number, policy in enumerate(policies(chosen)):
        request = asked(chosen, policy, 2, temperature=0.8 if number % 2 else 0)
        first, second = (serve(chosen, [request])["2"] for _ in range(2))
        assert first.ids == second.ids and torch.equal(first.logits, second.logits)
        assert happened(first) == happened(second)


def happened(served: Served) -> list[Any]:
    """What happened, without the times."""
    return [
        (type(event).__name__, getattr(event, "step", 0), getattr(event, "entries", 0))
        for event in served.events
    ]


@dataclass(frozen=True)
class _Again(WithdrawalPolicy):
    """Withdraws after each token from the third on."""

    name: ClassVar[str] = "again"

    def begin(self) -> Decide:
        return lambda view: Withdraw(offload=view.step > 3) if view.step >= 3 else None


@pytest.mark.parametrize("name", ["llava", "mllama"])
def test_what_takes_nothing_is_no_withdrawal(name: str) -> None:
    chosen = subject(name)
    once = happened(serve(chosen, [asked(chosen, Mvw(m=3), 2)])["2"])
    assert [event[0] for event in once].count("Withdrawn") == 1
    for policy in (_Again(), stacked([Mvw(m=3), _Again()])):
        assert happened(serve(chosen, [asked(chosen, policy, 2)])["2"]) == once


# -- bytes ----------------------------------------------------------------------------------------


def entry_bytes(chosen: Subject, seed: int = 2) -> int:
    """Bytes of one vision entry at one layer, by the difference that withdrawal makes."""
    served = serve(chosen, [asked(chosen, Mvw(m=2), seed)])[str(seed)]
    [withdrawn] = served.of(Withdrawn)
    assert withdrawn.entries == served.tokens * len(chosen.vision_layers)
    freed = withdrawn.kv_bytes_before - withdrawn.kv_bytes_after
    assert freed % withdrawn.entries == 0
    return int(freed // withdrawn.entries)


@each_subject
def test_the_prefill_holds_what_the_policy_has_left(name: str) -> None:
    chosen = subject(name)
    layers, last, each = chosen.vision_layers, chosen.vision_layers[-1], entry_bytes(chosen)
    plain = serve(chosen, [asked(chosen, NoWithdrawal(), 2)])["2"]
    [whole] = plain.of(Prefilled)
    count = plain.tokens
    assert whole.vision_by_layer == (count,) * len(layers)
    half = max(1, int(count * 0.5 + 0.5))
    for policy, left in (
        (Vtw(layer=last), [count if layer < last else 0 for layer in layers]),
        (Vtw(layer=1), [count if layer < 1 else 0 for layer in layers]),
        (FastV(layer=last, keep=0.5), [count if layer < last else half for layer in layers]),
        (Random(keep=0.5), [half] * len(layers)),
    ):
        served = serve(chosen, [asked(chosen, policy, 2)])["2"]
        [prefilled] = served.of(Prefilled)
        assert prefilled.vision_by_layer == tuple(left)
        missing = count * len(layers) - sum(left)
        assert whole.kv_bytes - prefilled.kv_bytes == missing * each > 0
        [at_end], [plain_end] = served.of(Finished), plain.of(Finished)
        assert plain_end.kv_bytes - at_end.kv_bytes == missing * each


@each_subject
def test_each_withdrawal_frees_what_it_says(name: str) -> None:
    chosen = subject(name)
    each = entry_bytes(chosen)
    seen: set[Any] = set()
    for policy in policies(chosen):
        served = serve(chosen, [asked(chosen, policy, 2)])["2"]
        seen |= {(type(event), getattr(event, "complete", None)) for event in served.events}
        [prefilled] = served.of(Prefilled)
        held, offloaded = sum(prefilled.vision_by_layer), 0
        for event in served.events:
            if isinstance(event, Withdrawn):
                assert event.kv_bytes_before - event.kv_bytes_after == event.entries * each
                held -= event.entries
                assert event.complete == (held == 0)
                offloaded = offloaded + event.entries * each if event.offloaded_bytes else 0
                assert event.offloaded_bytes == offloaded
            elif isinstance(event, Restored):
                assert (
                    event.kv_bytes_after - event.kv_bytes_before
                    == event.entries * each
                    == offloaded
                )
                held, offloaded = held + event.entries, 0
        assert held >= 0
    assert {(Withdrawn, True), (Withdrawn, False), (Restored, None)} <= seen


def storages(slots: Slots) -> int:
    """Bytes behind every tensor of the cache, each storage once."""
    found = {}
    for layer in slots._cache.layers:  # type: ignore[union-attr]
        for group in (layer.with_vision, getattr(layer, "withdrawn", None)):
            for one in () if group is None else group.states:
                found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(found.values())


@each_subject
def test_storages_shrink_and_grow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another request that sees everything to its end."""
    monkeypatch.setattr("mvw_cli.engine.rows.CHUNK", 1)
    monkeypatch.setattr("mvw_cli.engine.rows.ROW_CHUNK", 1)
    chosen = subject(name)
    entries = chosen.prompt(2)[1].vision_tokens * len(chosen.vision_layers)
    each = entry_bytes(chosen)
    policy = stacked([Mvw(m=3), LookBack(entropy=0, steps=4)])
    plan = [asked(chosen, NoWithdrawal(), 1, name="sees"), asked(chosen, policy, 2, name="looks")]
    with writing_text_only(chosen.loaded.model), Engine(chosen.loaded).serving() as slots:
        for one in plan:
            slots.admit(one)
        while slots.active:
            before = storages(slots)
            assert before == slots.kv_allocated_bytes
            events = slots.step()
            assert storages(slots) == slots.kv_allocated_bytes
            if any(isinstance(event, Finished) for event in events):
                continue
            changes = [event for event in events if isinstance(event, Withdrawn | Restored)]
            if changes:
                [withdrawn, restored] = changes
                assert withdrawn.entries == restored.entries == entries
        assert storages(slots) == 0
    alone = stacked([Mvw(m=3), LookBack(entropy=99, steps=4)])
    with writing_text_only(chosen.loaded.model), Engine(chosen.loaded).serving() as slots:
        slots.admit(asked(chosen, alone, 2))
        slots.step()
        full = storages(slots)
        [_, withdrawn] = slots.step()
        assert isinstance(withdrawn, Withdrawn) and withdrawn.complete
        # What is in use, and at most room for a token to come at each layer.
        assert 0 <= storages(slots) - slots.kv_bytes <= chosen.layers * each
        assert withdrawn.kv_bytes_before - slots.kv_bytes == entries * each
        assert full - storages(slots) >= (entries - 2 * chosen.layers) * each
        [running] = slots._sequences.values()
        kept = [tensor for one in running.offloaded or [] for tensor in (one.keys, one.values)]
        assert sum(tensor.nbytes for tensor in kept) == withdrawn.offloaded_bytes == entries * each
        assert all(tensor.device.type == "cpu" for tensor in kept)
        of_cache = {
            group.states[0].untyped_storage().data_ptr()
            for layer in slots._cache.layers  # type: ignore[union-attr]
            for group in (layer.with_vision, getattr(layer, "withdrawn", layer.with_vision))
            if group.states
        }
        assert not of_cache & {one.untyped_storage().data_ptr() for one in kept if one.nbytes}


# -- what goes wrong ------------------------------------------------------------------------------


def marks(model: Any) -> list[Any]:
    """Hooks, replaced forwards and attention kernels, module by module."""
    return [
        (
            name,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            "forward" in vars(module),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("kind", ["skip", "mlp"])
@each_subject
def test_the_model_is_whole_after_an_error_in_a_prefill(name: str, kind: Any) -> None:
    """The policy raises at a layer, or answers nonsense, or a layer itself runs out of memory."""
    chosen = subject(name)
    model, last = chosen.loaded.model, chosen.vision_layers[-1]
    before = marks(model)

    def raising(view: LayerView) -> Tensor | None:
        if view.layer == last:
            raise OSError("the gates are gone")
        return torch.arange(len(view.present)) % 2 == 0

    def nonsense(view: LayerView) -> Tensor | None:
        return torch.ones(3) if view.layer == last else None

    def memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    neighbour = asked(chosen, Mvw(m=4), 1)
    alone = serve(chosen, [neighbour], cross_attention=kind)["1"]
    logits: list[Tensor] = []
    engine = Engine(chosen.loaded, cross_attention=kind)

    def observe(request: str, step: int, row: Tensor) -> None:
        logits.append(row.clone())

    with writing_text_only(model), engine.serving(observe=observe) as slots:
        serving = marks(model)
        events = slots.admit(neighbour)
        for policy, error in (
            (_Asking(select=raising), "raised OSError before layer"),
            (_Asking(select=nonsense), "returned a tensor of float32, shape .3,. before layer"),
        ):
            with pytest.raises(PluginProblem, match=error):
                slots.admit(asked(chosen, policy, 2))
            assert marks(model) == serving and slots.active == ["1"]
            events += slots.step()
        handle = model.get_decoder().layers[last].register_forward_hook(memory)
        for policy in policies(chosen)[:4]:
            with pytest.raises(torch.OutOfMemoryError):
                slots.admit(asked(chosen, policy, 2))
        handle.remove()
        assert marks(model) == serving
        while slots.active:
            events += slots.step()
    assert marks(model) == before
    assert tuple(event.id for event in events if isinstance(event, Token)) == alone.ids
    assert (torch.stack(logits) - alone.logits).abs().max() < 1e-5


@each_subject
def test_a_policy_that_fails_in_a_step_takes_nobody_along(name: str) -> None:
    chosen = subject(name)
    calls: list[int] = []

    def raising(view: AttendView) -> Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise OSError("no idea")
        return view.present

    def nonsense(view: AttendView) -> Tensor:
        return torch.ones(2, dtype=torch.bool)

    others = [asked(chosen, policy, 1) for policy in policies(chosen)[2:5]]
    for failing in (_Asking(attend=raising), _Asking(attend=nonsense)):
        calls.clear()
        for other in others:
            alone = serve(chosen, [other])["1"]
            with writing_text_only(chosen.loaded.model), Engine(chosen.loaded).serving() as slots:
                events = [
                    *slots.admit(asked(chosen, failing, 2, name="fails")),
                    *slots.admit(other),
                ]
                while slots.active:
                    events += slots.step()
            failures = [event for event in events if isinstance(event, Failed)]
            assert [event.request for event in failures] == ["fails"]
            mine = [event for event in events if event.request == "1"]
            assert tuple(event.id for event in mine if isinstance(event, Token)) == alone.ids


@each_subject
def test_a_step_that_fails_half_way_can_be_made_again(name: str) -> None:
    """Memory runs out at each layer in turn; what policies have seen and chosen is the same."""
    chosen = subject(name)
    layers = chosen.loaded.model.get_decoder().layers
    plan = [asked(chosen, one, 2, name=str(n)) for n, one in enumerate(policies(chosen))]
    expected = serve(chosen, plan, slots=len(plan))

    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with writing_text_only(chosen.loaded.model), Engine(chosen.loaded).serving() as slots:
        events = [event for one in plan for event in slots.admit(one)]
        number = 0
        while slots.active:
            layer, number = layers[number % len(layers)], number + 1
            handle = layer.register_forward_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                slots.step()
            handle.remove()
            events += slots.step()
    for one in plan:
        mine = [event for event in events if event.request == one.id]
        assert tuple(event.id for event in mine if isinstance(event, Token)) == expected[one.id].ids
        assert happened(replace(expected[one.id], events=tuple(mine))) == happened(expected[one.id])
