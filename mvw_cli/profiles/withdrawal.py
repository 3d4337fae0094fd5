"""The withdrawal of a profile: steps in order, each a policy with its fields.

Whatever form a layer gives it in becomes steps on entry. The layers are then merged by the rules in
the docstring of this package, and the policies built.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from mvw_cli.errors import PluginProblem, UsageProblem
from mvw_cli.plugins import OWN, canonical, load_policy
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
)
from mvw_cli.text import did_you_mean, error_line

POLICY = "withdrawal.policy"
_NOTHING, _USUAL = f"{OWN}:none", f"{OWN}:mvw"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One policy of a layer, and the fields that the layer gives it."""

    policy: str
    fields: Mapping[str, Given]


@dataclasses.dataclass(frozen=True, slots=True)
class LayerWithdrawal:
    """What one layer says about the withdrawal."""

    loose: Mapping[str, Given]
    """Fields that it gives without a policy, or beside several."""
    steps: tuple[Step, ...] = ()
    """Empty where it names no policy."""
    origin: Origin | None = None
    """Of the policies' names."""


@dataclasses.dataclass(slots=True)
class _Policy:
    """One of the final policies, and what the layers have given it so far."""

    name: str
    kind: type[WithdrawalPolicy]
    model: type[Section]
    given: dict[str, Given] = dataclasses.field(default_factory=dict)

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        return self.model.model_fields

    def take(self, given: Mapping[str, Given]) -> None:
        """Lay what a higher layer gives over what is there; a trigger replaces all triggers."""
        triggers = {
            key for key in self.kind.triggers if key in given and given[key].value is not None
        }
        for key in set(self.kind.triggers) - triggers if triggers else ():
            self.given.pop(key, None)
        for key, one in given.items():
            value = interpret(one.value, self.fields[key].annotation)
            self.given[key] = Given(value, one.origin)


# -- a layer's withdrawal as steps --------------------------------------------------------------


def field_key(number: int, key: str) -> str:
    """Write the dotted key of a field of the policy of this number (from 0), of several."""
    return f"{POLICY}[{number}].{key}"


def as_steps(
    given: Mapping[str, Any], locate: Locate, distribution: str | None = None
) -> LayerWithdrawal:
    """Make steps of what a layer gives below `withdrawal`, once its shape has been checked.

    Args:
        given: `policy`, a line of policies or a list of mappings, and fields beside it.
        distribution: whose policies the names mean where several bring one.

    Raises:
        UsageProblem: a line that is none, or a field that is given twice.
    """
    loose = {
        key: Given(value, locate(("withdrawal", key)))
        for key, value in given.items()
        if key != "policy"
    }
    if "policy" not in given:
        return LayerWithdrawal(loose)
    origin, policies = locate(("withdrawal", "policy")), given["policy"]
    if isinstance(policies, str):
        steps = _of_line(policies, origin)
    else:
        steps = [
            _of_mapping(item, ("withdrawal", "policy", number), locate)
            for number, item in enumerate(policies)
        ]
    if len(steps) == 1:
        steps = [Step(steps[0].policy, _once(steps[0].fields, loose))]
        loose = {}
    named = []
    for step in steps:
        # `none` is a word of the tool (--no-withdrawal), whatever a plugin calls so.
        speaker = OWN if step.policy == "none" else distribution
        named.append(Step(canonical("policy", step.policy, speaker), step.fields))
    return LayerWithdrawal(loose, tuple(named), origin)


def _of_line(line: str, origin: Origin) -> list[Step]:
    if line.replace("-", "_").isidentifier():  # a name alone, as most profiles have it
        return [Step(line, {})]
    return [
        Step(name, {key: Given(RawText(value), origin) for key, value in fields.items()})
        for name, fields in parse(line, str(origin))
    ]


