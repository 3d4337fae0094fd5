"""What the withdrawal part of a profile may say, as far as that does not depend on the policies.

It does not know their fields (`policy_fields.py`), nor the forms in which a layer may give several
policies (`composition.py`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema


class Section(BaseModel):
    """A group of keys. Strict: text is not taken for a number, nor a misspelled key for none."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class PolicyStep(Section):
    """One of several policies. The further keys are its fields."""

    model_config = ConfigDict(extra="allow")

    policy: str = Field(min_length=1, description="Name of the withdrawal policy.")


def _policies(value: object) -> object:
    if isinstance(value, str):
        if not value:
            raise ValueError("must be more than an empty text")
        return value
    if not isinstance(value, list):
        raise ValueError("must be a name, or a list of policies")
    if not value:
        raise ValueError("must name one policy at least")
    if not all(isinstance(one, dict) for one in value):
        raise ValueError("must be a list of mappings, as [{policy: mvw, m: 16}]")
    return value


class Withdrawal(Section):
    """When the vision tokens go. The further keys are the fields of the policy."""

    model_config = ConfigDict(extra="allow")

    policy: Annotated[
        str | list[dict[str, Any]],
        PlainValidator(_policies),
        WithJsonSchema({"type": "string", "minLength": 1}),
    ] = Field(
        default="none",
        description="Withdrawal policy; `mvw list policies` shows them. Several act in order: "
        "vtw:layer=12+mvw:m=16 on one line, or a list in YAML. Without it: mvw where one of its "
        "fields is given, else none.",
    )

    @property
    def steps(self) -> list[tuple[str, dict[str, Any]]]:
        """The policies in order, each with its fields."""
        if isinstance(self.policy, str):
            return [(self.policy, dict(self.model_extra or {}))]
        return [
            (step["policy"], {key: value for key, value in step.items() if key != "policy"})
            for step in self.policy
        ]
