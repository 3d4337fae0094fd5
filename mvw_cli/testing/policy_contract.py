"""What every withdrawal policy has to hold, apart from any model."""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mvw_cli.policy import StepView, Withdraw, WithdrawalPolicy
from mvw_cli.testing.light import heavy_imports

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT = ("I ", "see", "</CAP", "TION>", " two", " cats", ".", "", " So", " 2", "</CAPTION>", "!")


class PolicyContract:
    """Subclass it, give instances of the policy, and let pytest collect it."""

    policies: ClassVar[tuple[WithdrawalPolicy, ...]]
    """Instances to be checked, with the fields that people would give."""

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

    def test_its_decisions_are_decisions(self) -> None:
        for policy in self.policies:
            decide = policy.begin()
            for view in views():
                decision = decide(view)
                assert decision is None or isinstance(decision, Withdraw), (
                    f"after token {view.step} it says {decision!r}: return Withdraw() or None"
                )

    def test_the_same_output_gets_the_same_decisions(self) -> None:
        for policy in self.policies:
            first, second = (steps_of(policy) for _ in range(2))
            assert first == second, f"withdrew at {first}, then at {second}"

    def test_requests_do_not_share_state(self) -> None:
        """One policy serves many requests at once: state belongs into the function of begin()."""
        for policy in self.policies:
            alone = steps_of(policy)
            one, other = policy.begin(), policy.begin()
            together: tuple[list[int], list[int]] = ([], [])
            for view in views():
                for decide, steps in ((one, together[0]), (other, together[1])):
                    if decide(view) is not None:
                        steps.append(view.step)
            assert together == (alone, alone), "two requests at once change each other"

    def test_it_survives_text_that_is_empty_or_strange(self) -> None:
        for policy in self.policies:
            for text in ("", "\ufffd", "<" * 1000, "\n"):
                decision = policy.begin()(StepView(step=1, token_ids=[0], text=text))
                assert decision is None or isinstance(decision, Withdraw)

    def test_importing_it_is_light(self) -> None:
        for module in {type(policy).__module__ for policy in self.policies}:
            heavy = heavy_imports(module)
            assert not heavy, f"importing `{module}` imports {', '.join(heavy)}"


def _fields(policy: WithdrawalPolicy) -> tuple[Field[Any], ...]:
    assert is_dataclass(policy), f"{type(policy).__name__} must be a dataclass"
    return fields(policy)


def views(output: Sequence[str] = OUTPUT) -> list[StepView]:
    """Write an output token by token, as a policy sees it."""
    return [
        StepView(step=step, token_ids=list(range(step)), text="".join(output[:step]))
        for step in range(1, len(output) + 1)
    ]


def steps_of(policy: WithdrawalPolicy) -> list[int]:
    """Run a policy over an output; return the steps at which it withdraws."""
    decide = policy.begin()
    return [view.step for view in views() if decide(view) is not None]
