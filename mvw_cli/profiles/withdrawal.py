"""The withdrawal of a profile: steps in order, each a policy with its fields.

Whatever form a layer gives it in becomes steps on entry. The layers are then merged by the rules in
the docstring of this package, and the policies built.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, create_model

from mvw_cli.engine.checked_policy import CheckedPolicy
from mvw_cli.errors import MvwError, PluginProblem, UsageProblem
from mvw_cli.plugins import faulty, load_policy
from mvw_cli.policies.stack import Stack
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.document import KeyPath, RawText, interpret
from mvw_cli.profiles.policy_line import parse
from mvw_cli.profiles.schema import (
    SCHEMA_HINT,
    Given,
    Locate,
    Origin,
    Profile,
    Section,
    check,
    named_at,
)
from mvw_cli.text import did_you_mean, error_line

_NOTHING, _USUAL = "none", "mvw"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One policy of a layer with the fields that the layer gives it, or fields alone."""

    policy: str | None
    fields: Mapping[str, Given]
    origin: Origin


def as_steps(given: Any, locate: Locate) -> tuple[Step, ...]:
    """Make steps of what a layer gives as `withdrawal`.

    Args:
        given: a mapping with `policy`, a line of policies or a list of mappings, and fields beside
            it; or that list alone.

    Raises:
        UsageProblem: it is none of these, or a field is given twice.
    """
    path: KeyPath = ("withdrawal",)
    if isinstance(given, Mapping) and isinstance(given.get("policy"), list):
        beside = {key: value for key, value in given.items() if key != "policy"}
        listed = as_steps(
            given["policy"], lambda place: locate(("withdrawal", "policy", *place[1:]))
        )
        return listed + _of_mapping(beside, path, locate)
    if isinstance(given, Mapping):
        return _of_mapping(given, path, locate)
    found: tuple[Step, ...] = ()
    for number, item in enumerate(given if isinstance(given, list) else ()):
        named = item if isinstance(item, Mapping) and "policy" in item else {"policy": None}
        found += _of_mapping(named, (*path, number), locate)
    if not found:
        raise _not_policies(locate(path))
    return found


def _of_mapping(given: Mapping[str, Any], path: KeyPath, locate: Locate) -> tuple[Step, ...]:
    """Make steps of a line of policies and the fields beside it, which are those of the only one
    or stand alone.
    """
    origin = locate((*path, "policy"))
    steps = []
    if "policy" in given:
        if not isinstance(given["policy"], str):
            raise _not_policies(origin)
        for name, typed in parse(given["policy"], str(origin)):
            fields = {key: Given(RawText(value), origin) for key, value in typed.items()}
            steps.append(Step(name, fields, origin))
    beside = {
        key: Given(one, locate((*path, key))) for key, one in given.items() if key != "policy"
    }
    if len(steps) == 1:
        return (dataclasses.replace(steps[0], fields=_once(steps[0].fields, beside)),)
    return (*steps, Step(None, beside, origin)) if beside else tuple(steps)


def _not_policies(origin: Origin) -> UsageProblem:
    return UsageProblem(
        f"{origin}: `withdrawal`: not a policy with its fields",
        cause="it has keys such as `policy: mvw` and `m: 16`, or is a list with a policy in each "
        "item; on one line: vtw:layer=12+mvw:m=16",
        hint=SCHEMA_HINT,
    )


def _once(fields: Mapping[str, Given], more: Mapping[str, Given]) -> dict[str, Given]:
    """Put the fields of one policy together; none may be given twice in one layer."""
    for key in fields.keys() & more.keys():
        raise UsageProblem(
            f"{fields[key].origin} and {more[key].origin}: `{key}` is given twice",
            cause="as a field of a policy, and on its own: give one of them",
            hint=SCHEMA_HINT,
        )
    return {**fields, **more}


# -- all layers together ------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Policy:
    """One of the final policies, and what the layers have given it so far."""

    name: str
    kind: type[WithdrawalPolicy]
    model: type[Section]
    given: dict[str, Given] = dataclasses.field(default_factory=dict)

    def take(self, given: Mapping[str, Given]) -> None:
        """Lay what a higher layer gives over what is there; a trigger replaces all triggers."""
        if any(given[key].value is not None for key in self.kind.triggers if key in given):
            for key in self.kind.triggers:
                self.given.pop(key, None)
        for key, one in given.items():
            annotation = self.model.model_fields[key].annotation
            self.given[key] = Given(interpret(one.value, annotation), one.origin)


