"""The withdrawal of one layer, in whichever form it was given, brought into one form.

A name with its fields beside it, a line of policies, or a list of mappings: afterwards a single
policy is a name with fields beside it, and several are a list of mappings. It knows no other
layer, and no policy's fields (`withdrawal.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.checking import SCHEMA_HINT, Locate, Origin, check
from mvw_cli.profiles.document import DocumentError, Path, RawText, read
from mvw_cli.profiles.policy_line import HINT, parse
from mvw_cli.profiles.schema import PolicyStep

GROUP = "withdrawal."
POLICY = GROUP + "policy"


def place(number: int, key: str) -> str:
    """Write the dotted key of a field of the policy of this number (from 0), of several."""
    return f"{POLICY}[{number}].{key}"


def listed_below(values: Mapping[str, Any], locate: Locate) -> tuple[dict[str, Any], Locate]:
    """Bring `withdrawal: [...]` of a file under its key `policy`; lines stay those of the file."""
    withdrawal = values.get("withdrawal")
    if not isinstance(withdrawal, list):
        return dict(values), locate

    def from_list(path: Path) -> Origin:
        inside = path[:2] == ("withdrawal", "policy")
        return locate((path[0], *path[2:]) if inside else path)

    return {**values, "withdrawal": {"policy": withdrawal}}, from_list


def in_one_form(
    values: Mapping[str, Any], origins: Mapping[str, Origin], locate: Locate
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Take the policies of a layer apart.

    Args:
        values, origins: by dotted key.
        locate: tells the origin of what stands in a list of policies.

    Returns:
        The same; `withdrawal.policy` is a name, or a list of two or more mappings, whose fields
        have origins under the keys of `place`.

    Raises:
        UsageProblem: it can't be read, or a field is given twice.
    """
    flat, where = dict(values), dict(origins)
    if POLICY not in flat:
        return flat, where
    steps = _steps(flat.pop(POLICY), where[POLICY], locate)
    if len(steps) > 1:
        flat[POLICY] = [step for step, _ in steps]
        for number, (step, found) in enumerate(steps):
            where.update({place(number, key): found[key] for key in step})
        return flat, where
    (step, found), *_ = steps
    for key, value in step.items():
        if GROUP + key in flat:
            raise given_twice(key, found[key], where[GROUP + key])
        flat[GROUP + key] = value
        where[GROUP + key] = found[key]
    return flat, where


def given_twice(key: str, one: Origin, other: Origin) -> UsageProblem:
    """Complain about a field that one layer gives twice."""
    where = f"{one}:" if str(one) == str(other) else f"{one} and {other}:"
    return UsageProblem(
        f"{where} `{key}` is given twice",
        cause="as a field of a policy, and on its own: give one of them",
        hint=SCHEMA_HINT,
    )


def _steps(
    given: Any, origin: Origin, locate: Locate
) -> list[tuple[dict[str, Any], dict[str, Origin]]]:
    if isinstance(given, str) and given.lstrip().startswith("["):
        given, locate = _list_of(given, origin), lambda path: origin
    if isinstance(given, str):
        found = []
        for part in parse(given, str(origin)):
            fields = {key: RawText(value) for key, value in part.fields.items()}
            step = {"policy": part.name, **fields}
            found.append((step, dict.fromkeys(step, origin)))
        return found
    return [_step(item, number, locate) for number, item in enumerate(given)]


def _step(
    item: Mapping[str, Any], number: int, locate: Locate
) -> tuple[dict[str, Any], dict[str, Origin]]:
    path: Path = ("withdrawal", "policy", number)
    described = {f"{POLICY}.policy": PolicyStep.model_fields["policy"]}
    checked = check(PolicyStep, item, locate, path, described)
    where = {key: locate((*path, key)) for key in item}
    parts = parse(checked.policy, str(where["policy"]))
    if len(parts) > 1:
        raise UsageProblem(
            f"{where['policy']}: `{checked.policy}` is more than one policy",
            cause="each item of the list is one",
            hint=SCHEMA_HINT,
        )
    step: dict[str, Any] = {"policy": parts[0].name}
    for key, value in parts[0].fields.items():
        if key in item:
            raise given_twice(key, where["policy"], where[key])
        step[key], where[key] = RawText(value), where["policy"]
    return {**step, **(checked.model_extra or {})}, where


def _list_of(text: str, origin: Origin) -> Any:
    try:
        found = read(text).value
    except DocumentError as error:
        raise UsageProblem(f"{origin}: {error.message}", cause=f"in {text}", hint=HINT) from error
    if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
        return found
    raise UsageProblem(
        f"{origin}: a list of policies is a list of mappings",
        cause="for instance [{policy: mvw, m: 16}], or in short mvw:m=16",
        hint=HINT,
    )
