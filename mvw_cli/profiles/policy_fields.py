"""A policy's dataclass in pydantic's terms: its fields, their types, and a policy made of values.

The dataclass is the only description of its fields. It does not know layers or files.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from mvw_cli.errors import PluginProblem, UsageProblem
from mvw_cli.plugins.loading import OWN
from mvw_cli.plugins.lookup import canonical, load_policy
from mvw_cli.policies.stack import stacked
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.checking import SCHEMA_HINT, Origin, check
from mvw_cli.profiles.document import Path
from mvw_cli.profiles.schema import Profile, Section
from mvw_cli.text import error_line

NOTHING = f"{OWN}:none"


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    """A policy's class, under the name that a profile has for it."""

    name: str
    kind: type[WithdrawalPolicy]
    fields: Mapping[str, FieldInfo]
    model: type[Section]


def describe(name: str, where: str | None = None) -> Described:
    """Load a policy's class and describe its fields.

    Args:
        where: what the name comes from, for the message.

    Raises:
        PluginProblem: it can't be used, or its fields can't be checked.
    """
    try:
        kind = load_policy(name)
    except PluginProblem as error:
        if where is None:
            raise
        what = f"{where}: {error.message}"
        raise PluginProblem(what, cause=error.cause, hint=error.hint) from error
    try:
        return Described(name, kind, policy_fields(kind), policy_model(kind))
    except Exception as error:  # annotations that can't be resolved, or that pydantic can't check
        raise PluginProblem(
            f"the fields of policy `{name}` can't be checked",
            cause=error_line(error),
            hint="mvw plugins",
        ) from error


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


def build(
    described: Described,
    values: Mapping[str, Any],
    origin_of: Callable[[str], Origin],
    path: Path = ("withdrawal",),
) -> WithdrawalPolicy:
    """Make a policy of values, once they are checked.

    Args:
        origin_of: tells the origin of a field, or of the policy where it is not given.
        path: where the policy stands in the profile.

    Raises:
        UsageProblem: a value that is wrong.
    """
    words = [str(part) for part in path if isinstance(part, str)]
    infos = {".".join([*words, key]): info for key, info in described.fields.items()}

    def locate(place: Path) -> Origin:
        return origin_of(str(place[len(path)]))

    checked = check(described.model, values, locate, path, infos)
    try:
        return described.kind(**{key: getattr(checked, key) for key in checked.model_fields_set})
    except ValueError as error:
        text = str(error)
        named = [key for key in values if key in text.split()]
        group = "withdrawal" if len(path) == 1 else f"withdrawal: policy `{described.name}`"
        raise UsageProblem(
            f"{origin_of(named[-1] if named else '')}: {group}: {text}",
            cause=f"fields of policy `{described.name}`: {', '.join(described.fields) or 'none'}",
            hint=SCHEMA_HINT,
        ) from error


def combined(
    names: Sequence[str], policies: Sequence[WithdrawalPolicy], where: str = "the profile"
) -> WithdrawalPolicy:
    """Put policies in a row.

    Args:
        names: as the profile has them.
        where: what they come from, for the message.

    Raises:
        UsageProblem: a combination that makes no sense.
    """
    try:
        if len(policies) > 1 and canonical("policy", NOTHING) in names:
            raise ValueError("none keeps every vision token, and the others withdraw")
        return stacked(policies)
    except ValueError as error:
        order = f"asked for, in this order: {', then '.join(names)}"
        raise UsageProblem(
            f"{where}: withdrawal: {error}",
            cause=order if len(names) > 1 else f"asked for: {names[0]} alone",
            hint="mvw list policies",
        ) from error


def withdrawal_policy(profile: Profile) -> WithdrawalPolicy:
    """Make the withdrawal policy of a resolved profile: several become one that asks each.

    Raises:
        UsageProblem: a field that is wrong, or a combination that makes no sense.
        PluginProblem: a policy can't be used.
    """
    origin = Origin("profile", "the profile")
    steps = profile.withdrawal.steps
    built = []
    for number, (name, fields) in enumerate(steps):
        path = ("withdrawal",) if len(steps) == 1 else ("withdrawal", "policy", number)
        built.append(build(describe(name), fields, lambda _: origin, path))
    return combined([name for name, _ in steps], built)