def _of_mapping(item: Mapping[str, Any], path: KeyPath, locate: Locate) -> Step:
    origin = locate((*path, "policy"))
    steps = _of_line(item["policy"], origin)
    if len(steps) > 1:
        raise UsageProblem(
            f"{origin}: `{item['policy']}` is more than one policy",
            cause="each item of the list is one",
            hint=SCHEMA_HINT,
        )
    beside = {key: Given(item[key], locate((*path, key))) for key in item if key != "policy"}
    return Step(steps[0].policy, _once(steps[0].fields, beside))


def _once(fields: Mapping[str, Given], more: Mapping[str, Given]) -> dict[str, Given]:
    """Put the fields of one policy together; none may be given twice in one layer."""
    for key in fields.keys() & more.keys():
        one, other = str(fields[key].origin), str(more[key].origin)
        raise UsageProblem(
            f"{one if one == other else f'{one} and {other}'}: `{key}` is given twice",
            cause="as a field of a policy, and on its own: give one of them",
            hint=SCHEMA_HINT,
        )
    return {**fields, **more}


# -- all layers together ------------------------------------------------------------------------


def merge(
    layers: Sequence[LayerWithdrawal],
) -> tuple[WithdrawalPolicy, dict[str, Any], dict[str, Origin]]:
    """Merge the withdrawal of all layers, the lowest first.

    Returns:
        The policy; all values by dotted key, where several policies are a list of mappings; and the
        origins by the same keys, and of several policies by those of `field_key`, too.

    Raises:
        UsageProblem: a field that the policies lack or that two of them have, a wrong value, or a
            combination of policies that makes no sense.
        PluginProblem: a policy can't be used.
    """
    names: tuple[str, ...] = (canonical("policy", _NOTHING),)
    origin, naming = Origin("default", "no withdrawal is asked for"), -1
    in_force = []
    for number, layer in enumerate(layers):
        given = [one for one in layer.loose.values() if one.value is not None]
        if layer.steps and layer.origin is not None:
            names, origin, naming = tuple(s.policy for s in layer.steps), layer.origin, number
        elif given and names == (canonical("policy", _NOTHING),):
            names, origin, naming = (canonical("policy", _USUAL),), given[0].origin, number
        in_force.append(names)
    policies = [_load(name, str(origin)) for name in names]
    # Layers that name other policies do not count, nor does what lies below them.
    others = [
        number
        for number, layer in enumerate(layers[: max(naming, 0)])
        if layer.steps and (len(names) > 1 or in_force[number] != names)
    ]
    for number in range(max(others, default=-1) + 1, len(layers)):
        _deal(layers[number], policies, strict=in_force[number] == names)
    built = [
        _build(
            one, origin, ("withdrawal",) if len(names) == 1 else ("withdrawal", "policy", number)
        )
        for number, one in enumerate(policies)
    ]
    policy = _combined(names, built, str(origin))
    return policy, *_written(policies, built, origin)


def _deal(layer: LayerWithdrawal, policies: Sequence[_Policy], *, strict: bool) -> None:
    """Give the policies what a layer says of them.

    Args:
        strict: whether the final policies are in force at this layer, so that a field that none of
            them has is wrong, and one that two have.
    """
    dealt: list[dict[str, Given]] = [{} for _ in policies]
    for step, policy, fields in zip(layer.steps, policies, dealt, strict=False):
        for key, one in step.fields.items():
            if key not in policy.fields:
                raise _no_field(one.origin, [policy], key)
            fields[key] = one
    for key, one in layer.loose.items():
        owners = [n for n, policy in enumerate(policies) if key in policy.fields]
        if strict and not owners:
            raise _no_field(one.origin, policies, key)
        if strict and len(owners) > 1:
            names = list(dict.fromkeys(policies[n].name for n in owners))
            raise UsageProblem(
                f"{one.origin}: `{key}` is a field of {' and of '.join(names)}",
                cause="give it with its policy, as "
                + "+".join(f"{name}:{key}=VALUE" for name in names),
                hint=SCHEMA_HINT,
            )
        if len(owners) == 1:
            dealt[owners[0]] = _once(dealt[owners[0]], {key: one})
    for policy, fields in zip(policies, dealt, strict=True):
        policy.take(fields)


