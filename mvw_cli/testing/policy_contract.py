"""What every withdrawal policy has to hold, apart from any model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import Field, fields, is_dataclass, replace
from itertools import product, zip_longest
from typing import Any, ClassVar

import pytest
import torch

from mvw_cli.errors import MvwError
from mvw_cli.policy import Restore, StepView, Withdraw, WithdrawalPolicy
from mvw_cli.testing.policy_situations import (
    SITUATIONS,
    Situation,
    attend_views,
    check_decisions,
    check_mask,
    heard,
    layer_view,
    plain,
    prefill,
    said,
    saying,
)
from mvw_cli.testing.probes import heavy_imports, without_network


class PolicyContract:
    """Subclass it, give instances of the policy, and let pytest collect it."""

    policies: ClassVar[tuple[WithdrawalPolicy, ...]]
    """Instances to be checked, with the fields that people would give."""
    num_layers: ClassVar[int] = 40
    """Decoder layers of the model that they are for."""
    hidden: ClassVar[int] = 8
    """Width of its hidden states."""

    @pytest.fixture(autouse=True)
    def _offline(self) -> Iterator[None]:
        with without_network():
            yield

    def cases(self) -> Iterator[tuple[WithdrawalPolicy, Situation]]:
        """Yield each policy in each situation."""
        return product(self.policies, SITUATIONS)

    def test_it_is_a_frozen_dataclass_with_a_name(self) -> None:
        """Its fields are the YAML keys and the flags, so they can't change while it is in use."""
        for policy in self.policies:
            assert is_dataclass(policy), f"{type(policy).__name__} must be a dataclass"
            assert isinstance(policy.name, str), "the policy needs a class variable `name`"
            assert policy.name, "the name is empty"
            parameters: Any = type(policy).__dataclass_params__
            assert parameters.frozen, "write @dataclass(frozen=True)"
            assert replace(policy) == policy, "a copy with the same fields must be equal"

    def test_its_fields_are_described(self) -> None:
        """`mvw show --schema` and editors show the description of each."""
        for policy in self.policies:
            for field in _fields(policy):
                text = field.metadata.get("description", "")
                assert text.strip(), f'field {field.name} needs metadata={{"description": …}}'
            known = {field.name for field in _fields(policy)}
            assert set(policy.triggers) <= known, "`triggers` names what is no field"

    def test_it_describes_itself(self) -> None:
        for policy in self.policies:
            line = policy.describe()
            assert line.strip() and "\n" not in line, "describe() must be one line"

    def test_importing_it_is_light(self) -> None:
        for module in {type(policy).__module__ for policy in self.policies}:
            heavy = heavy_imports(module)
            assert not heavy, f"importing `{module}` imports {', '.join(heavy)}"

    def test_its_conflicts_are_clauses(self) -> None:
        for policy in self.policies:
            for before in ((), (policy,)):
                reason = policy.conflict(before)
                assert reason is None or (reason.strip() and "\n" not in reason), (
                    "conflict() must return a clause on one line, or None"
                )

    # -- after each token -------------------------------------------------------------------

    def test_its_decisions_are_decisions(self) -> None:
        for policy, situation in self.cases():
            for view, answer in said(policy, situation, self.num_layers):
                check_decisions(answer, view)

    def test_it_restores_only_what_was_offloaded(self) -> None:
        for policy, situation in self.cases():
            offloaded = False
            for view, answer in said(policy, situation, self.num_layers):
                for one in heard(answer):
                    if isinstance(one, Restore):
                        assert offloaded, f"after token {view.step} there is nothing to restore"
                    offloaded = isinstance(one, Withdraw) and (offloaded or one.offload)

    def test_the_same_output_gets_the_same_decisions(self) -> None:
        for policy, situation in self.cases():
            first, second = (list(self._answers(policy, situation)) for _ in range(2))
            assert first == second, f"with {situation.title}: {first}, then {second}"

    def test_requests_do_not_share_state(self) -> None:
        """One policy serves many requests at once: state belongs into the functions of `begin…`."""
        for policy in self.policies:
            for ask in (self._answers, self._choices, self._attended):
                alone = zip_longest(*(list(ask(policy, one)) for one in SITUATIONS))
                together = zip_longest(*(ask(policy, one) for one in SITUATIONS))
                assert list(together) == list(alone), "requests at the same time change each other"

    def test_it_survives_text_that_is_empty_or_strange(self) -> None:
        for policy, text in product(self.policies, ("", "\ufffd", "<" * 1000, "\n")):
            entropy = 1.0 if policy.signals(()).entropy else None
            view = StepView(step=1, token_ids=[0], text=text, entropy=entropy)
            check_decisions(saying(policy)(view), view)

    def test_it_asks_for_weights_of_layers_that_hold_vision(self) -> None:
        for policy, layers in product(self.policies, ((), (0,), (0, 1, 2), (3, 8, 13))):
            outside = set(policy.signals(layers).weights) - set(layers)
            assert not outside, f"signals({layers}) asks for weights at {sorted(outside)}"

    # -- in the prefill ---------------------------------------------------------------------

    def test_it_chooses_among_the_vision_tokens_that_are_there(self) -> None:
        for policy, situation in self.cases():
            for view, chosen in prefill(policy, situation, self.num_layers, self.hidden):
                if chosen is not None:
                    check_mask(chosen, view.present, f"before layer {view.layer}")

    def test_the_same_prefill_gets_the_same_choices(self) -> None:
        """Whatever the state of the generators is, which it leaves as they are."""
        for policy in self.policies:
            found = []
            for seed in (1, 2):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    before = torch.get_rng_state(), random.getstate()
                    found.append([list(self._choices(policy, one)) for one in SITUATIONS])
                    own = torch.equal(torch.get_rng_state(), before[0])
                    mend = "make one of its own, as torch.Generator().manual_seed(self.seed)"
                    assert own, f"it uses torch's generator: {mend}"
                    assert random.getstate() == before[1], f"it uses Python's generator: {mend}"
            assert found[0] == found[1], f"{found[0]}, then {found[1]}"

    def test_it_leaves_what_it_sees_alone(self) -> None:
        for policy in self.policies:
            select, present = policy.begin_prefill(), SITUATIONS[0].present()
            last = self.num_layers if select else 0
            for layer in range(last):
                view = layer_view(policy, SITUATIONS[0], layer, last, self.hidden, present)
                seen, same = deepcopy(view), view
                assert select is not None
                select(seen)
                for field in fields(seen):
                    before, after = getattr(same, field.name), getattr(seen, field.name)
                    assert plain(after) == plain(before), f"it changes `{field.name}`"

    def test_a_model_with_fewer_layers_is_refused_with_a_reason(self) -> None:
        """Or served. But a policy for layer 12 of 4 must not do nothing without a word."""
        for policy in self.policies:
            for num_layers in (1, 2, 5):
                asked = policy.prefill_weights(num_layers)
                there = set(range(num_layers))
                assert set(asked) <= there, f"prefill_weights({num_layers}) is {asked}"
                try:
                    seen = list(prefill(policy, SITUATIONS[0], num_layers, self.hidden))
                except MvwError as error:
                    assert error.cause and error.hint, "the error needs a cause and a hint"
                    continue
                layer = getattr(policy, "layer", None)
                beyond = isinstance(layer, int) and layer >= num_layers
                assert not (seen and beyond), f"no layer {layer} in {num_layers}, and no error"

    # -- in each decode step ----------------------------------------------------------------

    def test_it_attends_to_vision_tokens_that_are_there(self) -> None:
        for policy, situation in self.cases():
            held = situation.layers_of(self.num_layers)
            layer, attend = policy.attending_layer(held), policy.begin_attending()
            if layer is None:
                unasked = type(policy).attending_layer is WithdrawalPolicy.attending_layer
                assert not (attend and unasked), "begin_attending() needs an attending_layer()"
                continue
            assert layer in held, f"attending_layer({held}) is {layer}"
            assert attend is not None, "it names a layer, and has nothing to ask there"
            for step, view in enumerate(attend_views(situation), start=1):
                check_mask(attend(view), view.present, f"in step {step}")

    def _answers(self, policy: WithdrawalPolicy, situation: Situation) -> Iterator[object]:
        for _, answer in said(policy, situation, self.num_layers):
            yield repr(answer)  # tensors compare entry by entry

    def _choices(self, policy: WithdrawalPolicy, situation: Situation) -> Iterator[object]:
        for _, chosen in prefill(policy, situation, self.num_layers, self.hidden):
            yield plain(chosen)

    def _attended(self, policy: WithdrawalPolicy, situation: Situation) -> Iterator[object]:
        attend = policy.begin_attending()
        if attend and policy.attending_layer(situation.layers_of(self.num_layers)) is not None:
            for view in attend_views(situation):
                yield plain(attend(view))


def _fields(policy: WithdrawalPolicy) -> tuple[Field[Any], ...]:
    assert is_dataclass(policy), f"{type(policy).__name__} must be a dataclass"
    return fields(policy)
