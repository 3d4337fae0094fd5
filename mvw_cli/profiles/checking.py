"""Where values of a profile come from, and plain data checked against the schema.

The one place that words the complaints about profile keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.document import Path
from mvw_cli.profiles.schema import SECTIONS, PolicyStep, Profile, fields
from mvw_cli.text import closest

OriginKind = Literal["flag", "environment", "profile", "user", "packaged", "default"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The layer and the place that gave a value."""

    kind: OriginKind
    where: str
    """A file, a variable, a flag, or what the default belongs to."""
    line: int | None = None

    def __str__(self) -> str:
        return self.where if self.line is None else f"{self.where}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as one layer gives it, and where."""

    value: Any
    origin: Origin


SCHEMA_HINT = "mvw show --schema"
Locate = Callable[[Path], Origin]
ModelT = TypeVar("ModelT", bound=BaseModel)

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a group of keys",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "string_too_short": "more than an empty text",
    "too_short": "a list of one or more",
    "finite_number": "a finite number",
}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def check_profile(values: Mapping[str, Any], locate: Locate) -> Profile:
    """Check one layer's keys.

    Raises:
        UsageProblem: an unknown key, a wrong type or a wrong range, with its file and line.
    """
    step = {"withdrawal.policy.policy": PolicyStep.model_fields["policy"]}
    return check(Profile, values, locate, (), fields() | step)


def check(
    model: type[ModelT],
    values: Mapping[str, Any],
    locate: Locate,
    prefix: Path,
    describe: Mapping[str, FieldInfo],
) -> ModelT:
    """Check values against a model; `prefix` is where they stand in the profile."""
    try:
        # JSON's strictness is the right one for YAML: a list may become a tuple, text no number.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        found: dict[Path, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            path = (*prefix, *_place(values, detail["loc"]))
            found.setdefault(path, []).append(detail)
        # Of what is wrong with one value, the innermost says most.
        inner = [p for p in found if not any(q[: len(p)] == p for q in found if q != p)]
        path = min(inner, key=lambda path: locate(path).line or 0)
        raise _problem(locate(path), found[path], path, describe) from None


def unknown_key(origin: Origin, key: str, known: Iterable[str]) -> UsageProblem:
    """Complain about a dotted key that there is not, naming the one that was probably meant."""
    known = list(known)
    section, _, last = key.rpartition(".")
    beside = [one for one in known if one.rpartition(".")[0] == section]
    near = closest(last, (one.rpartition(".")[2] for one in beside))
    meant = f"{section}.{near}".lstrip(".") if near else None
    if meant is None:  # perhaps the right word in the wrong place
        elsewhere = {one.rpartition(".")[2]: one for one in known}
        meant = elsewhere.get(closest(last, elsewhere) or "")
    listing = ", ".join(one.rpartition(".")[2] for one in beside) or ", ".join(known)
    cause = f"did you mean `{meant}`?" if meant else f"known here: {listing}"
    return UsageProblem(f"{origin}: unknown key `{key}`", cause=cause, hint=SCHEMA_HINT)


def dotted(path: Path) -> str:
    """Write a path as people do: `generation.stop[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _place(values: Any, location: Path) -> Path:
    """Leave out of pydantic's location what names an alternative of a type."""
    path: list[str | int] = []
    for part in location:
        if isinstance(values, Mapping) and isinstance(part, str):
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _problem(
    origin: Origin, details: Sequence[ErrorDetails], path: Path, describe: Mapping[str, FieldInfo]
) -> UsageProblem:
    key, detail = dotted(path), details[0]
    if detail["type"] == "extra_forbidden":
        return unknown_key(origin, key, [*describe, *SECTIONS])
    if detail["type"] == "missing":
        return UsageProblem(
            f"{origin}: `{key}` is missing", cause=_description(path, describe), hint=SCHEMA_HINT
        )
    given = json.dumps(detail["input"], ensure_ascii=False, default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    return UsageProblem(
        f"{origin}: `{key}` {_expected(details)}, not {given}",
        cause=_description(path, describe),
        hint=SCHEMA_HINT,
    )


def _expected(details: Sequence[ErrorDetails]) -> str:
    detail = details[0]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _KINDS:
        kinds = [_KINDS[one["type"]] for one in details if one["type"] in _KINDS]
        return f"must be {' or '.join(dict.fromkeys(kinds))}"
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '')}"
    if kind == "value_error":
        return str(context["error"])
    for bound, words in _BOUNDS.items():
        if bound in context:
            limit = context[bound]
            return f"must be {words} {limit:g}" if limit < 1e6 else f"must be {words} {limit}"
    return f"is wrong ({detail['msg']})"


def _description(path: Path, describe: Mapping[str, FieldInfo]) -> str | None:
    words = [part for part in path if isinstance(part, str)]
    info = describe.get(".".join(words))
    if info is None and words[0] in SECTIONS:
        return f"its keys: {', '.join(SECTIONS[words[0]].model_fields)}"
    return info.description if info else None