def _written(
    policies: Sequence[_Policy], built: Sequence[WithdrawalPolicy], origin: Origin
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Write all fields of the policies with their origins, as a profile has them."""
    steps, origins = [], {POLICY: origin}
    for number, (one, policy) in enumerate(zip(policies, built, strict=True)):
        default = Given(None, Origin("default", f"policy {one.name}"))
        steps.append({key: getattr(policy, key) for key in one.fields})
        for key in one.fields:
            place = f"withdrawal.{key}" if len(policies) == 1 else field_key(number, key)
            origins[place] = one.given.get(key, default).origin
        if len(policies) > 1:
            origins[field_key(number, "policy")] = origin
    if len(policies) == 1:
        fields = {f"withdrawal.{key}": value for key, value in steps[0].items()}
        return {POLICY: policies[0].name, **fields}, origins
    named = [{"policy": one.name, **step} for one, step in zip(policies, steps, strict=True)]
    return {POLICY: named}, origins


def _no_field(origin: Origin, policies: Sequence[_Policy], key: str) -> UsageProblem:
    of_whom = f"policy `{policies[0].name}` has no" if len(policies) == 1 else "no policy has a"
    listing = (f"`{one.name}` has {', '.join(one.fields) or 'no fields'}" for one in policies)
    known = ["policy", *(field for one in policies for field in one.fields)]
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
        if not field.init:
            continue
        options: dict[str, Any] = {"description": field.metadata.get("description")}
        for key in ("default", "default_factory"):
            if getattr(field, key) is not dataclasses.MISSING:
                options[key] = getattr(field, key)
        described = Field(**options)
        definitions[field.name] = (hints[field.name], described)
    return create_model(kind.__name__, __base__=Section, **definitions)


def _load(name: str, where: str) -> _Policy:
    """Load a policy's class and describe its fields.

    Args:
        where: what the name comes from, for the message.
    """
    try:
        kind = load_policy(name)
    except PluginProblem as error:
        what = f"{where}: {error.message}"
        raise PluginProblem(what, cause=error.cause, hint=error.hint) from error
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

    def origin_of(key: str) -> Origin:
        return policy.given[key].origin if key in policy.given else origin

    words = [part for part in path if isinstance(part, str)]
    infos = {".".join([*words, key]): info for key, info in policy.fields.items()}
    values = {key: one.value for key, one in policy.given.items()}
    locate: Callable[[KeyPath], Origin] = lambda place: origin_of(str(place[len(path)]))  # noqa: E731
    checked = check(policy.model, values, locate, path, infos)
    try:
        return policy.kind(**{key: getattr(checked, key) for key in checked.model_fields_set})
    except ValueError as error:
        text = str(error)
        named = [key for key in values if key in text.split()]
        group = "withdrawal" if len(path) == 1 else f"withdrawal: policy `{policy.name}`"
        raise UsageProblem(
            f"{origin_of(named[-1] if named else '')}: {group}: {text}",
            cause=f"fields of policy `{policy.name}`: {', '.join(policy.fields) or 'none'}",
            hint=SCHEMA_HINT,
        ) from error


def _combined(
    names: Sequence[str], policies: Sequence[WithdrawalPolicy], where: str
) -> WithdrawalPolicy:
    """Put policies in a row."""
    try:
        if len(policies) > 1 and canonical("policy", _NOTHING) in names:
            raise ValueError("none keeps every vision token, and the others withdraw")
        if len(policies) > 1:
            return Stack(tuple(policies))
        reason = policies[0].conflict(())  # as of one that only changes what others do
        if reason is not None:
            raise ValueError(reason)
        return policies[0]
    except ValueError as error:
        order = f"asked for, in this order: {', then '.join(names)}"
        raise UsageProblem(
            f"{where}: withdrawal: {error}",
            cause=order if len(names) > 1 else f"asked for: {names[0]} alone",
            hint="mvw list policies",
        ) from error