def merge(layers: Sequence[Sequence[Step]]) -> tuple[WithdrawalPolicy, dict[str, Given]]:
    """Merge the withdrawal of all layers, the lowest first.

    Returns:
        The policy, and the values by dotted key; several policies are one value, a list of
        mappings.

    Raises:
        UsageProblem: a field that the policies lack or that two of them have, a wrong value, or a
            combination of policies that makes no sense.
        PluginProblem: a policy can't be used.
    """
    named = [[step for step in layer if step.policy is not None] for layer in layers]
    top = max((number for number, steps in enumerate(named) if steps), default=-1)
    origin, names = Origin("default", "no withdrawal is asked for"), [_NOTHING]
    if top >= 0:
        origin, names = named[top][0].origin, [str(step.policy) for step in named[top]]
    if names == [_NOTHING]:  # a field above it asks for the usual policy
        for number in range(top + 1, len(layers)):
            fields = [one for step in layers[number] for one in step.fields.values()]
            asked = next((one for one in fields if one.value is not None), None)
            if asked is not None:
                origin, names, top = asked.origin, [_USUAL], number
                break
    policies = [_load(name, origin) for name in names]
    # A layer below that names other policies does not count, nor does what lies below that.
    others = [
        number
        for number, steps in enumerate(named[: max(top, 0)])
        if steps and (len(names) > 1 or [step.policy for step in steps] != names)
    ]
    for number in range(max(others, default=-1) + 1, len(layers)):
        _deal(layers[number], policies, strict=number >= top)
    several = len(names) > 1
    built = [
        _build(one, origin, ("withdrawal", "policy", number) if several else ("withdrawal",))
        for number, one in enumerate(policies)
    ]
    return _combined(names, built, origin), _values(policies, built, origin)


def _deal(layer: Sequence[Step], policies: Sequence[_Policy], *, strict: bool) -> None:
    """Give the policies what a layer says of them.

    Args:
        strict: whether a field that none of them has is wrong, and one that two have.
    """
    own = [step.fields for step in layer if step.policy is not None] or [{} for _ in policies]
    for policy, fields in zip(policies, own, strict=True):
        for key in fields:
            if key not in policy.model.model_fields:
                raise _no_field(fields[key].origin, [policy], key)
    dealt = [{**fields} for fields in own]
    for key, one in (
        (key, one) for s in layer if s.policy is None for key, one in s.fields.items()
    ):
        owners = [n for n, policy in enumerate(policies) if key in policy.model.model_fields]
        if len(owners) == 1:
            dealt[owners[0]] = _once(dealt[owners[0]], {key: one})
        elif strict and not owners:
            raise _no_field(one.origin, policies, key)
        elif strict:
            names = list(dict.fromkeys(policies[n].name for n in owners))
            raise UsageProblem(
                f"{one.origin}: `{key}` is a field of {' and of '.join(names)}",
                cause="give it with its policy, as "
                + "+".join(f"{name}:{key}=VALUE" for name in names),
                hint=SCHEMA_HINT,
            )
    for policy, fields in zip(policies, dealt, strict=True):
        policy.take(fields)


def _values(
    policies: Sequence[_Policy], built: Sequence[WithdrawalPolicy], origin: Origin
) -> dict[str, Given]:
    """Write all fields of the policies as a profile has them."""
    if len(policies) > 1:
        origins = [origin, *(one.origin for policy in policies for one in policy.given.values())]
        by_flag = next((one for one in origins if one.kind == "flag"), origin)
        steps = [
            {"policy": one.name, **{key: getattr(policy, key) for key in one.model.model_fields}}
            for one, policy in zip(policies, built, strict=True)
        ]
        return {"withdrawal.policy": Given(steps, by_flag)}
    default = Origin("default", f"policy {policies[0].name}")
    values = {"withdrawal.policy": Given(policies[0].name, origin)}
    for key in policies[0].model.model_fields:
        given = policies[0].given.get(key)
        place = default if given is None else given.origin
        values[f"withdrawal.{key}"] = Given(getattr(built[0], key), place)
    return values


