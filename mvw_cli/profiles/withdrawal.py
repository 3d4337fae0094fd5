"""The withdrawal part of a profile: find the final policy, then check and merge its fields.

A policy's dataclass is the only description of its fields. The rules of merging are those in the
docstring of this package; nothing here knows a policy by what it does.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from mvw_cli.errors import PluginProblem, UsageProblem
from mvw_cli.plugin_loading import one_line
from mvw_cli.plugin_records import OWN
from mvw_cli.plugins import canonical, load_policy
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.check import SCHEMA_HINT, check, unknown_key
from mvw_cli.profiles.document import Path
from mvw_cli.profiles.layers import Layer, interpret
from mvw_cli.profiles.origin import Origin
from mvw_cli.profiles.schema import Section

_GROUP = "withdrawal."
_POLICY = _GROUP + "policy"
_NOTHING = f"{OWN}:none"
_USUAL = f"{OWN}:mvw"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The final policy with all its fields, and where each value came from."""

    policy: WithdrawalPolicy
    values: Mapping[str, Any]
    """By dotted key, `withdrawal.policy` among them."""
    origins: Mapping[str, Origin]


def choose(layers: Sequence[Layer]) -> Chosen:
    """Merge the withdrawal of all layers, the lowest first.

    Raises:
        UsageProblem: a field that the policy lacks, or a wrong value.
        PluginProblem: the policy can't be used.
    """
    names, origin = _policies(layers)
    name = names[-1]
    try:
        kind = load_policy(name)
    except PluginProblem as error:
        raise PluginProblem(
            f"{origin}: {error.message}", cause=error.cause, hint=error.hint
        ) from error
    try:
        infos = policy_fields(kind)
        model = policy_model(kind)
    except Exception as error:  # annotations that can't be resolved, or that pydantic can't check
        raise PluginProblem(
            f"the fields of policy `{name}` can't be checked",
            cause=one_line(error),
            hint="mvw plugins",
        ) from error
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for layer, policy in zip(layers, names, strict=True):
        given = _fields_of(layer)
        for key in given:
            if key not in infos and policy == name:
                known = [_POLICY, *(_GROUP + known for known in infos)]
                raise unknown_key(layer.origins[_GROUP + key], _GROUP + key, known)
        triggers = {key for key in kind.triggers if given.get(key) is not None}
        for key in set(kind.triggers) - triggers if triggers else ():
            values.pop(key, None)
            origins.pop(key, None)
        for key in given.keys() & infos.keys():
            values[key] = interpret(given[key], infos[key].annotation)
            origins[key] = layer.origins[_GROUP + key]
    built = _build(kind, model, values, origins, origin)
    default = Origin("default", f"policy {name}")
    return Chosen(
        built,
        {_POLICY: name, **{_GROUP + key: getattr(built, key) for key in infos}},
        {_POLICY: origin, **{_GROUP + key: origins.get(key, default) for key in infos}},
    )


def policy_fields(kind: type[WithdrawalPolicy]) -> dict[str, FieldInfo]:
    """Describe the fields of a policy's dataclass in pydantic's terms."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        if not field.init:
            continue
        default: Any = ...
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        info = Field(default, description=field.metadata.get("description"))
        info.annotation = hints[field.name]
        found[field.name] = info
    return found


def policy_model(kind: type[WithdrawalPolicy]) -> type[Section]:
    """Make a pydantic model of a policy's fields."""
    infos = policy_fields(kind)
    definitions: dict[str, Any] = {key: (info.annotation, info) for key, info in infos.items()}
    return create_model(kind.__name__, __base__=Section, **definitions)


def _policies(layers: Sequence[Layer]) -> tuple[list[str], Origin]:
    """Name the policy in force at each layer, and the origin of the last one."""
    current, origin = canonical("policy", _NOTHING), Origin("default", "no withdrawal is asked for")
    names = []
    for layer in layers:
        given = [key for key, value in _fields_of(layer).items() if value is not None]
        if _POLICY in layer.values:
            given_name = layer.values[_POLICY]
            # `none` is a word of the tool (--no-withdrawal), whatever a plugin calls so.
            speaker = OWN if given_name == "none" else layer.distribution
            current = canonical("policy", given_name, speaker)
            origin = layer.origins[_POLICY]
        elif given and current == canonical("policy", _NOTHING):
            current = canonical("policy", _USUAL)
            origin = layer.origins[_GROUP + given[0]]
        names.append(current)
    return names, origin


def _fields_of(layer: Layer) -> dict[str, Any]:
    return {
        key.removeprefix(_GROUP): value
        for key, value in layer.values.items()
        if key.startswith(_GROUP) and key != _POLICY
    }


def _build(
    kind: type[WithdrawalPolicy],
    model: type[Section],
    values: Mapping[str, Any],
    origins: Mapping[str, Origin],
    policy_origin: Origin,
) -> WithdrawalPolicy:
    def locate(path: Path) -> Origin:
        return origins.get(str(path[1]), policy_origin)

    described = {_GROUP + key: info for key, info in policy_fields(kind).items()}
    checked = check(model, values, locate, ("withdrawal",), described)
    try:
        return kind(**{key: getattr(checked, key) for key in checked.model_fields_set})
    except ValueError as error:
        text = str(error)
        named = [origin for key, origin in origins.items() if key in text.split()]
        raise UsageProblem(
            f"{named[-1] if named else policy_origin}: withdrawal: {text}",
            cause=f"fields of policy `{kind.name}`: {', '.join(policy_fields(kind)) or 'none'}",
            hint=SCHEMA_HINT,
        ) from error
