"""The keys of the reports of `mvw profile` and `mvw eval`, from the dataclasses of these."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from mvw_cli.bench import documents as tree
from mvw_cli.bench import stats
from mvw_cli.evaluate import results, wemath
from regions.reference import table

_LEAVES = {stats.Summary: "summary", stats.Ratio: "ratio"}
_NAMES = {str: "text", int: "integer", float: "number", bool: "boolean", dict: "object"}


def report_keys() -> str:
    """Write the table of all keys of a report, and what summaries and ratios hold."""
    head = ("Key", "Type", "Meaning")
    parts = [
        table(head, list(_rows(tree.ProfileReport, ""))),
        "A *summary* has these keys:",
        table(head, list(_rows(stats.Summary, ""))),
        "A *ratio* has these:",
        table(head, list(_rows(stats.Ratio, ""))),
    ]
    return "\n\n".join(parts)


def eval_keys() -> str:
    """Write the table of all keys of an evaluation, and of what its objects hold."""
    head = ("Key", "Type", "Meaning")
    return "\n\n".join(
        [
            table(head, list(_rows(results.EvalReport, ""))),
            "Each of the `groups` has, by its column and name:",
            table(head, list(_rows(results.Part, ""))),
            "`wemath` and `wemath_vlmevalkit` have:",
            table(head, list(_rows(wemath.FourDimensions, ""))),
        ]
    )


def _rows(kind: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    hints = typing.get_type_hints(kind)
    said = _docstrings(kind)
    for field in dataclasses.fields(kind):
        inner, name, many = _type(hints[field.name])
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner) and inner not in _LEAVES:
            assert isinstance(inner, type)
            about = said.get(field.name) or _first_line(inner)
            yield f"`{key}{'[]' if many else ''}`", name, about
            yield from _rows(inner, f"{key}{'[]' if many else ''}.")
        else:
            yield f"`{key}`", name, said.get(field.name, "")


def _type(hint: Any) -> tuple[Any, str, bool]:
    """Return the class behind a hint, what to call it, and whether it is a list of them."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [one for one in typing.get_args(hint) if one is not type(None)]
        inner, name, many = _type(rest[0])
        return inner, f"{name} or null" if len(rest) < len(typing.get_args(hint)) else name, many
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return str, ", ".join(f"`{one}`" for one in args), False
    if origin is list:
        inner, name, many = _type(args[0])
        return inner, f"list of {name}", not many
    if origin is tuple:
        return tuple, "two numbers", False
    if origin is dict:
        _, name, _ = _type(args[1])
        return dict, "object" if args[1] is Any else f"object of {name}", False
    if hint in _LEAVES:
        return hint, _LEAVES[hint], False
    return hint, _NAMES.get(hint, "object"), False


def _docstrings(kind: type) -> dict[str, str]:
    """Read what stands below each field of a class."""
    [definition] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[before.target.id] = " ".join(str(after.value.value).split())
    return found


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]
