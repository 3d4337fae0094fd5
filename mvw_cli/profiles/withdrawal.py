"""The withdrawal part of a profile: find the final policies, then merge and check their fields.

The rules of merging are those in the docstring of this package; nothing here knows a policy by
what it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mvw_cli.errors import UsageProblem
from mvw_cli.plugins.loading import OWN
from mvw_cli.plugins.lookup import canonical
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.checking import SCHEMA_HINT, Origin, unknown_key
from mvw_cli.profiles.composition import GROUP, POLICY, given_twice, place
from mvw_cli.profiles.document import interpret
from mvw_cli.profiles.layers import Layer
from mvw_cli.profiles.policy_fields import NOTHING, Described, build, combined, describe
from mvw_cli.text import did_you_mean

_USUAL = f"{OWN}:mvw"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The final policies with all their fields, and where each value came from."""

    policy: WithdrawalPolicy
    values: Mapping[str, Any]
    """By dotted key, `withdrawal.policy` among them: a name, or several policies as mappings."""
    origins: Mapping[str, Origin]
    """By the same keys, and of several policies by those of `composition.place`, too."""


@dataclass(frozen=True, slots=True)
class _Named:
    """The policies in force at a layer, and the layer that named them: -1 for none."""

    names: tuple[str, ...]
    origin: Origin
    layer: int = -1


@dataclass(slots=True)
class _Part:
    """One of the final policies, and what the layers give it."""

    described: Described
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    def take(self, given: Mapping[str, Any], origins: Mapping[str, Origin]) -> None:
        """Lay what a higher layer gives over what is there; a trigger replaces all triggers."""
        all_triggers = self.described.kind.triggers
        triggers = {key for key in all_triggers if given.get(key) is not None}
        for key in set(all_triggers) - triggers if triggers else ():
            self.values.pop(key, None)
            self.origins.pop(key, None)
        for key, value in given.items():
            self.values[key] = interpret(value, self.described.fields[key].annotation)
            self.origins[key] = origins[key]


def choose(layers: Sequence[Layer]) -> Chosen:
    """Merge the withdrawal of all layers, the lowest first.

    Raises:
        UsageProblem: a field that the policies lack or that two of them have, a wrong value, or a
            combination of policies that makes no sense.
        PluginProblem: a policy can't be used.
    """
    in_force = _in_force(layers)
    final = in_force[-1]
    parts = [_Part(describe(name, str(final.origin))) for name in final.names]
    for number in _counted(layers, in_force):
        above = in_force[number].names == final.names
        given, origins = _given(layers[number], parts, number == final.layer, above)
        for part, values, where in zip(parts, given, origins, strict=True):
            part.take(values, where)
    built = [_build(parts, number, final.origin) for number in range(len(parts))]
    policy = combined(final.names, built, str(final.origin))
    merged: dict[str, Any] = {POLICY: final.names[0]}
    origins_by_key = {POLICY: final.origin}
    steps = []
    for number, (part, one) in enumerate(zip(parts, built, strict=True)):
        default = Origin("default", f"policy {part.described.name}")
        fields = {key: getattr(one, key) for key in part.described.fields}
        where = {key: part.origins.get(key, default) for key in fields}
        if len(parts) == 1:
            merged |= {GROUP + key: value for key, value in fields.items()}
            origins_by_key |= {GROUP + key: origin for key, origin in where.items()}
        else:
            steps.append({"policy": part.described.name, **fields})
            where = {"policy": final.origin, **where}
            origins_by_key |= {place(number, key): origin for key, origin in where.items()}
    return Chosen(policy, merged | ({POLICY: steps} if steps else {}), origins_by_key)


def _build(parts: Sequence[_Part], number: int, policy_origin: Origin) -> WithdrawalPolicy:
    part = parts[number]
    path = ("withdrawal",) if len(parts) == 1 else ("withdrawal", "policy", number)
    return build(
        part.described, part.values, lambda key: part.origins.get(key, policy_origin), path
    )