def _no_field(origin: Origin, policies: Sequence[_Policy], key: str) -> UsageProblem:
    of_whom = f"policy `{policies[0].name}` has no" if len(policies) == 1 else "no policy has a"
    fields = {one.name: [*one.model.model_fields] for one in policies}
    listing = (f"`{name}` has {', '.join(own) or 'no fields'}" for name, own in fields.items())
    known = ["policy", *(field for own in fields.values() for field in own)]
    return UsageProblem(
        f"{origin}: {of_whom} field `{key}`",
        cause=did_you_mean(key, known, otherwise="; ".join(listing)),
        hint=SCHEMA_HINT,
    )


# -- policies out of values ---------------------------------------------------------------------


def withdrawal_policy(profile: Profile) -> WithdrawalPolicy:
    """Make the withdrawal policy of a profile: several become one that asks each.

    Raises:
        UsageProblem: a field that is wrong, or a combination that makes no sense.
        PluginProblem: a policy can't be used.
    """
    origin = Origin("profile", "the profile")
    return merge([as_steps(profile.withdrawal.model_dump(), lambda path: origin)])[0]


def policy_model(kind: type[WithdrawalPolicy]) -> type[Section]:
    """Make a pydantic model of a policy's fields: the dataclass is their only description."""
    hints = typing.get_type_hints(kind)
    definitions: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        if field.init:
            options: dict[str, Any] = {"description": field.metadata.get("description")}
            for key in ("default", "default_factory"):
                if getattr(field, key) is not dataclasses.MISSING:
                    options[key] = getattr(field, key)
            definitions[field.name] = (hints[field.name], Field(**options))
    return create_model(kind.__name__, __base__=Section, **definitions)


def _load(name: str, origin: Origin) -> _Policy:
    """Load a policy's class and describe its fields."""
    with named_at(origin):
        kind = load_policy(name)
    try:
        return _Policy(name, kind, policy_model(kind))
    except Exception as error:  # annotations that can't be resolved, or that pydantic can't check
        raise PluginProblem(
            f"the fields of policy `{name}` can't be checked",
            cause=error_line(error),
            hint="mvw plugins",
        ) from error


def _build(policy: _Policy, origin: Origin, path: KeyPath) -> WithdrawalPolicy:
    """Make a policy of what it was given, once that is checked; `path` is its place."""

    def locate(place: KeyPath) -> Origin:
        return next(
            (policy.given[str(part)].origin for part in place if part in policy.given), origin
        )

    values = {key: one.value for key, one in policy.given.items()}
    checked = check(policy.model, values, locate, path)
    try:
        built = policy.kind(**{key: getattr(checked, key) for key in checked.model_fields_set})
        # What it tells of itself alone is looked at before anything is loaded.
        CheckedPolicy(built).describe()
        CheckedPolicy(built).withdrawal_step()
        return built
    except MvwError:
        raise
    except ValueError as error:
        named = [key for key in values if key in str(error).split()]
        raise UsageProblem(
            f"{locate((*path, *named[-1:]))}: withdrawal: policy `{policy.name}`: {error}",
            cause=f"its fields: {', '.join(policy.model.model_fields) or 'none'}",
            hint=SCHEMA_HINT,
        ) from error
    except Exception as error:
        said = f"raised {type(error).__name__} on being made"
        raise faulty("policy", policy.name, said, error_line(error)) from error


def _combined(
    names: Sequence[str], policies: Sequence[WithdrawalPolicy], origin: Origin
) -> WithdrawalPolicy:
    """Put policies in a row."""
    try:
        if len(policies) > 1:
            if _NOTHING in names:
                raise ValueError("none keeps every vision token, and the others withdraw")
            return Stack(tuple(policies))
        # As of one that only changes what others do.
        reason = CheckedPolicy(policies[0]).conflict(())
        if reason is not None:
            raise ValueError(reason)
        return policies[0]
    except ValueError as error:
        raise UsageProblem(
            f"{origin}: withdrawal: {error}",
            cause=f"asked for, in this order: {', then '.join(names)}",
            hint="mvw list policies",
        ) from error