def _in_force(layers: Sequence[Layer]) -> list[_Named]:
    """Name the policies in force at each layer."""
    nothing = canonical("policy", NOTHING)
    current = _Named((nothing,), Origin("default", "no withdrawal is asked for"))
    found = []
    for number, layer in enumerate(layers):
        given = [key for key, value in _alone(layer).items() if value is not None]
        if POLICY in layer.values:
            names = tuple(_canonical(name, layer) for name in _names(layer))
            current = _Named(names, layer.origins[POLICY], number)
        elif given and current.names == (nothing,):
            usual = canonical("policy", _USUAL)
            current = _Named((usual,), layer.origins[GROUP + given[0]], number)
        found.append(current)
    return found


def _counted(layers: Sequence[Layer], in_force: Sequence[_Named]) -> Iterator[int]:
    """List the layers whose fields count, the lowest first.

    Not those that name other policies than the final ones, nor what lies below such a layer.
    """
    final = in_force[-1]
    lowest = 0
    for number in range(final.layer - 1, -1, -1):
        same = len(final.names) == 1 and in_force[number].names == final.names
        if POLICY in layers[number].values and not same:
            lowest = number + 1
            break
    yield from range(lowest, len(layers))


def _given(
    layer: Layer, parts: Sequence[_Part], names_them: bool, above: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Origin]]]:
    """Deal what a layer gives out to the policies.

    Args:
        names_them: whether this is the layer that names the final policies.
        above: whether those are in force at this layer, so that what none of them has is wrong.
    """
    given: list[dict[str, Any]] = [{} for _ in parts]
    origins: list[dict[str, Origin]] = [{} for _ in parts]
    if names_them and len(parts) > 1:
        for number, (part, step) in enumerate(zip(parts, layer.values[POLICY], strict=True)):
            for key in step.keys() - {"policy"}:
                origin = layer.origins[place(number, key)]
                if key not in part.described.fields:
                    raise _no_field(origin, part.described, key)
                given[number][key], origins[number][key] = step[key], origin
    for key, value in _alone(layer).items():
        owners = [n for n, part in enumerate(parts) if key in part.described.fields]
        origin = layer.origins[GROUP + key]
        if above and not owners:
            raise _nobodys(origin, [part.described for part in parts], key)
        if above and len(owners) > 1:
            raise _whose(origin, [parts[n].described.name for n in owners], key)
        if len(owners) == 1:
            if key in given[owners[0]]:
                raise given_twice(key, origins[owners[0]][key], origin)
            given[owners[0]][key], origins[owners[0]][key] = value, origin
    return given, origins


def _names(layer: Layer) -> list[str]:
    given = layer.values[POLICY]
    return [given] if isinstance(given, str) else [step["policy"] for step in given]


def _canonical(name: str, layer: Layer) -> str:
    # `none` is a word of the tool (--no-withdrawal), whatever a plugin calls so.
    return canonical("policy", name, OWN if name == "none" else layer.distribution)


def _alone(layer: Layer) -> dict[str, Any]:
    """List the fields that a layer gives beside its policies."""
    return {
        key.removeprefix(GROUP): value
        for key, value in layer.values.items()
        if key.startswith(GROUP) and key != POLICY
    }


def _nobodys(origin: Origin, described: Sequence[Described], key: str) -> UsageProblem:
    fields = [known for one in described for known in one.fields]
    if len(described) == 1:
        return unknown_key(origin, GROUP + key, [POLICY, *(GROUP + known for known in fields)])
    listing = "; ".join(f"{one.name} has {', '.join(one.fields) or 'none'}" for one in described)
    return UsageProblem(
        f"{origin}: none of the policies has a field `{key}`",
        cause=did_you_mean(key, fields, otherwise=listing),
        hint=SCHEMA_HINT,
    )


def _no_field(origin: Origin, described: Described, key: str) -> UsageProblem:
    known = ", ".join(described.fields)
    listing = f"its fields: {known}" if known else "it has none"
    return UsageProblem(
        f"{origin}: policy `{described.name}` has no field `{key}`",
        cause=did_you_mean(key, described.fields, otherwise=listing),
        hint=SCHEMA_HINT,
    )


def _whose(origin: Origin, names: Sequence[str], key: str) -> UsageProblem:
    return UsageProblem(
        f"{origin}: `{key}` is a field of {' and of '.join(names)}",
        cause="give it with its policy, as "
        + "+".join(f"{name}:{key}=VALUE" for name in dict.fromkeys(names)),
        hint=SCHEMA_HINT,
    )
